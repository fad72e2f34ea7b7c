"""Tables that are texts, as people have them: nothing is lost without a word, and one bad line costs one row."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ManifestWriterStage
from curator.formats.texts import read
from tests.conftest import make_image, make_samples, make_shard


@pytest.fixture
def listed(pipeline, tmp_path: Path):
    """The ledger's rows of a list of four pictures, given as the list's bytes and suffix."""
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(make_image(n))

    def run(content: bytes | pa.Table, suffix: str, **settings):
        path = tmp_path / f"list{suffix}"
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content)
        stages = [FilePartitioningStage(), ImageReaderStage(**settings), ManifestWriterStage()]
        return pipeline(stages, input=path).ledger.to_pylist()

    return run


def test_a_quote_that_is_never_closed_is_told_and_swallows_no_rows(listed):
    """Everything behind it would be one caption."""
    (row,) = listed(b'path,caption\n0.jpg,a\n1.jpg,"b\n2.jpg,c\n3.jpg,d\n', ".csv")
    assert row["status"] == "failed"
    assert "a quote in line 3 is never closed" in row["reason"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_what_is_not_utf8_is_read_as_what_windows_writes_and_noted(listed, encoding):
    """Excel's usual forms: names, columns and captions come through."""
    rows = listed("path,Stadt,caption\r\n0.jpg,K\u00f6ln,Stra\u00dfe\r\n".encode(encoding), ".csv")
    assert (rows[0]["in_Stadt"], rows[0]["caption"], rows[0]["status"]) == ("K\u00f6ln", "Stra\u00dfe", "kept")
    assert rows[0]["notes"] == ("not_utf8" if encoding == "cp1252" else "")
    assert [row["status"] for row in listed("0.jpg\n1.jpg\n".encode(encoding), ".txt")] == ["kept"] * 2


def test_one_bad_line_costs_one_row(listed):
    """A field too many, a field too few, a line that is no JSON, another type in one row."""
    rows = listed(b"path,x\n0.jpg,1,2\n1.jpg\n2.jpg,3\n", ".csv")
    assert [(row["status"], row["cause"]) for row in rows] == [("failed", "bad_row"), ("kept", None), ("kept", None)]
    assert "line 2 has 3 fields and the first line 2: is a ',' in it not between quotes?" in rows[0]["reason"]
    lines = [b'{"path": "0.jpg", "score": 1}', b'{"path": "1.jpg", "sc', b'{"path": "2.jpg", "score": "n/a"}', b"[1]"]
    rows = listed(b"\n".join(lines), ".jsonl")
    assert [row["cause"] for row in rows] == [None, "bad_row", None, "bad_row"]
    assert [row["in_score"] for row in rows] == ["1", None, "n/a", None]


def test_no_digit_of_a_number_is_lost(listed):
    """Leading zeros, hashes of 64 bits, integers of any size; in every kind of table."""
    rows = listed(b"path,zip,hash,n\n0.jpg,007,9223372036854775809,5\n", ".csv")
    assert (rows[0]["in_zip"], rows[0]["in_hash"], rows[0]["in_n"]) == ("007", "9223372036854775809", 5)
    rows = listed(f'{{"path": "0.jpg", "n": {2**70}}}\n{{"path": "1.jpg", "n": 1}}'.encode(), ".jsonl")
    assert [row["in_n"] for row in rows] == [str(2**70), "1"]
    hashes = pa.array([2**63 + 1, 3], pa.uint64())
    rows = listed(pa.table({"path": ["0.jpg", "1.jpg"], "hash": hashes}), ".parquet")
    assert [int(row["in_hash"]) for row in rows] == [2**63 + 1, 3]


def test_columns_of_one_name_or_none_are_told_apart(listed):
    """Excel's export with two empty columns, and a name given twice."""
    rows = listed(b"path,x,x,,\n0.jpg,1,2,,\n", ".csv")
    assert {name: rows[0][name] for name in ("in_x", "in_x_2", "in_column_4")} == {
        "in_x": 1, "in_x_2": 2, "in_column_4": "",
    }  # fmt: skip
    table = pa.Table.from_arrays([pa.array(["0.jpg"]), pa.array([1]), pa.array([2])], ["path", "x", "x"])
    assert listed(table, ".parquet")[0]["in_x_2"] == 2


def test_short_lists_and_bytes_go_along_and_vectors_do_not(listed):
    """A box and a hash say something about an image; a vector and a file are something else."""
    table = pa.table({
        "path": ["0.jpg"], "box": [[0.5, 0.25, 1, 1]], "sha": [b"\x00\xff" * 16], "file": [bytes(5000)],
        "clip": [[0.5] * 512],
    })  # fmt: skip
    row = listed(table, ".parquet", image_column="path", format="list")[0]
    assert json.loads(row["in_box"]) == [0.5, 0.25, 1, 1]
    assert row["in_sha"] == "00ff" * 16
    assert not {"in_file", "in_clip"} & row.keys()


def test_times_that_python_cannot_hold_are_told_as_text(listed):
    """Year 12,000, in a parquet that some other program wrote."""
    far = pa.array([316_516_000_000], pa.timestamp("s"))
    row = listed(pa.table({"path": ["0.jpg"], "taken": far, "day": [datetime.date(2024, 2, 29)]}), ".parquet")[0]
    assert row["in_taken"].startswith("11999-12-29")
    assert row["in_day"] == "2024-02-29"


def test_semicolons_and_categories_are_known(listed):
    """Excel in half of Europe, and pandas' Categorical."""
    assert listed(b"path;caption\n0.jpg;a, b\n", ".csv")[0]["caption"] == "a, b"
    table = pa.table({"path": pa.array(["0.jpg", "1.jpg"]).dictionary_encode()})
    assert [row["status"] for row in listed(table, ".parquet")] == ["kept"] * 2


def test_a_broken_table_beside_a_tar_is_told(pipeline, tmp_path):
    """It is no parquet at all."""
    make_shard(tmp_path / "00000.tar", make_samples(2))
    (tmp_path / "00000.parquet").write_bytes(b"junk")
    result = pipeline([FilePartitioningStage(), ImageReaderStage()], input=tmp_path / "00000.tar")
    assert (result.counts["kept"], result.counts["failed"]) == (2, 1)


def test_what_looks_like_a_number_is_one_only_where_all_of_a_column_do():
    """And the first line's commonest sign separates."""
    found = read(b"a\tb\n1\t.5\nx\t-3e2\n", ".csv").table()
    assert found.to_pydict() == {"a": ["1", "x"], "b": [0.5, -300.0]}
    assert read(b"a,b,c\ntrue,,nan\nfalse,,1\n", ".csv").table(["c"]).to_pydict() == {
        "a": [True, False], "b": ["", ""], "c": ["nan", "1"],
    }  # fmt: skip
