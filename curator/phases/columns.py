"""The columns of one piece while they are being filled, and the tables that they become in the store.

Every object has one row per sample of its piece, and the columns `cause`, `detail`, `open`: why a row has no value,
and whether that was the machine's fault and is to be tried again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator.errors import TRANSIENT, Cause, Fault
from curator.formats.texts import of_one_type
from curator.stage import Array, Columns, Mask
from curator.store import vectors_column, vectors_of

READ_SCHEMA = pa.schema(
    {
        "key": pa.binary(),
        "image": pa.binary(),
        "format": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frames": pa.int32(),
        "bytes": pa.int64(),
        "content_hash": pa.string(),
        "caption": pa.string(),
        "notes": pa.string(),
        "members": pa.string(),  # the suffixes of all members: tells whether what is written is uniform
        "carried": pa.string(),  # what a table says of the sample besides, as JSON
        "cause": pa.string(),
        "detail": pa.string(),
        "open": pa.bool_(),
    }
)
FAULTS = ("cause", "detail", "open")


@dataclass(frozen=True)
class Samples:
    """All samples of all shards in input order. `table` (N rows) has every column that deciding needs.

    `shard` (N,) is the number of each row's shard in the census, `index` (N,) its position in it.
    """

    table: pa.Table
    shard: Array
    index: Array


@dataclass(frozen=True)
class Found:
    """What a collection stage found, where each row of the run stands in it, and whether it was found just now."""

    table: pa.Table
    piece: Array  # (N,) number of the row's piece among the sorted embeddings' addresses
    row: Array  # (N,) its row in that piece
    compared: int  # rows that were searched in this run; 0 where it came from the store
    outside: pa.Table | None = None  # piece, row, shard, key: rows kept elsewhere that these were compared with
    before: tuple[str, ...] = ()  # what stands for their pieces: the same where they are the same


class Rows:
    """N rows of one stage's columns, filled in any order; a row is either a set of values or a fault."""

    def __init__(self, count: int, gives: Sequence[str]) -> None:
        self.count = count
        self.gives = tuple(gives)
        self.arrays: dict[str, Array] = {}
        self.has = np.zeros(count, bool)
        self.faults: dict[int, tuple[str, str, bool]] = {}

    def fill(self, rows: Sequence[int] | Array, values: Mapping[str, Array]) -> None:
        """Put the measured values of some rows; those that are not finite become faults."""
        rows = np.asarray(rows)
        finite = np.ones(len(rows), bool)
        for name in self.gives:
            column = np.asarray(values[name])
            if column.dtype.kind == "f":
                finite &= np.isfinite(column.reshape(len(column), -1)).all(axis=1)
            self._make_room(name, column)
        for name in self.gives:
            self.arrays[name][rows[finite]] = np.asarray(values[name])[finite]
        self.has[rows[finite]] = True
        for position in np.flatnonzero(~finite):
            self.fail(int(rows[position]), Cause.SCORE_NOT_FINITE, self._not_finite(values, int(position)))

    def _make_room(self, name: str, column: Array) -> None:
        """An array that holds what is there and this column as well, whatever types other batches had."""
        kind = np.dtype(object) if column.dtype.kind in "OUS" else column.dtype
        had = self.arrays.get(name)
        if had is None:
            self.arrays[name] = np.zeros((self.count, *column.shape[1:]), kind)
        elif had.dtype != kind:
            both = np.dtype(object) if "O" in (had.dtype.kind, kind.kind) else np.result_type(had.dtype, kind)
            self.arrays[name] = had.astype(both)

    def _not_finite(self, values: Mapping[str, Array], position: int) -> str:
        wrong = [n for n in self.gives if not np.isfinite(np.asarray(values[n])[position]).all()]
        return f"{', '.join(wrong)} is not a finite number; neither kept nor dropped"

    def fail(self, row: int, cause: str, detail: str) -> None:
        """Note why a row has no values."""
        self.faults[row] = (cause, detail, cause in TRANSIENT)

    def table(self) -> pa.Table:
        """The rows as they are stored."""
        columns: dict[str, pa.Array] = {}
        for name in self.gives:
            array = self.arrays.get(name)
            if name == "embedding":
                columns[name] = vectors_column(np.zeros((self.count, 1)) if array is None else array, self.has)
            elif array is None:
                columns[name] = pa.nulls(self.count)  # of no type: pieces that have values say which
            else:
                columns[name] = pa.array(array, mask=~self.has)
        return pa.table({**columns, **fault_columns(self.count, self.faults)})

    @classmethod
    def resumed(cls, table: pa.Table, gives: Sequence[str]) -> Rows:
        """The rows of a stored object that had open ones: everything else stays as it is."""
        rows = cls(table.num_rows, gives)
        rows.has = valid(table, gives).copy()
        for name in gives if rows.has.any() else ():
            if name == "embedding":
                rows.arrays[name] = vectors_of(table)[0].copy()
                continue
            there = _as_array(table.column(name).filter(pa.array(rows.has)))
            rows._make_room(name, there)
            rows.arrays[name][rows.has] = there
        for row, (cause, detail, again) in enumerate(zip(*(table.column(n).to_pylist() for n in FAULTS), strict=True)):
            if cause is not None and not again:
                rows.faults[row] = (cause, detail, again)
        return rows


def fault_columns(count: int, faults: Mapping[int, tuple[str, str, bool]]) -> dict[str, pa.Array]:
    """The three columns that say which rows have no values, and why."""
    empty: tuple[None, None, bool] = (None, None, False)
    causes, details, again = zip(*(faults.get(i, empty) for i in range(count)), strict=True) if count else ((), (), ())
    return {
        "cause": pa.array(causes, pa.string()),
        "detail": pa.array(details, pa.string()),
        "open": pa.array(again, pa.bool_()),
    }


class ReadRows:
    """What reading finds about N samples."""

    def __init__(self, count: int) -> None:
        self.rows: list[dict[str, Any]] = [{"open": False, "notes": ""} for _ in range(count)]

    def note(self, row: int, **facts: Any) -> None:
        """Add facts about one sample."""
        self.rows[row].update(facts)

    def fail(self, row: int, fault: Fault) -> None:
        """Note why the image of this sample cannot be used."""
        self.note(row, cause=str(fault.cause), detail=fault.detail, open=fault.cause in TRANSIENT)

    def note_decoded(self, row: int, facts: Any, fault: Fault | None) -> None:
        """Add what the decoder found out about one image: `decode.Facts` where its header could be read."""
        if facts is not None:
            notes = " ".join(dict.fromkeys([*self.rows[row]["notes"].split(), *facts.notes]))
            shape = {"format": facts.format, "width": facts.width, "height": facts.height, "frames": facts.frames}
            self.note(row, notes=notes, **shape)
        if fault is not None:
            self.fail(row, fault)

    def table(self) -> pa.Table:
        """The rows as they are stored."""
        return pa.Table.from_pylist(self.rows, schema=READ_SCHEMA)

    @classmethod
    def resumed(cls, table: pa.Table) -> ReadRows:
        """The stored rows, the faults of open ones taken away."""
        rows = cls(0)
        rows.rows = table.select(READ_SCHEMA.names).to_pylist()
        for row in rows.rows:
            if row["open"]:
                row.update(cause=None, detail=None, open=False)
        return rows


def unit_float16(emb_ND: Array) -> Array:
    """(N, D) rows made unit length in float64 and rounded to float16; rows without a direction become NaN."""
    wide = np.asarray(emb_ND, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: Array = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)
    return unit


def as_columns(table: pa.Table, names: Sequence[str]) -> Columns:
    """Stored columns as NumPy arrays: numbers with NaN for nulls, text as objects."""
    return {name: _as_array(table.column(name)) for name in names}


def _as_array(column: pa.ChunkedArray) -> Array:
    if pa.types.is_integer(column.type) and column.null_count:
        column = column.cast(pa.float64())
    array: Array = column.to_numpy()
    return array


def carried_columns(carried: Iterable[str | None]) -> dict[str, pa.Array]:
    """JSON objects row by row -> `in_` columns of the types that all their values have; text where they have none."""
    rows = [json.loads(text) if text else {} for text in carried]
    names = dict.fromkeys(name for row in rows for name in row)
    return {f"in_{name}": of_one_type([row.get(name) for row in rows]) for name in names}


def valid(table: pa.Table, names: Sequence[str]) -> Mask:
    """(N,) True where none of the columns is null."""
    mask = np.ones(table.num_rows, bool)
    for name in names:
        if table.column(name).null_count:
            mask &= table.column(name).combine_chunks().is_valid().to_numpy(zero_copy_only=False)
    return mask
