"""The ledger: one row per input sample, in input order, with its verdict and the reason for it.

The sum that must hold in every run: inputs = kept + dropped + failed. Knows nothing about images, torch or Dask.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.commit import commit

ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 65_536
STATUSES = ("kept", "dropped", "failed")

IDENTITY = pa.schema({"shard": pa.string(), "key": pa.string(), "index": pa.int64()})
VERDICT = pa.schema(
    {
        "status": pa.string(),
        "stage": pa.string(),
        "cause": pa.string(),
        "reason": pa.string(),
        "flags": pa.string(),
        "notes": pa.string(),
    }
)
FACTS = pa.schema(
    {
        "image": pa.string(),
        "format": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frames": pa.int32(),
        "bytes": pa.int64(),
        "content_hash": pa.string(),
        "caption": pa.string(),
    }
)
DUPLICATE = pa.schema(
    {
        "duplicate_of_shard": pa.string(),
        "duplicate_of_key": pa.string(),
        "duplicate_similarity": pa.float64(),
        "duplicate_group": pa.int64(),
    }
)
CARRIED = "in_"
"""How the names of columns begin that came along from a table."""
OUTPUT = pa.schema({"output_shard": pa.string(), "output_key": pa.string()})
NAMED = frozenset(name for part in (IDENTITY, VERDICT, FACTS, DUPLICATE, OUTPUT) for name in part.names)


def carried(schema: pa.Schema) -> list[str]:
    """The columns that stages measured, and those that came with the input, in the ledger's order."""
    return [name for name in schema.names if name not in NAMED]


def counts(ledger: pa.Table) -> dict[str, Any]:
    """Inputs, kept, dropped and failed, and the last two by the stage that decided."""
    status = ledger.column("status")
    result: dict[str, Any] = {"inputs": ledger.num_rows}
    result |= {name: int(pc.sum(pc.equal(status, name)).as_py() or 0) for name in STATUSES}
    grouped = ledger.select(["stage", "status"]).group_by(["stage", "status"]).aggregate([([], "count_all")])
    by_stage: dict[str, dict[str, int]] = {}
    for row in grouped.to_pylist():
        if row["status"] != "kept":
            by_stage.setdefault(row["stage"], {"dropped": 0, "failed": 0})[row["status"]] = row["count_all"]
    return {**result, "by_stage": dict(sorted(by_stage.items()))}


def causes(ledger: pa.Table) -> str:
    """The causes of failed rows with their counts, most frequent first: `truncated 12, empty_file 3`."""
    failed = ledger.filter(pc.equal(ledger.column("status"), "failed")).column("cause")
    counted = sorted(pc.value_counts(failed).to_pylist(), key=lambda row: (-row["counts"], row["values"]))
    return ", ".join(f"{row['values']} {row['counts']:,}" for row in counted)


def reasons(ledger: pa.Table, most: int) -> list[tuple[str, str]]:
    """The most frequent causes of failed rows, each with the reason of the first row that failed so."""
    failed = ledger.filter(pc.equal(ledger.column("status"), "failed")).select(["cause", "reason"])
    counted = sorted(pc.value_counts(failed.column("cause")).to_pylist(), key=lambda r: (-r["counts"], r["values"]))
    causes = [row["values"] for row in counted[:most]]
    rows = [pc.index(failed.column("cause"), cause).as_py() for cause in causes]
    return [(cause, failed.column("reason")[row].as_py() or "") for cause, row in zip(causes, rows, strict=True)]


def check(ledger: pa.Table, inputs: int, written: Sequence[str]) -> None:
    """The invariants of every run; a broken one is a bug of Curator, and ends the run before anything is replaced.

    `written`: the statuses whose rows have an output place, none where nothing is written.
    """
    total = counts(ledger)
    assert total["inputs"] == inputs, f"{total['inputs']} ledger rows for {inputs} inputs"
    assert sum(total[s] for s in STATUSES) == inputs, f"the ledger does not add up: {total}"
    kept = pc.equal(ledger.column("status"), "kept").to_numpy()
    group = ledger.column("duplicate_group").to_numpy()
    stands_for = group[~np.isnan(group)] if group.dtype.kind == "f" else group
    assert kept[stands_for.astype(np.int64)].all(), "a duplicate's representative is not kept"
    if written:
        placed = ledger.column("output_shard").combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        expected = pc.is_in(ledger.column("status"), pa.array(written)).to_numpy(zero_copy_only=False)
        assert (placed == expected).all(), f"{' and '.join(written)} rows and written rows differ"


def write(ledger: pa.Table, folder: Path) -> str:
    """Write `ledger/*.parquet`: a new file each million rows, fixed row groups. Returns a SHA-256 over all bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for number, start in enumerate(range(0, max(ledger.num_rows, 1), ROWS_PER_FILE)):
        path = folder / f"{number:05d}.parquet"
        with commit(path) as file:
            part = ledger.slice(start, ROWS_PER_FILE).combine_chunks()
            pq.write_table(part, file, row_group_size=ROWS_PER_GROUP, compression="zstd", write_page_checksum=True)
        with open(path, "rb") as written:
            digest.update(hashlib.file_digest(written, "sha256").digest())
    return digest.hexdigest()


def read(folder: Path) -> pa.Table:
    """The ledger that lies in a folder."""
    files: Sequence[Path] = sorted(folder.glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f, page_checksum_verification=True) for f in files])


def shown(name: bytes) -> str:
    r"""A name as text a person can read: what is not UTF-8, and control or direction marks, as `\xNN`."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if unicodedata.category(c)[0] != "C" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
