"""Problems that people really met with neighbouring tools, each with the outcome that is right.

The names in brackets are the public issue threads where they were met.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tarfile

import pytest
import webdataset
from PIL import Image

from curator import (
    FilePartitioningStage,
    ImageReaderStage,
    ImageWriterStage,
    SemanticDeduplicationStage,
)
from tests.conftest import make_image, make_samples, make_shard, shared, tar_members
from tests.odd_files import encoded
from tests.stages import Brightness, Tiny
from tests.tars import special, tar_of

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def rows_by_key(result):
    """Ledger rows by key."""
    return {row["key"]: row for row in result.ledger.to_pylist()}


def test_one_key_in_several_tars_is_several_samples(pipeline, tmp_path):
    """CASES 1 [webdataset #157]: three tars with `000.jpg` each, in one output shard, captions beside their images."""
    for n in range(3):
        make_shard(tmp_path / f"in/{n}.tar", {"000.jpg": make_image(n), "000.txt": f"caption {n}".encode()})
    result = pipeline([*SOURCES, ImageWriterStage(samples_per_shard=10)], input=tmp_path / "in")
    assert result.counts["kept"] == 3
    written = list(webdataset.WebDataset(str(tmp_path / "out/shards/00000.tar"), shardshuffle=False))
    assert len({sample["__key__"] for sample in written}) == 3
    assert {(s["jpg"], s["txt"]) for s in written} == {(make_image(n), f"caption {n}".encode()) for n in range(3)}


def test_suffixes_of_any_case_length_and_kind(pipeline, tmp_path):
    """CASES 2 [datasets #7732, DALI #5228, clip-retrieval #14]: upper case, two dots, two images, an image by content."""
    members = {
        "a.JPG": make_image(1), "a.txt": b"a", "b.image.jpg": make_image(2), "b.txt": b"b",
        "c.left.jpg": make_image(3), "c.right.jpg": make_image(4), "c.json": b"{}", "d.img": make_image(5), "d.cap": b"d",
    }  # fmt: skip
    make_shard(tmp_path / "a.tar", members)
    result = pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    rows = rows_by_key(result)
    assert {k: (r["status"], r["image"]) for k, r in rows.items()} == {
        "a": ("kept", "a.JPG"), "b": ("kept", "b.image.jpg"), "c": ("kept", "c.left.jpg"), "d": ("kept", "d.img"),
    }  # fmt: skip
    assert rows["c"]["notes"] == "several_images"
    assert tar_members(tmp_path / "out/shards/00000.tar") == members


def test_the_same_key_twice_is_two_rows_with_a_note(pipeline, tmp_path):
    """Other readers raise, or let the first win in silence."""
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of([("x.jpg", make_image(1)), ("y.jpg", make_image(2)), ("x.jpg", make_image(3))]))
    result = pipeline([*SOURCES, ImageWriterStage()], input=path)
    rows = result.ledger.to_pylist()
    assert [(r["key"], r["index"], r["notes"]) for r in rows] == [
        ("x", 0, "duplicate_key"),
        ("y", 1, ""),
        ("x", 2, "duplicate_key"),
    ]
    assert [r["output_key"] for r in rows] == ["x", "y", "x-1"]


def test_a_member_joins_its_key_wherever_it_lies(pipeline, tmp_path):
    """All images first, all captions behind them: any member order."""
    samples = make_samples(5)
    order = sorted(samples, key=lambda name: (name.endswith("txt"), name))
    make_shard(tmp_path / "a.tar", {name: samples[name] for name in order})
    result = pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    assert result.ledger.column("caption").to_pylist() == [f"picture {n}" for n in range(5)]


def test_names_that_are_not_utf8_are_shown_escaped_and_leave_as_they_came(pipeline, tmp_path):
    """Latin-1, control characters, a name turned right to left: text is safe, bytes are kept."""
    names = [b"caf\xe9.jpg", b"\x1b[2J.jpg", "‮gpj.jpg".encode(), "größe.jpg".encode()]
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for n, name in enumerate(names):
            info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            info.size = len(make_image(n))
            tar.addfile(info, io.BytesIO(make_image(n)))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    result = pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    keys = result.ledger.column("key").to_pylist()
    assert keys == ["caf\\xe9", "\\x1b[2J", "\\xe2\\x80\\xaegpj", "größe"]
    with tarfile.open(tmp_path / "out/shards/00000.tar", encoding="utf-8", errors="surrogateescape") as tar:
        assert [m.name.encode("utf-8", "surrogateescape") for m in tar] == names


def test_links_and_devices_are_rows_and_are_never_followed(pipeline, tmp_path):
    """A link to ../../secret is a failed row that says so."""
    content = special("link.jpg", tarfile.SYMTYPE, "../../secret") + special("dev.jpg", tarfile.CHRTYPE)
    (tmp_path / "a.tar").write_bytes(content + tar_of([("good.jpg", make_image(1))]))
    rows = rows_by_key(pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar"))
    assert {k: r["cause"] for k, r in rows.items()} == {"link": "link_member", "dev": "special_member", "good": None}
    assert "never followed" in rows["link"]["reason"]


def test_a_truncated_tar_gives_what_was_whole_and_one_row_more(pipeline, tmp_path):
    """The rest is a failure of the shard, counted among the inputs, behind its rows, with no key and no index."""
    content = tar_of([(f"{n}.jpg", make_image(n)) for n in range(4)])
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar").write_bytes(content[: len(content) // 2])
    make_shard(tmp_path / "in/b.tar", {"z.jpg": make_image(9)})
    result = pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "in")
    rows = result.ledger.to_pylist()
    broken = [n for n, row in enumerate(rows) if row["status"] == "failed"]
    assert len(broken) == 1
    row = rows[broken[0]]
    assert (row["key"], row["index"], row["cause"], row["stage"]) == (None, None, "truncated", "read")
    assert all(r["shard"].endswith("a.tar") for r in rows[: broken[0] + 1])
    assert rows[-1]["key"] == "z"
    assert result.counts["inputs"] == len(rows) == result.counts["kept"] + 1


def test_an_unreadable_shard_is_a_row_and_never_a_crash(pipeline, tmp_path):
    """A tar of no bytes, one of garbage, a compressed one."""
    import gzip

    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").write_bytes(b"")
    (tmp_path / "in/1.tar").write_bytes(os.urandom(9000))
    (tmp_path / "in/2.tar").write_bytes(gzip.compress(tar_of([("a.jpg", make_image(1))])))
    make_shard(tmp_path / "in/3.tar", make_samples(1))
    result = pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "in")
    assert (result.counts["failed"], result.counts["kept"]) == (3, 1)
    assert result.ledger.column("cause").to_pylist()[:3] == ["empty_file", "damaged_at_offset", "unreadable"]


@pytest.mark.parametrize("kept", [0, 4, 5])
def test_shards_are_filled_without_gaps_and_without_an_empty_one(pipeline, tmp_path, kept):
    """CASES 17 [webdataset #376]: none kept, exactly a shardful, one more; the middle input loses all its samples."""
    black = encoded(Image.new("RGB", (9, 9)), "PNG")
    white = encoded(Image.new("RGB", (9, 9), "white"), "PNG")
    for n in range(3):
        count = {0: 2, 1: 0, 2: kept - 2}[n] if kept else 0
        make_shard(tmp_path / f"in/{n}.tar", {f"{n}{i}.png": white if i < count else black for i in range(6)})
    result = pipeline(
        [*SOURCES, Brightness(score_threshold=0.5), ImageWriterStage(samples_per_shard=4)], input=tmp_path / "in"
    )
    assert len(result) == kept
    tars = sorted((tmp_path / "out").glob("shards/*.tar"))
    assert [t.name for t in tars] == [f"{n:05d}.tar" for n in range(-(-kept // 4))]
    assert [len(tar_members(t)) for t in tars] == [4] * (kept // 4) + [kept % 4] * bool(kept % 4)


def test_a_wish_for_more_shards_fills_them_evenly(pipeline, tmp_path):
    """CASES 18 [webdataset #68, composer #746]: 40 images in one shard feed one reader; the run says so, min_shards helps."""
    make_shard(tmp_path / "a.tar", make_samples(40))
    one = pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    assert any("no more readers" in remark for remark in one.run["write"]["write"]["remarks"])
    pipeline([*SOURCES, ImageWriterStage(min_shards=8)], input=tmp_path / "a.tar")
    assert [len(tar_members(t)) for t in sorted((tmp_path / "out/shards").glob("*.tar"))] == [10] * 8


def test_a_photo_turned_by_its_tag_is_the_same_photo(pipeline, tmp_path):
    """CASES 16 [czkawka #1540]: turned by EXIF and turned in its pixels are one; the output keeps the tag."""
    picture = Image.open(io.BytesIO(make_image(7, (120, 80)))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    members = {
        "tagged.png": encoded(picture, "PNG", exif=exif),
        "turned.png": encoded(picture.transpose(Image.Transpose.ROTATE_270), "PNG"),
        "control.png": encoded(picture, "PNG"),
    }
    make_shard(tmp_path / "a.tar", members)
    stages = [*SOURCES, Tiny(), SemanticDeduplicationStage(keep=("first",)), ImageWriterStage()]
    result = pipeline(stages, input=tmp_path / "a.tar")
    rows = rows_by_key(result)
    assert [rows[k]["status"] for k in ("tagged", "turned", "control")] == ["kept", "dropped", "kept"]
    assert (rows["tagged"]["width"], rows["tagged"]["height"]) == (80, 120)
    assert tar_members(tmp_path / "out/shards/00000.tar")["tagged.png"] == members["tagged.png"]


def test_very_long_images_do_not_crash(pipeline, tmp_path):
    """CASES 13 [CLIP #215, cleanvision PR 250]: 4000x40, 2000x1, 1x1."""
    sizes = [(4000, 40), (40, 4000), (2000, 1), (1, 2000), (1, 1)]
    make_shard(tmp_path / "a.tar", {f"{w}x{h}.png": make_image(1, (w, h), "PNG") for w, h in sizes})
    result = pipeline([*SOURCES, Tiny(), Brightness()], input=tmp_path / "a.tar")
    assert result.counts["failed"] == 0


def test_many_small_tars_under_a_low_limit_of_open_files(tmp_path):
    """CASES 25 [dask #1411, xarray #10736]: `ulimit -n 256`, hundreds of tars, several workers, then writing."""
    for n in range(600):
        make_shard(tmp_path / f"in/{n:04d}.tar", {f"{n}.png": make_image(n, (8, 8), "PNG")})

    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    command = ["stages=[partition,read,write]", "input=in", "output=out", "cluster=local", "cluster.n_workers=2"]
    done = subprocess.run(
        [sys.executable, "-m", "curator", *command],
        cwd=tmp_path,
        preexec_fn=low,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "600 in = 600 kept" in done.stdout


def test_the_output_reads_back_in_webdataset_and_hugging_faces_loader(pipeline, tmp_path):
    """Real photos where the field sets are uniform: equal bytes in both readers."""
    import datasets

    source = shared("data/neardup/neardup-00000.tar")
    result = pipeline([*SOURCES, ImageWriterStage(samples_per_shard=100)], input=source)
    assert result.run["write"]["write"]["uniform"]
    truth = tar_members(source)
    shards = sorted(str(p) for p in (tmp_path / "out/shards").glob("*.tar"))
    read = {f"{s['__key__']}.jpg": s["jpg"] for s in webdataset.WebDataset(shards, shardshuffle=False)}
    assert read == {name: content for name, content in truth.items() if name.endswith("jpg")}
    os.environ["HF_HUB_OFFLINE"] = "1"
    loaded = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=str(tmp_path / "hf"))
    loaded = loaded.cast_column("jpg", datasets.Image(decode=False))
    assert {f"{row['__key__']}.jpg": row["jpg"]["bytes"] for row in loaded} == read
    assert loaded[0]["json"] == json.loads(truth["nd00000.json"])


def test_samples_with_different_members_are_said(pipeline, tmp_path):
    """Hugging Face's loader wants the same members in all; the end of the run and run.json say where they differ."""
    make_shard(tmp_path / "a.tar", {**make_samples(2), "x.jpg": make_image(3)})
    result = pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    assert not result.run["write"]["write"]["uniform"]
    assert "different members" in result.run["write"]["write"]["remarks"][0]


def test_every_ready_made_tar_of_other_projects_is_accounted_for(pipeline, tmp_path):
    """Shards of clip-retrieval and webdataset, some without any image: each sample a row, no crash."""
    peers = shared("data/peers")
    result = pipeline([*SOURCES, ImageWriterStage()], input=peers)
    counts = result.counts
    assert counts["inputs"] == 222
    assert counts["kept"] == 119
    assert set(result.ledger.column("cause").to_pylist()) == {None, "no_image"}
