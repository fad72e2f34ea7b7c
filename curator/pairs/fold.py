"""Rows with the same vector are one: a million copies of one image cost a million rows and no pairs.

Rows are told apart by a 128-bit hash of their bytes, piece by piece, so that no vector is held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator.desk import Desk
from curator.errors import ConfigError
from curator.stage import Array, Each, Vectors

PIECES_TOGETHER = 64
UNIT_TOLERANCE = 1e-2  # how far from 1 the length of a stored vector may be


@dataclass(frozen=True)
class Group:
    """Pieces that one task reads, as it carries them: `first` is the number of the first one in the collection."""

    vectors: Vectors  # of these pieces only
    first: int
    number: int
    desk: Desk


@dataclass(frozen=True)
class Folded:
    """The distinct rows of a collection in order of (piece, row), and the copies of each."""

    piece: Array  # (N,) int32
    row: Array  # (N,) int32
    order: Array  # (N,) uint64, as good as random and the same for the same vectors: samples are taken by it
    copy_piece: Array  # (C,) int32
    copy_row: Array
    copy_of: Array  # (C,) int64: which of the distinct rows each copy equals
    starts: Array  # (G + 1,) int64: where each group's rows begin among the distinct ones


def groups_of(vectors: Vectors, desk: Desk) -> list[Group]:
    """All pieces, in runs that one task takes."""
    places = list(vectors.addresses)
    return [
        Group(vectors.only(places[first : first + PIECES_TOGETHER]), first, number, desk)
        for number, first in enumerate(range(0, len(places), PIECES_TOGETHER))
    ]


def fold(groups: Sequence[Group], desk: Desk, each: Each) -> Folded:
    """Which rows are distinct. Raises ConfigError where rows are not of unit length."""
    todo = [group for group in groups if not desk.has(f"hashes-{group.number}")]
    desk.go(each, hash_rows, todo, "dedup: looking for equal vectors")
    tables = [desk.take(f"hashes-{group.number}") for group in groups]
    piece, row, high, low = (
        np.concatenate([t.column(name).to_numpy() for t in tables]) if tables else np.zeros(0, np.int64)
        for name in ("piece", "row", "high", "low")
    )
    by_hash = np.lexsort((low, high))  # stable: copies stay in order behind the first of them
    new = np.ones(len(by_hash), bool)
    new[1:] = (high[by_hash][1:] != high[by_hash][:-1]) | (low[by_hash][1:] != low[by_hash][:-1])
    first_of = np.empty(len(by_hash), np.int64)
    first_of[by_hash] = by_hash[new][np.cumsum(new) - 1]
    distinct = np.flatnonzero(first_of == np.arange(len(first_of)))
    copies = np.flatnonzero(first_of != np.arange(len(first_of)))
    edges = [group.first for group in groups] + [np.iinfo(np.int32).max]
    return Folded(
        piece[distinct].astype(np.int32), row[distinct].astype(np.int32), high[distinct].astype(np.uint64),
        piece[copies].astype(np.int32), row[copies].astype(np.int32), np.searchsorted(distinct, first_of[copies]),
        np.searchsorted(piece[distinct], edges),
    )  # fmt: skip


def hash_rows(group: Group) -> None:
    """Lay down the hash of every row that has a vector."""
    columns: dict[str, list[Array]] = {"piece": [], "row": [], "high": [], "low": []}
    for number, address in enumerate(group.vectors.addresses, group.first):
        emb_ND, has = group.vectors.read(address)
        rows = np.flatnonzero(has)
        _check_length(emb_ND, rows, address)
        hashes = [hashlib.blake2b(emb_ND[row].data, digest_size=16).digest() for row in rows.tolist()]
        halves = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)
        columns["piece"].append(np.full(len(rows), number, np.int32))
        columns["row"].append(rows.astype(np.int32))
        columns["high"].append(halves[:, 0])
        columns["low"].append(halves[:, 1])
    group.desk.put(f"hashes-{group.number}", pa.table({n: np.concatenate(c) for n, c in columns.items()}))


def _check_length(emb_ND: Array, rows: Array, address: str) -> None:
    wide = emb_ND[rows].astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    off = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)  # so that a NaN is off as well
    if off.any():
        wrong = int(off.argmax())
        raise ConfigError(
            f"dedup: vectors must have unit length; row {rows[wrong]} of {address[:12]} has {lengths[wrong]:.3f}. "
            "Divide each by its length before they are given to Curator."
        )
