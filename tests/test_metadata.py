"""write.add_metadata: scores go into each sample's json, and nothing that was there is lost; all other members as ever."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage
from curator.formats.metadata import merged
from tests.conftest import make_image, make_shard, shared, tar_members
from tests.stages import Brightness, Words

SOURCES = (FilePartitioningStage(), ImageReaderStage())
ODD = {
    "a.jpg": make_image(1), "a.json": b'{"z": 1, "a": 1.10, "id": 123456789012345678901, "a": 2}',
    "b.jpg": make_image(2), "b.json": b"[1, 2]",
    "c.jpg": make_image(3), "c.txt": b"words",
    "d.jpg": make_image(4), "d.json": b'{\n  "brightness": "mine"\n}\n',
    "e.jpg": make_image(5), "e.json": b"{}",
    "f.jpg": make_image(6), "f.json": b"\xff not json",
}  # fmt: skip


def written(folder):
    """Every member of the output's tars."""
    return tar_members(*sorted(folder.glob("shards/**/*.tar")))


def test_a_json_keeps_what_it_had_and_gets_the_scores_behind_it(pipeline, tmp_path):
    """Long numbers, their spelling, a name twice; what is no object stays, and the scores stand beside it."""
    make_shard(tmp_path / "a.tar", ODD)
    result = pipeline([*SOURCES, Brightness(), ImageWriterStage(add_metadata=True)], input=tmp_path / "a.tar")
    scores = {row["key"]: row["brightness"] for row in result.ledger.to_pylist()}
    members = written(tmp_path / "out")
    assert members["a.json"].startswith(b'{"z": 1, "a": 1.10, "id": 123456789012345678901, "a": 2, "brightness": ')
    assert json.loads(members["a.json"])["brightness"] == pytest.approx(scores["a"], rel=1e-6)
    assert (members["b.json"], members["f.json"]) == (ODD["b.json"], ODD["f.json"])
    for name in ("b.curator.json", "c.json", "e.json", "f.curator.json"):
        assert json.loads(members[name]) == {"brightness": pytest.approx(scores[name[0]], rel=1e-6)}, name
    d = json.loads(members["d.json"])
    assert list(d) == ["brightness", "curator_brightness"]
    assert d["brightness"] == "mine"
    assert {n: c for n, c in members.items() if not n.endswith(".json")} == {
        n: c for n, c in ODD.items() if not n.endswith(".json")
    }
    remarks = " ".join(result.run["write"]["write"]["remarks"])
    assert "the json of 2 samples is no object" in remarks
    assert "the json of 1 sample had a name of ours already" in remarks


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{}", b'{"s": 0.5}'),
        (b' {"a": "}"}\n', b' {"a": "}", "s": 0.5}\n'),
        (b'{"s": 1, "curator_s": 2}', b'{"s": 1, "curator_s": 2, "curator_curator_s": 0.5}'),
        ("{\"größe\": 1e999}".encode(), "{\"größe\": 1e999, \"s\": 0.5}".encode()),
        (b"null", None),
        (b"", None),
        (b"[" * 100_000, None),
        (b'{"a": 1} {"b": 2}', None),
    ],
)  # fmt: skip
def test_fields_are_put_behind_what_an_object_has(content, expected):
    """Written out; None where it is no object."""
    result = merged(content, {"s": 0.5})
    assert (result and result[0]) == expected


def test_all_samples_have_the_same_fields_in_the_same_order_null_where_there_is_none(pipeline, tmp_path):
    """Scores as numbers, columns of a list as they came, verdicts as texts with `include_dropped`."""
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(make_image(n))
    table = {"path": [f"{n}.jpg" for n in range(4)], "rank": [1, None, 3, 4], "site": ["x", "y", None, "z"]}
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    stages = [*SOURCES, Brightness(score_threshold=0.5), ImageWriterStage(add_metadata=True, include_dropped=True)]
    result = pipeline(stages, input=tmp_path / "list.parquet")
    jsons = [json.loads(c) for n, c in sorted(written(tmp_path / "out").items()) if n.endswith("json")]
    fields = ["brightness", "in_path", "in_rank", "in_site", "status", "stage", "cause", "reason"]
    kinds = {"brightness": float, "status": str, "stage": str, "cause": str, "reason": str}
    for told in jsons:
        ours = [name for name in told if name in fields]
        assert ours in ([name for name in fields if name in ours], fields)
        assert all(type(told[name]) is kind for name, kind in kinds.items())
    assert len({tuple(told) for told in jsons}) == 1
    assert [told["in_rank"] for told in jsons] == [1, None, 3, 4]
    rows = result.ledger.to_pylist()
    assert [told["status"] for told in jsons] == [row["status"] for row in rows]
    assert {told["cause"] for told in jsons if told["status"] == "kept"} == {""}
    beside = pq.read_table(tmp_path / "out/shards/00000.parquet").to_pylist()
    assert [row["in_rank"] for row in beside] == [1, None, 3, 4]
    assert [row["in_status"] for row in beside] == [row["status"] for row in rows]


def test_what_hugging_faces_loader_would_take_for_always_null_is_said(pipeline, tmp_path):
    """It takes the types of a json from the first five samples."""
    for n in range(7):
        (tmp_path / f"{n}.jpg").write_bytes(make_image(n))
    table = {"path": [f"{n}.jpg" for n in range(7)], "late": [None] * 6 + ["x"], "early": ["x"] + [None] * 6}
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    result = pipeline([*SOURCES, ImageWriterStage(add_metadata=True)], input=tmp_path / "list.parquet")
    told = [r for r in result.run["write"]["write"]["remarks"] if "null in the first" in r]
    assert [r.partition(" ")[0] for r in told] == ["in_late"]


def test_photos_with_scores_load_in_hugging_faces_loader(pipeline, tmp_path, monkeypatch):
    """jpg and png mixed, with and without captions: a folder of shards for each kind, and every one of them loads."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = shared("data/photos/00003.tar")
    writer = ImageWriterStage(add_metadata=True, split_by_suffix=True, samples_per_shard=40)
    result = pipeline([*SOURCES, Brightness(), Words(), writer], input=source)
    facts = result.run["write"]["write"]
    truth, members = tar_members(source), written(tmp_path / "out")
    assert {n: c for n, c in members.items() if not n.endswith("json")} == {
        n: c for n, c in truth.items() if not n.endswith("json")
    }
    sets = {tuple(told["members"]): told for told in facts["sets"]}
    assert {"jpg", "png"} <= {suffix for names in sets for suffix in names}
    assert facts["uniform"]
    assert sum(told["samples"] for told in facts["sets"]) == len(result)
    assert any("each with shards of its own" in remark for remark in facts["remarks"])
    places = {(row["output_shard"], row["output_key"]): row for row in result.ledger.to_pylist()}
    seen = 0
    for names, told in sets.items():
        files = sorted(map(str, (tmp_path / "out" / told["folder"]).glob("*.tar")))
        assert len(files) == told["shards"] == -(-told["samples"] // 40)
        loaded = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
        assert set(loaded.column_names) == {*names, "__key__", "__url__"}
        image = next(name for name in names if name in ("jpg", "png"))
        for row in loaded.cast_column(image, datasets.Image(decode=False)):
            place = f"{told['folder'].removeprefix('shards/')}/{row['__url__'].rpartition('/')[2]}"
            ledger_row = places[place, row["__key__"]]
            assert row[image]["bytes"] == truth[ledger_row["image"]]
            assert row["json"]["brightness"] == pytest.approx(ledger_row["brightness"], rel=1e-6)
            assert row["json"]["source"] == json.loads(truth[f"{ledger_row['key']}.json"])["source"]
            seen += 1
    assert seen == len(result) == 100


def test_shards_by_kind_hold_one_kind_each_and_the_ledger_says_where(pipeline, tmp_path):
    """Numbered from 0 in each folder; suffixes that differ in signs a folder cannot have are kept apart."""
    members = {}
    for n in range(12):
        members[f"{n:02d}.{'png' if n % 3 else 'jpg'}"] = make_image(n, form="PNG" if n % 3 else "JPEG")
        members |= {f"{n:02d}.x y": b"1"} if n == 4 else {f"{n:02d}.x_y": b"1"} if n == 5 else {}
    make_shard(tmp_path / "a.tar", members)
    result = pipeline(
        [*SOURCES, ImageWriterStage(split_by_suffix=True, samples_per_shard=3)], input=tmp_path / "a.tar"
    )
    tars = {str(t.relative_to(tmp_path / "out/shards")): t for t in sorted((tmp_path / "out/shards").glob("*/*.tar"))}
    assert list(tars) == [
        "jpg/00000.tar", "jpg/00001.tar", "png/00000.tar", "png/00001.tar", "png-x_y/00000.tar", "png-x_y-1/00000.tar",
    ]  # fmt: skip
    for row in result.ledger.to_pylist():
        assert f"{row['output_key']}.{row['image'].rpartition('.')[2]}" in tar_members(tars[row["output_shard"]])
    assert result.run["write"]["write"]["uniform"]
    assert tar_members(*tars.values()) == members


def test_folders_are_named_by_what_is_in_them_where_there_is_nothing_to_add(pipeline, tmp_path):
    """Without a score no sample gets a json, and no folder says that it has one."""
    make_shard(tmp_path / "a.tar", {"a.jpg": make_image(1), "b.jpg": make_image(2), "b.txt": b"words"})
    writer = ImageWriterStage(add_metadata=True, split_by_suffix=True)
    facts = pipeline([*SOURCES, writer], input=tmp_path / "a.tar").run["write"]["write"]
    found = {str(t.parent.relative_to(tmp_path / "out")): set(tar_members(t)) for t in tmp_path.glob("out/shards/*/*.tar")}
    assert found == {"shards/jpg": {"a.jpg"}, "shards/jpg-txt": {"b.jpg", "b.txt"}}
    assert {told["folder"]: told["members"] for told in facts["sets"]} == {"shards/jpg": ["jpg"], "shards/jpg-txt": ["jpg", "txt"]}
