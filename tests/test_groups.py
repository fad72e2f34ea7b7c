"""groups: who was taken for whom, as tables that users of fastdup and of SemDeDup know."""

from __future__ import annotations

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import (
    ExactDeduplicationStage,
    FilePartitioningStage,
    GroupWriterStage,
    ImageReaderStage,
    SemanticDeduplicationStage,
)
from curator.formats.groups import groups_table
from curator.ledger import DUPLICATE, FACTS, IDENTITY, VERDICT
from tests.conftest import make_image, make_shard
from tests.stages import Tiny

SOURCES = (FilePartitioningStage(), ImageReaderStage())
NEAR = SemanticDeduplicationStage(keep=("first",), similarity_floor=0.99, similarity_threshold=0.995)


@pytest.fixture
def grouped(pipeline, tmp_path):
    """Three of one picture (one a PNG), two of another, one alone; written by `groups`."""
    members = {
        "a.jpg": make_image(1), "b.jpg": make_image(2), "c.jpg": make_image(1), "d.jpg": make_image(3),
        "e.png": make_image(1, form="PNG"), "f.jpg": make_image(2),
    }  # fmt: skip
    make_shard(tmp_path / "a.tar", members)
    result = pipeline([*SOURCES, ExactDeduplicationStage(keep=("first",)), Tiny(), NEAR, GroupWriterStage()], input=tmp_path / "a.tar")
    return result, tmp_path / "out/groups", str(tmp_path / "a.tar")


def test_every_member_stands_in_its_group_the_one_that_stays_first(grouped):
    """Dropped ones too: they are what a group is about. One alone is in none."""
    result, folder, shard = grouped
    rows = pq.read_table(folder / "groups.parquet").to_pylist()
    assert [(r["group"], r["key"], r["is_representative"], r["kept"]) for r in rows] == [
        (0, "a", True, True), (0, "c", False, False), (0, "e", False, False),
        (1, "b", True, True), (1, "f", False, False),
    ]  # fmt: skip
    ledger = result.ledger.to_pylist()
    for row in rows:
        its = next(r for r in ledger if r["key"] == row["key"])
        assert its["duplicate_group"] == row["group"] == ledger[row["group"]]["duplicate_group"]
        assert row["similarity"] == (1 if row["is_representative"] else its["duplicate_similarity"])
        assert (row["shard"], row["representative_shard"]) == (shard, shard)
        assert row["representative_key"] == ("a" if row["group"] == 0 else "b")
    assert rows[2]["similarity"] < 1
    assert {row["stage"] for row in rows if not row["is_representative"]} == {"exact", "dedup"}
    assert result.run["write"]["groups"] == {"groups": 2, "members": 5, "remarks": []}


def test_pairs_are_listed_as_fastdup_lists_them(grouped):
    """`from,to,distance`: distance is the similarity, the highest first."""
    _, folder, shard = grouped
    with open(folder / "similarity.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["from", "to", "distance"]
    distances = [float(row[2]) for row in rows[1:]]
    assert distances == sorted(distances, reverse=True)
    assert {(a, b) for a, b, _ in rows[1:]} == {
        (f"{shard}/{a}", f"{shard}/{b}") for a, b in (("c.jpg", "a.jpg"), ("e.png", "a.jpg"), ("f.jpg", "b.jpg"))
    }


def test_the_pruning_table_keeps_by_its_own_rule_what_was_kept(grouped):
    """A row stays iff its score is at most 1 - eps, for an eps a little above 1 - threshold."""
    _, folder, shard = grouped
    rows = pq.read_table(folder / "pruning.parquet").to_pylist()
    eps = 1 - 0.995 + 1e-9
    stay = {row["id"] for row in rows if row["cosine_sim_score"] <= 1 - eps}
    assert stay == {f"{shard}/a.jpg", f"{shard}/b.jpg"}
    assert all(row["id"] == row["max_id"] and row["cosine_sim_score"] == 0 for row in rows if row["id"] in stay)
    assert {row["max_id"] for row in rows} == stay


def test_a_representative_of_an_earlier_run_is_named(pipeline, tmp_path):
    """`dedup.against`: its group is no row of this ledger."""
    make_shard(tmp_path / "old.tar", {"o.jpg": make_image(1)})
    make_shard(tmp_path / "new.tar", {"n.jpg": make_image(1), "m.jpg": make_image(2)})
    pipeline([*SOURCES, Tiny()], input=tmp_path / "old.tar", output=tmp_path / "first")
    stage = SemanticDeduplicationStage(against=str(tmp_path / "first"))
    result = pipeline([*SOURCES, Tiny(), stage, GroupWriterStage()], input=tmp_path / "new.tar")
    (row,) = pq.read_table(tmp_path / "out/groups/groups.parquet").to_pylist()
    assert (row["group"], row["key"], row["kept"]) == (None, "n", False)
    assert (row["representative_shard"], row["representative_key"]) == (str(tmp_path / "old.tar"), "o")
    assert len(result) == 1
    text = (tmp_path / "out/groups/similarity.csv").read_text().splitlines()
    assert text[1] == f"{tmp_path}/new.tar/n.jpg,{tmp_path}/old.tar/o,1.000000"


def test_without_duplicates_the_tables_are_empty_and_that_is_said(pipeline, tmp_path):
    """With all their columns."""
    make_shard(tmp_path / "a.tar", {"a.jpg": make_image(1)})
    result = pipeline([*SOURCES, GroupWriterStage()], input=tmp_path / "a.tar")
    assert pq.read_table(tmp_path / "out/groups/groups.parquet").num_rows == 0
    assert pq.read_schema(tmp_path / "out/groups/pruning.parquet").names == ["id", "max_id", "cosine_sim_score"]
    assert "no two images" in result.run["write"]["groups"]["remarks"][0]
    schema = pa.schema([*IDENTITY, *VERDICT, *FACTS, *DUPLICATE])
    assert groups_table(schema.empty_table()).num_rows == 0
