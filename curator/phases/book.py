"""Verdicts become the ledger: identity, verdict, facts, scores, duplicates, one row per input in input order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.ledger import CARRIED, DUPLICATE, FACTS, IDENTITY, OUTPUT, VERDICT, shown
from curator.phases.columns import Samples
from curator.phases.decide import DROPPED, STATUS, Verdicts, duplicate_columns, kept_before
from curator.phases.inputs import Known
from curator.stage import Array


def book(
    rows: Samples, verdicts: Verdicts, shards: Sequence[Known], score_columns: Sequence[str], read: str
) -> pa.Table:
    """The whole ledger. A damaged shard is one failed row more, behind its rows, with no key and no index."""
    damaged = [n for n, known in enumerate(shards) if known.damage is not None]
    number = np.arange(len(rows.shard)) + np.searchsorted(damaged, rows.shard, side="left")
    names = pa.array([known.shard.given for known in shards], pa.string())
    keys = texts(rows.table.column("key"))
    shard_names = names.take(pa.array(rows.shard, pa.int64()))
    duplicate = duplicate_columns(verdicts, shard_names, keys, number)
    columns = {
        "shard": shard_names,
        "key": keys,
        "index": pa.array(rows.index, pa.int64()),
        "status": pa.array(STATUS[verdicts.status], pa.string()),
        "stage": pa.array(verdicts.stage, pa.string()),
        "cause": pa.array(verdicts.cause, pa.string()),
        "reason": _reasons(verdicts, shard_names, keys),
        "flags": _flags(verdicts, shard_names, keys),
        **{name: rows.table.column(name) for name in ("notes", *FACTS.names)},
        **{name: rows.table.column(name) for name in score_columns},
        **duplicate,
        **{name: rows.table.column(name) for name in rows.table.column_names if name.startswith(CARRIED)},
    }
    columns["image"] = texts(columns["image"])
    ledger = pa.table(columns).cast(schema_of(rows.table, score_columns))
    return _with_damaged(ledger, number, shards, damaged, read).combine_chunks()


def schema_of(table: pa.Table, score_columns: Sequence[str]) -> pa.Schema:
    """The ledger's columns, in order, before anything is written."""
    scores = [table.schema.field(name) for name in score_columns]
    carried = [column for column in table.schema if column.name.startswith(CARRIED)]
    return pa.schema([*IDENTITY, *VERDICT, *FACTS, *scores, *DUPLICATE, *carried])


def _with_damaged(
    ledger: pa.Table, number: Array, shards: Sequence[Known], damaged: Sequence[int], read: str
) -> pa.Table:
    if not damaged:
        return ledger
    faults = [(shards[n].shard.given, shards[n].damage) for n in damaged]
    extra = pa.Table.from_pylist(
        [
            {"shard": given, "status": "failed", "stage": read, "cause": d.cause.value, "reason": d.detail,
             "flags": "", "notes": ""}
            for given, d in faults if d is not None
        ],
        schema=ledger.schema,
    )  # fmt: skip
    taken = np.ones(ledger.num_rows + len(damaged), bool)
    taken[number] = False
    order = np.empty(len(taken), np.int64)
    order[number] = np.arange(ledger.num_rows)
    order[np.flatnonzero(taken)] = ledger.num_rows + np.arange(len(damaged))
    return pa.concat_tables([ledger, extra]).take(order)


def _reasons(verdicts: Verdicts, shards: pa.Array, keys: pa.Array) -> pa.Array:
    """Why a row is not kept, in words. A duplicate names the row that it resembles, and where that one was dropped by a
    later stage, why: `same bytes as a.tar/5, near-duplicate 0.973 of b.tar/17`. Where the same stage dropped that one,
    as some published rules do, no more is told of it.
    """
    reasons = verdicts.reason.copy()
    rows = np.flatnonzero((verdicts.resembles >= 0) & (verdicts.status == DROPPED))
    of = pa.array(verdicts.resembles[rows])
    for row, shard, key in zip(rows, shards.take(of).to_pylist(), keys.take(of).to_pylist(), strict=True):
        reasons[row] = f"{reasons[row]} {shard}/{key}"
    if verdicts.outside is not None:
        for row in np.flatnonzero((verdicts.outside_of >= 0) & (verdicts.resembles < 0)):
            reasons[row] += kept_before(verdicts.outside, int(verdicts.outside_of[row]))
    reasons[rows[verdicts.alone[rows]]] += ", which is dropped as well"
    told = reasons.copy()
    for row in rows:
        by = row
        while not verdicts.alone[by] and (by := verdicts.resembles[by]) >= 0 and verdicts.status[by] == DROPPED:
            told[row] += f", {reasons[by]}"
    return pa.array(told, pa.string())


def _flags(verdicts: Verdicts, shards: pa.Array, keys: pa.Array) -> pa.Array:
    """Who would have dropped a row, and why, with the names of the rows that it would have been dropped for."""
    flags = verdicts.flags.copy()
    for stage, rows, words, of in verdicts.flagged:
        named = pa.array(np.maximum(of, 0))
        names = zip(shards.take(named).to_pylist(), keys.take(named).to_pylist(), strict=True)
        for row, why, by, (shard, key) in zip(rows, words, of, names, strict=True):
            why = f"{stage}: {why} {shard}/{key}" if by >= 0 else f"{stage}: {why}"
            flags[row] = f"{flags[row]}; {why}" if flags[row] else why
    return pa.array(flags, pa.string())


def texts(names: Any) -> pa.Array:
    """Names as text; only those that need it pass through the slow way."""
    names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    if names.type == pa.string():
        return names
    odd = np.array([name is not None and not (name.isascii() and b"\x7f" not in name and min(name, default=32) >= 32)
                    for name in names.to_pylist()], bool)  # fmt: skip
    if not odd.any():
        return names.cast(pa.string())
    plain = pc.if_else(pa.array(odd), pa.scalar(b"", pa.binary()), names).cast(pa.string())
    replaced = pa.array([shown(name) for name in names.filter(pa.array(odd)).to_pylist()], pa.string())
    return pc.replace_with_mask(plain, pa.array(odd), replaced)


def with_output(ledger: pa.Table, places: Mapping[str, Array]) -> pa.Table:
    """The ledger with the places that writers gave to its rows: (N,) text or None for each column of OUTPUT."""
    first = next((n for n, name in enumerate(ledger.column_names) if name.startswith(CARRIED)), ledger.num_columns)
    for n, name in enumerate(OUTPUT.names, first):
        ledger = ledger.add_column(n, name, pa.array(places[name], pa.string()))
    return ledger
