"""The default pipeline over real photos, with the demo's model in place of CLIP ViT-L/14."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from curator.store import Store, vectors_of
from tests.conftest import DEMO, make_shard, run_command, shared, tar_members
from tests.odd_files import encoded


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """480 photos in five shards, curated by the default recipe."""
    source = shared("data/photos")
    place = tmp_path_factory.mktemp("photos")
    ran = run_command(*DEMO, "embed.precision=fp32", f"input={source}/*.tar", "output=out", cwd=place)
    assert ran.code == 0, ran.said
    return place, source, pq.read_table(place / "out/ledger").to_pylist()


def test_the_ledger_is_complete(photos):
    """One row per sample in input order, and each says what became of it."""
    place, source, ledger = photos
    keys = [
        name.split(".")[0]
        for path in sorted(source.glob("*.tar"))
        for name in tar_members(path)
        if name.endswith("json")
    ]
    assert [row["key"] for row in ledger] == keys
    assert len(ledger) == 480
    counts = json.loads((place / "out/run.json").read_text())["counts"]
    assert counts["kept"] + counts["dropped"] + counts["failed"] == 480
    assert counts["failed"] == 0
    assert all((row["reason"] is None) == (row["status"] == "kept") for row in ledger)


def test_every_member_of_what_is_kept_has_its_original_bytes_and_reads_back(photos):
    """Images, captions, classes and json, as tarfile and webdataset read them."""
    place, source, ledger = photos
    kept = {row["key"] for row in ledger if row["status"] == "kept"}
    before = {n: c for n, c in tar_members(*sorted(source.glob("*.tar"))).items() if n.split(".")[0] in kept}
    shards = sorted((place / "out/shards").glob("*.tar"))
    assert tar_members(*shards) == before
    read = list(webdataset.WebDataset([str(p) for p in shards], shardshuffle=False))
    assert {sample["__key__"] for sample in read} == kept
    assert all(
        sample[suffix] == before[f"{sample['__key__']}.{suffix}"]
        for sample in read
        for suffix in sample
        if suffix[0] != "_"
    )


def test_photos_that_are_equal_byte_by_byte_are_one(photos):
    """The pairs that the data's own list names, unless a filter took both out before."""
    _, source, ledger = photos
    pairs: dict[str, list[str]] = {}
    for line in (source / "exact_duplicates.csv").read_text().splitlines()[1:]:
        key, group = line.split(",")
        pairs.setdefault(group, []).append(key)
    rows = {row["key"]: row for row in ledger}
    for keys in pairs.values():
        assert sum(rows[key]["status"] == "kept" for key in keys) <= 1
        for key in keys:
            if rows[key]["stage"] == "dedup":
                assert rows[rows[key]["duplicate_of_key"]]["status"] == "kept"


def embeddings(tmp_path, members):
    """Stored unit vectors by key."""
    make_shard(tmp_path / "a.tar", members)
    ran = run_command(
        *DEMO[:2], "embed.precision=fp32", "recipe=deduplication", "input=a.tar", "output=out", cwd=tmp_path
    )
    assert ran.code == 0, ran.said
    (stored,) = (tmp_path / ".curator/store/embed").glob("*/*")
    emb_ND, _ = vectors_of(Store(tmp_path / ".curator/store").get("embed", stored.name).table)
    ledger = pq.read_table(tmp_path / "out/ledger").to_pylist()
    return {row["key"]: emb.astype(np.float64) for row, emb in zip(ledger, emb_ND, strict=True)}, ledger


def photo() -> Image.Image:
    """One real photo."""
    members = tar_members(shared("data/photos/00000.tar"))
    return Image.open(io.BytesIO(members["000000001.jpg"])).convert("RGB")


def test_a_sixteen_bit_photo_is_the_same_picture(tmp_path):
    """CASES 3 [Pillow #3011]: a 16-bit grey PNG beside its 8-bit twin: cosine above 0.99, found as near-duplicates."""
    grey = photo().convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    found, ledger = embeddings(tmp_path, {"eight.png": encoded(grey, "PNG"), "sixteen.png": encoded(wide, "PNG")})
    assert found["eight"] @ found["sixteen"] > 0.99
    assert [row["status"] for row in ledger].count("dropped") == 1


def test_one_drawing_four_ways_is_one_picture(tmp_path):
    """CASES 4 [img2dataset PR 67]: RGBA, a palette with a transparent entry, LA, and flattened on white."""
    drawing = Image.new("RGBA", (120, 100), (0, 0, 0, 0))
    drawing.paste((20, 20, 20, 255), (30, 20, 90, 80))
    flat = Image.new("RGB", drawing.size, "white")
    flat.paste(drawing, mask=drawing.getchannel("A"))
    palette = drawing.convert("RGB").quantize(4)
    found, ledger = embeddings(
        tmp_path,
        {
            "rgba.png": encoded(drawing, "PNG"),
            "palette.png": encoded(palette, "PNG", transparency=palette.getpixel((0, 0))),
            "la.png": encoded(drawing.convert("LA"), "PNG"),
            "flat.png": encoded(flat, "PNG"),
        },
    )
    vectors = np.stack(list(found.values()))
    assert (vectors @ vectors.T).min() > 0.98
    assert [row["status"] for row in ledger].count("kept") == 1


def test_a_photo_turned_by_its_tag_is_near_the_one_turned_in_its_pixels(tmp_path):
    """CASES 16 [czkawka #1540]: near cosine 1, one dropped; the unturned original is the control."""
    picture, exif = photo(), Image.Exif()
    exif[0x0112] = 6
    members = {
        "tagged.jpg": encoded(picture, "JPEG", exif=exif, quality=95),
        "turned.png": encoded(picture.transpose(Image.Transpose.ROTATE_270), "PNG"),
    }
    found, ledger = embeddings(tmp_path, members)
    assert found["tagged"] @ found["turned"] > 0.98
    assert [row["status"] for row in ledger].count("dropped") == 1
