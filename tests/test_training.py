"""curator.open: straight into training, each kept sample once, whatever reads and however many."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

import curator
from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage, ManifestWriterStage
from curator.errors import ConfigError, InputChanged
from curator.formats.keeplist import write_csv
from tests.conftest import make_image, make_samples, make_shard, shared, tar_members
from tests.stages import Brightness
from tests.tars import tar_of

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def loaded(dataset, workers=0):
    """All that a real DataLoader gives in one epoch, sample by sample."""
    return list(DataLoader(dataset, batch_size=None, num_workers=workers))


def members_of(samples):
    """Bytes by name, as a tar would have them; each sample once."""
    assert max(Counter((s["__url__"], s["__key__"]) for s in samples).values()) == 1
    return {f"{s['__key__']}.{name}": b for s in samples for name, b in s.items() if not name.startswith("__")}


@pytest.fixture
def decided(pipeline, tmp_path):
    """Three tars of 40 samples, of which a filter keeps some; nothing is written. The result, and what was kept."""
    for n in range(3):
        make_shard(tmp_path / f"in/{n}.tar", make_samples(40, 100 * n))
    result = pipeline(
        [*SOURCES, Brightness(score_threshold=0.5), ManifestWriterStage()], input=tmp_path / "in"
    )
    rows = [row for row in result.ledger.to_pylist() if row["status"] == "kept"]
    assert 20 < len(rows) < 100
    truth = tar_members(*sorted((tmp_path / "in").glob("*.tar")))
    return result, {f"{r['key']}.{s}": truth[f"{r['key']}.{s}"] for r in rows for s in ("jpg", "txt")}


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_run_that_only_decided_opens_the_originals_with_just_the_kept_in_them(decided, tmp_path, workers):
    """Byte for byte, each sample once, however many workers share three tars."""
    assert members_of(loaded(curator.open(tmp_path / "out"), workers)) == decided[1]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_written_shards_open_as_webdataset_does(pipeline, tmp_path, workers):
    """Also with more workers than shards: those without one give nothing, and none raises."""
    make_shard(tmp_path / "a.tar", make_samples(11))
    pipeline([*SOURCES, ImageWriterStage(samples_per_shard=6)], input=tmp_path / "a.tar")
    (tmp_path / "a.tar").unlink()
    assert members_of(loaded(curator.open(tmp_path / "out"), workers)) == make_samples(11)


def test_of_shards_that_hold_dropped_samples_as_well_the_kept_are_given(pipeline, tmp_path):
    """`include_dropped` wrote everything; the ledger knows which is which. The same key in two tars is two samples."""
    for n in range(2):
        make_shard(tmp_path / f"in/{n}.tar", {f"{i}.jpg": make_image(10 * n + i) for i in range(9)})
    stages = [*SOURCES, Brightness(score_threshold=0.5), ImageWriterStage(include_dropped=True, samples_per_shard=7)]
    result = pipeline(stages, input=tmp_path / "in")
    rows = result.ledger.to_pylist()
    assert sum(len(tar_members(tar)) for tar in (tmp_path / "out/shards").glob("*.tar")) == 18
    kept = Counter(r["content_hash"] for r in rows if r["status"] == "kept")
    got = Counter(hashlib.sha256(s["jpg"]).hexdigest() for s in loaded(curator.open(tmp_path / "out"), 2))
    assert got == kept
    assert 0 < len(kept) < 18


@pytest.mark.parametrize("where", ["in the output", "alone", "alone, without places", "csv", "csv, without places"])
def test_a_manifest_opens_as_well(decided, tmp_path, where, monkeypatch):
    """That of a run, one that was copied elsewhere, one with nothing but shard and key."""
    path = tmp_path / "out/manifest/manifest.parquet"
    table = pq.read_table(path)
    if where != "in the output":
        path = tmp_path / "kept.parquet"
        table = table.select(["shard", "key"]) if "without" in where else table
        pq.write_table(table, path)
    if "csv" in where:
        path = path.with_suffix(".csv")
        with open(path, "wb") as file:
            write_csv(file, table)
    assert members_of(loaded(curator.open(path), 2)) == decided[1]


def test_a_keep_list_that_names_a_sample_twice_gives_it_once(decided, tmp_path):
    """As in lists that were put together; samples of one key at two places are two."""
    table = pq.read_table(tmp_path / "out/manifest/manifest.parquet").select(["shard", "key"])
    pq.write_table(pa.concat_tables([table, table.slice(3, 5), table]), tmp_path / "kept.parquet")
    samples = loaded(curator.open(tmp_path / "kept.parquet"))
    assert [sample["__key__"] for sample in samples] == table.column("key").to_pylist()


def test_a_csv_gives_names_that_a_spreadsheet_would_run_as_they_were(pipeline, tmp_path):
    """They were made text for it; keys that look like numbers stay as they are spelt."""
    members = {f"{key}.jpg": make_image(n) for n, key in enumerate(("=1+1", "@x", "007", "'q", "NULL"))}
    make_shard(tmp_path / "a.tar", members)
    pipeline([*SOURCES, ManifestWriterStage(format="csv")], input=tmp_path / "a.tar")
    assert members_of(loaded(curator.open(tmp_path / "out/manifest/manifest.csv"))) == members


def test_images_in_folders_and_members_that_lie_apart_are_joined(pipeline, tmp_path):
    """As Curator joins them: the caption at the other end of the tar, the json that two images of a stem share."""
    (tmp_path / "in").mkdir()
    apart = [("x.jpg", make_image(1)), ("y.jpg", make_image(2)), ("x.txt", b"x"), ("y.TXT", b"y"), ("z", make_image(5))]
    (tmp_path / "in/a.tar").write_bytes(tar_of(apart))
    files = {"p.jpg": make_image(3), "q/r.png": make_image(4, form="PNG"), "q/r.json": b"{}"}
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    pipeline(SOURCES, input=tmp_path / "in")
    samples = loaded(curator.open(tmp_path / "out"), 2)
    expected = {**dict(apart[:3]), "y.txt": b"y", "z.jpg": make_image(5), **files}
    assert members_of(samples) == expected


@pytest.mark.parametrize("kind", ["paths", "images"])
def test_what_a_table_lists_or_holds_is_read_from_there(pipeline, tmp_path, kind):
    """The images of a list lie elsewhere, those of a parquet in its rows; caption and json are made of its columns."""
    pictures = [make_image(n) for n in range(5)]
    for n, content in enumerate(pictures):
        (tmp_path / f"{n}.jpg").write_bytes(content)
    images = {"path": [f"{n}.jpg" for n in range(5)]} if kind == "paths" else {"image": pictures}
    pq.write_table(pa.table({**images, "caption": list("vwxyz"), "rank": range(5)}), tmp_path / "list.parquet")
    read = ImageReaderStage(image_column=next(iter(images)))
    pipeline([SOURCES[0], read, Brightness(score_threshold=0.3), ManifestWriterStage()], input=tmp_path / "list.parquet")
    samples = loaded(curator.open(tmp_path / "out"), 2)
    assert sorted((s["jpg"], s["txt"].decode(), json.loads(s["json"])["rank"]) for s in samples) == sorted(
        zip(pictures, "vwxyz", range(5), strict=True)
    )


def test_one_huge_tar_is_shared_among_workers(pipeline, tmp_path):
    """Not a whole shard to one of them: 600 samples of one tar come from all three."""
    make_shard(tmp_path / "a.tar", {f"{n:04d}.png": make_image(n, (8, 8), "PNG") for n in range(600)})
    pipeline(SOURCES, input=tmp_path / "a.tar")

    dataset = curator.open(tmp_path / "out").map(with_worker)
    got = loaded(dataset, 3)
    assert sorted(s["__key__"] for s in got) == [f"{n:04d}" for n in range(600)]
    assert {s["worker"] for s in got} == {0, 1, 2}


def with_worker(sample):
    """The sample, and who read it."""
    from torch.utils.data import get_worker_info

    return {**sample, "worker": get_worker_info().id}


@pytest.mark.parametrize("written", [False, True])
def test_nodes_share_the_shards_and_each_sample_comes_once(pipeline, tmp_path, monkeypatch, written):
    """Two nodes with two workers each, told as torchrun and webdataset's other launchers tell it."""
    for n in range(5):
        make_shard(tmp_path / f"in/{n}.tar", make_samples(4, 10 * n))
    pipeline([*SOURCES, *([ImageWriterStage(samples_per_shard=4)] if written else [])], input=tmp_path / "in")
    keys = []
    for rank in range(2):
        part = []
        for worker in range(2):
            told = {"RANK": rank, "WORLD_SIZE": 2, "WORKER": worker, "NUM_WORKERS": 2}
            for name, value in told.items():
                monkeypatch.setenv(name, str(value))
            part += [s["__key__"] for s in loaded(curator.open(tmp_path / "out"))]
        assert len(part) in (8, 12)
        keys += part
    assert sorted(keys) == [f"{10 * n + i:06d}" for n in range(5) for i in range(4)]


@pytest.mark.parametrize("written", [False, True])
def test_it_chains_as_webdataset_users_chain(pipeline, tmp_path, written):
    """Shuffled shards and samples, decoded pictures, tuples, batches; every epoch has all of them."""
    make_shard(tmp_path / "a.tar", make_samples(20))
    pipeline([*SOURCES, *([ImageWriterStage(samples_per_shard=3)] if written else [])], input=tmp_path / "a.tar")
    dataset = curator.open(tmp_path / "out", shardshuffle=10, seed=1).shuffle(8).decode("rgb8").to_tuple("jpg;png", "txt")
    for _ in range(2):
        captions = [caption for _, texts in loaded(dataset.batched(5), 2) for caption in texts]
        assert sorted(captions) == sorted(f"picture {n}" for n in range(20))
        assert captions != sorted(captions)
    image, _ = next(iter(dataset))
    assert (image.shape, str(image.dtype)) == ((48, 64, 3), "uint8")


@pytest.mark.parametrize("how", ["other bytes", "moved samples", "cut short"])
def test_an_original_that_changed_since_is_an_error_that_says_which(decided, tmp_path, how):
    """Never another image under the key of the one that was measured."""
    path = tmp_path / "in/1.tar"
    if how == "other bytes":
        make_shard(path, make_samples(40, 100) | {f"{n:06d}.jpg": make_image(7) for n in range(100, 140)})
    elif how == "moved samples":
        make_shard(path, make_samples(40, 99))
    else:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputChanged, match=r"in/1\.tar: .* is not what was measured"):
        loaded(curator.open(tmp_path / "out"))


def test_what_a_worker_meets_arrives_as_the_same_error(decided, tmp_path):
    """From another process, with its sentence."""
    make_shard(tmp_path / "in/1.tar", make_samples(40, 99))
    with pytest.raises(InputChanged, match=r"in/1\.tar: .* is not what was measured"):
        loaded(curator.open(tmp_path / "out"), 1)


def test_a_tar_that_was_only_touched_is_the_same(decided, tmp_path):
    """And so is one whose store is gone, and one that lies where its name says when the folder was moved."""
    os.utime(tmp_path / "in/1.tar", ns=(1, 1))
    assert members_of(loaded(curator.open(tmp_path / "out"))) == decided[1]
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert members_of(loaded(curator.open(tmp_path / "out"))) == decided[1]


def test_what_cannot_be_opened_is_said(decided, tmp_path):
    """A folder without a run, a table that is no manifest, originals that are gone."""
    with pytest.raises(ConfigError, match="holds no finished run"):
        curator.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is a URL"):
        curator.open("s3://bucket/out")
    pq.write_table(pq.read_table(tmp_path / "out/manifest/manifest.parquet").select(["key"]), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"no manifest, which has columns shard and key: it has key"):
        curator.open(tmp_path / "x.parquet")
    (tmp_path / "in/2.tar").unlink()
    with pytest.raises(ConfigError, match=r"in/2\.tar: the original is not there any more\. The run found it at /"):
        curator.open(tmp_path / "out")


def test_nothing_kept_and_shards_that_are_gone_are_said(pipeline, tmp_path):
    """In a sentence, not from inside a loader."""
    make_shard(tmp_path / "a.tar", make_samples(3))
    pipeline([*SOURCES, Brightness(score_threshold=2)], input=tmp_path / "a.tar")
    with pytest.raises(ConfigError, match="kept no image"):
        curator.open(tmp_path / "out")
    pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    (tmp_path / "out/shards/00000.tar").unlink()
    with pytest.raises(ConfigError, match=r"00000\.tar: is gone"):
        curator.open(tmp_path / "out")


def test_real_photos_come_as_they_went_in(pipeline, tmp_path):
    """Jpg and png, with and without captions: all members of all samples, from their tars."""
    source = shared("data/photos/00004.tar")
    pipeline(SOURCES, input=source)
    assert members_of(loaded(curator.open(tmp_path / "out"), 2)) == tar_members(source)


def test_importing_curator_brings_neither_torch_nor_webdataset_nor_hides_open():
    """A re-decide pays for no training; a star import leaves Python's own open alone."""
    code = (
        "import sys, curator; from curator import *; curator.open; "
        "assert not {'torch', 'webdataset'} & set(sys.modules); import builtins; assert open is builtins.open"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
