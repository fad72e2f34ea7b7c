"""Rows of the ledger as an index takes them, an id, a vector and columns, and as it gives them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curator import address
from curator.indexes.base import Hits
from curator.ledger import DUPLICATE, FACTS, IDENTITY, OUTPUT, VERDICT
from curator.stage import Array, Source

_NOT_ASKED = {*VERDICT.names, *DUPLICATE.names, *OUTPUT.names, "frames", "bytes"}


def columns_of(rows: pa.Table, with_status: bool) -> pa.Table:
    """The columns that an index carries: place, facts, caption, all scores, `in_*`; `status` where not all are kept."""
    first = [*IDENTITY.names, *(name for name in FACTS.names if name not in _NOT_ASKED)]
    scores = [name for name in rows.column_names if name not in {*first, *_NOT_ASKED}]
    return rows.select([*(name for name in first if name in rows.column_names), *scores, *["status"] * with_status])


def ids_of(rows: pa.Table, namespace: str = "") -> list[str]:
    """An id for each row: a hash of shard and key, 64 hex digits.

    Where a shard has a key twice, of the row's place as well.
    """
    places = zip(*(rows.column(name).to_pylist() for name in ("shard", "key", "index", "notes")), strict=True)
    return [
        address.tagged("row", [namespace, shard, key, *([index] if "duplicate_key" in (notes or "").split() else [])])
        for shard, key, index, notes in places
    ]


def dim_of(rows: pa.Table, source: Source, stage: str) -> int:
    """How long the vectors of some rows are; 0 where there are no rows."""
    return next((emb_ND.shape[1] for emb_ND, _ in source.vectors(stage, rows.slice(0, 1))), 0)


def batches(rows: pa.Table, source: Source, stage: str, size: int) -> Iterator[tuple[Array, Array]]:
    """At most `size` rows at a time: their numbers (n,) and unit vectors (n, D) float32; none without a vector.

    Vectors are stored as float16: their length is made 1 again, so that an inner product is a cosine.
    """
    at = 0
    held: list[tuple[Array, Array]] = []
    count = 0
    for emb_ND, has in source.vectors(stage, rows):
        numbers = np.flatnonzero(has)
        held.append((numbers + at, unit(emb_ND[numbers])))
        at, count = at + len(has), count + len(numbers)
        while count >= size:
            whole = _joined(held)
            yield whole[0][:size], whole[1][:size]
            held, count = [(whole[0][size:], whole[1][size:])], count - size
    if count:
        yield _joined(held)


def _joined(held: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    filled = [one for one in held if len(one[0])]
    return np.concatenate([numbers for numbers, _ in filled]), np.concatenate([vectors for _, vectors in filled])


def unit(emb_ND: Array) -> Array:
    """(N, D) -> float32 rows of length 1."""
    rows = np.asarray(emb_ND, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    made: Array = rows / np.where(norms > 0, norms, 1)
    return made


def hits_of(found: Iterable[tuple[str, Sequence[float], Mapping[str, Any]]], vector: Array) -> Hits:
    """Ids, vectors and columns that a service gave, as rows, best first; the cosine is computed here."""
    rows, vectors = [], []
    for id_, values, columns in found:
        told = {n: v for n, v in columns.items() if n not in ("id", "vector") and not n.startswith("curator_")}
        rows.append({"id": id_, **told})
        vectors.append(values)
    emb_KD = unit(np.asarray(vectors, np.float32).reshape(-1, len(vector)))
    similarity = emb_KD @ vector
    order = np.argsort(-similarity, kind="stable")
    return Hits(table_of([rows[n] for n in order]), similarity[order], emb_KD[order])


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows that need not have the same columns, as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
