"""What of a choice depends neither on the threshold nor on who is alive, so that one more setting costs little.

Ranks, whose vector is whose, and the near pairs by falling cosine: a threshold is then a place in a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator.pairs.found import CELL, NEAR, SAME, Found, place
from curator.pairs.ranking import CENTROID, ranked_by, ranks
from curator.stage import Array, Columns, Mask

ROW = (1 << 32) - 1
_last: tuple[Any, Any] = (None, None)


@dataclass(frozen=True)
class Standing:
    """N rows with V distinct vectors among them, and P near pairs of vectors."""

    vectors: Array  # (V,) places of the distinct vectors, ascending
    vector: Array  # (N,) which of them a row has; V where it has none
    rank: Array  # (N,) a permutation, 0 the best
    cell: Array  # (N,) everybody's cell, -1 without a vector
    order: Array  # (N,) rows by vector, then by rank
    a: Array  # (P,) vectors of a pair, pairs by falling cosine
    b: Array
    similarity: Array  # (P,) float64, falling

    @classmethod
    def of(cls, rows: Columns, found: Found, keep: tuple[str, ...] | None, count: int) -> Standing:
        """That of some rows; the last one is kept, and given again for the same rows."""
        global _last
        key = (keep, count, *_fingerprints(rows, found.table, keep))
        if _last[0] != key:
            _last = (key, cls._made(rows, found, keep, count))
        standing: Standing = _last[1]
        return standing

    @classmethod
    def _made(cls, rows: Columns, found: Found, keep: tuple[str, ...] | None, count: int) -> Standing:
        places = _first_places(rows, found)
        cell, columns = _with_cells(rows, found, places)
        rank = ranks(columns, keep, count)
        has = rows["piece"] >= 0
        ordered = np.sort(places[has])  # np.unique hashes, at twenty times the cost
        vectors = ordered[np.diff(ordered, prepend=-1) != 0]
        vector = np.where(has, at(vectors, places)[0], len(vectors))
        distinct = len(vectors) == len(ordered)
        order = np.argsort(vector, kind="stable") if distinct else np.lexsort((rank, vector))
        near = found.of_kind(NEAR)
        (a, a_here), (b, b_here) = (at(vectors, place(near, side)) for side in "ab")
        similarity = near.column("similarity").to_numpy()
        here = np.flatnonzero(a_here & b_here)
        falling = here[np.argsort(-similarity[here])]
        return cls(vectors, vector, rank, cell, order, a[falling], b[falling], similarity[falling])

    def best(self, alive: Mask) -> tuple[Array, Array, Array]:
        """(V,) the best-ranked living row of each vector, -1 where none lives; other living rows, and their best."""
        living = self.order[alive[self.order] & (self.vector[self.order] < len(self.vectors))]
        of = self.vector[living]
        first = np.ones(len(of), bool)
        first[1:] = of[1:] != of[:-1]
        best = np.full(len(self.vectors), -1, np.int64)
        best[of[first]] = living[first]
        return best, living[~first], best[of[~first]]

    def pairs(self, threshold: float, best: Array) -> tuple[Array, Array, Array]:
        """Pairs at or above the threshold whose vectors both live, as rows, by falling cosine."""
        end = len(self.similarity) - int(np.searchsorted(self.similarity[::-1], threshold))
        a, b = best[self.a[:end]], best[self.b[:end]]
        here = (a >= 0) & (b >= 0)
        return a[here], b[here], self.similarity[:end][here]


def at(places: Array, wanted: Array) -> tuple[Array, Mask]:
    """Where each wanted place (piece << 32 | row) stands among distinct ones, 0 where it does not, and whether it does.

    By a table with an entry for every row of every piece: a search among millions costs ten times as much.
    """
    piece, row = places >> 32, places & ROW
    lengths = np.zeros(max(int(piece.max(initial=-1)), 0) + 2, np.int64)
    np.maximum.at(lengths, piece + 1, row + 1)
    starts = np.cumsum(lengths)
    table = np.full(starts[-1] + 1, -1, np.int64)
    table[starts[piece] + row] = np.arange(len(places))
    its_piece, its_row = wanted >> 32, wanted & ROW
    known = (its_piece >= 0) & (its_piece < len(lengths) - 1)
    its_piece = np.where(known, its_piece, 0)
    known &= its_row < lengths[its_piece + 1]
    where = table[np.where(known, starts[its_piece] + its_row, len(table) - 1)]
    return np.maximum(where, 0), where >= 0


def _fingerprints(rows: Columns, table: pa.Table, keep: tuple[str, ...] | None) -> list[int]:
    """Hashes of all that a standing is made of: a few milliseconds for a million rows."""
    named = {name for policy in keep or () for name, _ in ranked_by(policy)}
    numbers = (c for name, c in sorted(rows.items()) if name in named or (c.dtype.kind in "iufb" and keep is None) or
               name in ("piece", "row", "outside"))  # fmt: skip
    stored = (buffer for column in table.columns for chunk in column.chunks for buffer in chunk.buffers() if buffer)
    return [*(hash(column.tobytes()) for column in numbers), *(hash(bytes(buffer)) for buffer in stored)]


def _first_places(rows: Columns, found: Found) -> Array:
    """(N,) the place of the first row with the same vector, for every row."""
    places: Array = rows["piece"].astype(np.int64) << 32 | rows["row"].astype(np.int64)
    same = found.of_kind(SAME)
    copy, first = place(same, "b"), place(same, "a")
    if not len(copy):
        return places
    where, here = at(copy, places)
    vector: Array = np.where(here, first[where], places)
    return vector


def _with_cells(rows: Columns, found: Found, places: Array) -> tuple[Array, Mapping[str, Any]]:
    """(N,) everybody's cell, -1 without a vector; and the columns to rank by, the cosine to its centroid among them."""
    cells = found.of_kind(CELL)
    where, here = at(place(cells, "a"), places)
    if not cells.num_rows:
        return np.full(len(places), -1), rows
    cell = np.where(here, cells.column("row_b").to_numpy()[where], -1)
    cosine = np.where(here, cells.column("similarity").to_numpy()[where], np.nan)
    return cell, {**rows, CENTROID: cosine}
