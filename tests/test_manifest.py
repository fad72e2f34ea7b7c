"""manifest: a keep-list, and DataComp's uids by the rule that its resharder reads them with."""

from __future__ import annotations

import csv
import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ManifestWriterStage
from curator.formats.keeplist import safe_cell, uid_array
from tests.conftest import make_image, make_samples, make_shard
from tests.stages import Brightness

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def reshard(path, uids):
    """Which of these samples DataComp's resharder would write: load, assert the type, search by halving."""
    array = np.load(path)
    assert array.dtype == np.dtype("u8,u8")
    assert array.ndim == 1
    written = []
    for uid in uids:
        key = np.array((int(uid[:16], 16), int(uid[16:32], 16)), np.dtype("u8,u8"))
        if len(array):
            place = np.searchsorted(array, key)
            if place < len(array) and array[place] == key:
                written.append(uid)
    return written


def with_uids(folder, uids):
    """A tar of pictures, each with its uid in its json, and each another brightness."""
    members = {}
    for n, uid in enumerate(uids):
        members[f"{n:04d}.png"] = make_image(n, form="PNG")
        members[f"{n:04d}.json"] = json.dumps({"uid": uid} if uid is not None else {}).encode()
    return make_shard(folder / "a.tar", members)


def test_the_list_names_what_is_kept_and_the_ledger_has_no_place_for_it(pipeline, tmp_path):
    """Shard, key, place, image and its hash, in input order; it copies nothing."""
    make_shard(tmp_path / "a.tar", make_samples(9))
    result = pipeline([*SOURCES, Brightness(score_threshold=0.5), ManifestWriterStage()], input=tmp_path / "a.tar")
    names = ["shard", "key", "index", "image", "content_hash"]
    expected = [{n: row[n] for n in names} for row in result.ledger.to_pylist() if row["status"] == "kept"]
    assert pq.read_table(tmp_path / "out/manifest/manifest.parquet").to_pylist() == expected
    assert [p.name for p in (tmp_path / "out/manifest").iterdir()] == ["manifest.parquet"]
    assert set(result.ledger.column("output_shard").to_pylist()) == {None}
    assert 0 < len(expected) < 9


def test_datacomps_resharder_would_write_what_is_kept_and_nothing_else(pipeline, tmp_path):
    """By its own rule, over random uids, those with leading zeros and with the highest bit set among them."""
    rng = np.random.default_rng(0)
    uids = [uuid.UUID(bytes=rng.bytes(16)).hex for _ in range(60)]
    uids[:3] = ["0" * 32, "f" * 32, "0" * 31 + "1"]
    stages = [*SOURCES, Brightness(score_threshold=0.5), ManifestWriterStage()]
    result = pipeline(stages, input=with_uids(tmp_path, uids))
    kept = [uids[row["index"]] for row in result.ledger.to_pylist() if row["status"] == "kept"]
    assert 10 < len(kept) < 50
    assert reshard(tmp_path / "out/manifest/uids.npy", uids) == kept
    assert pq.read_table(tmp_path / "out/manifest/manifest.parquet").column("uid").to_pylist() == kept
    assert np.load(tmp_path / "out/manifest/uids.npy").dtype.descr == [("f0", "<u8"), ("f1", "<u8")]


def test_the_order_is_that_of_pairs_of_numbers():
    """Written out: the first half decides, then the second; bit 63 is no sign."""
    array, repeated, odd = uid_array(["8" + "0" * 31, "0" * 15 + "2" + "0" * 16, "0" * 15 + "1" + "f" * 16, None, "x"])
    assert array.tolist() == [(1, 2**64 - 1), (2, 0), (2**63, 0)]
    assert (repeated, odd) == (0, 1)
    assert uid_array([])[0].dtype == np.dtype("u8,u8")


def test_uids_that_repeat_are_none_or_are_missing_are_said(pipeline, tmp_path):
    """One that is listed twice would be written twice [datacomp #92]."""
    uids = ["a" * 32, "a" * 32, "A" * 32, "not hex", None, "b" * 32]
    result = pipeline([*SOURCES, ManifestWriterStage()], input=with_uids(tmp_path, uids))
    facts = result.run["write"]["manifest"]
    assert facts["uids"] == 2
    assert [remark.partition(":")[0] for remark in facts["remarks"]] == [
        "2 uids more than once", "1 uid of other than 32 hexadecimal digits", "1 sample without a uid",
    ]  # fmt: skip
    assert len(np.load(tmp_path / "out/manifest/uids.npy")) == 2


def test_the_uid_of_a_list_is_taken_from_its_column(pipeline, tmp_path):
    """No json is looked into."""
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(make_image(n))
    uids = [f"{n:032x}" for n in (7, 5, 6)]
    pq.write_table(pa.table({"file": [f"{n}.jpg" for n in range(3)], "uid": uids}), tmp_path / "list.parquet")
    pipeline([SOURCES[0], ImageReaderStage(), ManifestWriterStage()], input=tmp_path / "list.parquet")
    assert np.load(tmp_path / "out/manifest/uids.npy").tolist() == [(0, 5), (0, 6), (0, 7)]


def test_without_uids_or_where_none_are_wanted_there_is_no_array(pipeline, tmp_path):
    """`uids=false` looks into no json."""
    stages = [*SOURCES, ManifestWriterStage(uids=False)]
    result = pipeline(stages, input=with_uids(tmp_path, ["a" * 32]))
    assert not (tmp_path / "out/manifest/uids.npy").exists()
    assert "uid" not in pq.read_table(tmp_path / "out/manifest/manifest.parquet").column_names
    assert result.run["write"]["manifest"] == {"rows": 1, "remarks": []}


def test_with_dropped_rows_the_list_says_which_and_the_uids_are_of_the_kept(pipeline, tmp_path):
    """An array of uids holds no status."""
    uids = [f"{n:032x}" for n in range(20)]
    stages = [*SOURCES, Brightness(score_threshold=0.5), ManifestWriterStage(include_dropped=True)]
    result = pipeline(stages, input=with_uids(tmp_path, uids))
    rows = pq.read_table(tmp_path / "out/manifest/manifest.parquet").to_pylist()
    assert [row["status"] for row in rows] == result.ledger.column("status").to_pylist()
    kept = [row["uid"] for row in rows if row["status"] == "kept"]
    assert 0 < len(kept) < 20
    assert reshard(tmp_path / "out/manifest/uids.npy", uids) == kept


def test_a_spreadsheet_runs_nothing_of_a_csv(pipeline, tmp_path):
    """Keys come from strangers: those that begin like a formula get a sign in front."""
    keys = ["=HYPERLINK(1)", "+1", "-1", "@x", "plain", "a,b", 'q"q']
    make_shard(tmp_path / "a.tar", {f"{key}.jpg": make_image(n) for n, key in enumerate(keys)})
    pipeline([*SOURCES, ManifestWriterStage(format="csv")], input=tmp_path / "a.tar")
    with open(tmp_path / "out/manifest/manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["'=HYPERLINK(1)", "'+1", "'-1", "'@x", "plain", "a,b", 'q"q']
    assert [row["index"] for row in rows] == [str(n) for n in range(7)]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\0"])
def test_each_of_the_seven_signs_is_met(sign):
    """ASVS 1.2.10."""
    assert safe_cell(f"{sign}x") == f"'{sign}x"
    assert safe_cell(f"x{sign}") == f"x{sign}"
    assert safe_cell(-1) == -1


def test_lines_are_paths_where_the_input_is_a_folder(pipeline, tmp_path):
    """As `xargs` and `rsync --files-from` take them."""
    (tmp_path / "in/b").mkdir(parents=True)
    for n, name in enumerate(("a.jpg", "b/c d.png")):
        (tmp_path / "in" / name).write_bytes(make_image(n))
    pipeline([*SOURCES, ManifestWriterStage(format="txt")], input=f"{tmp_path}/in/")
    lines = (tmp_path / "out/manifest/manifest.txt").read_text().splitlines()
    assert lines == [f"{tmp_path}/in/a.jpg", f"{tmp_path}/in/b/c d.png"]
    assert [Path(line).read_bytes() for line in lines] == [make_image(0), make_image(1)]


def test_a_sweep_writes_the_list_of_every_job(curate, tmp_path):
    """It is light: other writers wait until one setting is liked."""
    make_shard(tmp_path / "a.tar", make_samples(4))
    stages = "stages=[partition,read,exact,manifest,write]"
    ran = curate("-m", "input=a.tar", "output=sweep", stages, "exact.keep=[first],[bytes]")
    assert ran.code == 0, ran.said
    assert len(list((tmp_path / "sweep").glob("*/manifest/manifest.parquet"))) == 2
    assert not list((tmp_path / "sweep").glob("*/shards"))
