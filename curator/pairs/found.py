"""What a search found, as one table in the store: the pairs, the copies, the crowded rows, and everybody's cell.

    kind      piece_a, row_a            piece_b, row_b             similarity             vector
    NEAR      the earlier row           the later row              their cosine           null
    SAME      the first of its kind     a copy of it               1                      null
    CROWDED   a row                     -1, -1                     NaN                    its float16 bytes
    CELL      a row                     -1, the number of its cell its cosine to the centroid

Sorted by kind, then by place. Pairs among crowded rows are not stored: whoever chooses walks them from their vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator.pairs.fold import Folded
from curator.stage import Array

NEAR, SAME, CROWDED, CELL = range(4)
PLACES = ("piece_a", "row_a", "piece_b", "row_b")


@dataclass(frozen=True)
class Searched:
    """The near pairs of N distinct rows, by their numbers."""

    folded: Folded
    a: Array  # (P,) int64
    b: Array  # (P,) int64, never the same as a; each pair once
    similarity: Array  # (P,) float64
    crowded: Array  # rows with too many near ones: the pairs among them are not stored
    crowded_ND: Array  # their vectors, float16
    cell: Array  # (N,) int32
    cosine: Array  # (N,) float32 to the centroid of its cell

    def table(self) -> pa.Table:
        """The table of what was found."""
        return _table(self)


def _table(searched: Searched) -> pa.Table:
    folded, count = searched.folded, len(searched.folded.piece)
    swap = searched.a > searched.b  # distinct rows are numbered by place
    a, b = np.where(swap, searched.b, searched.a), np.where(swap, searched.a, searched.b)
    order = np.lexsort((b, a))
    crowded = np.sort(searched.crowded)
    vectors = searched.crowded_ND[np.argsort(searched.crowded, kind="stable")]
    first = folded.copy_of
    nobody, none = np.full(len(crowded), -1), np.full(count, -1)
    parts = [
        (NEAR, folded.piece[a[order]], folded.row[a[order]], folded.piece[b[order]], folded.row[b[order]],
         searched.similarity[order]),
        (SAME, folded.piece[first], folded.row[first], folded.copy_piece, folded.copy_row, np.ones(len(first))),
        (CROWDED, folded.piece[crowded], folded.row[crowded], nobody, nobody, np.full(len(crowded), np.nan)),
        (CELL, folded.piece, folded.row, none, searched.cell, searched.cosine.astype(np.float64)),
    ]  # fmt: skip
    kinds = np.concatenate([np.full(len(part[1]), part[0], np.int8) for part in parts])
    columns = [np.concatenate([part[n] for part in parts]) for n in range(1, 6)]
    empty = [pa.nulls(n, pa.binary()) for n in (len(a) + len(first), count)]
    given = pa.array([vector.tobytes() for vector in vectors], pa.binary())
    return pa.table(
        {
            "kind": kinds,
            **{name: pa.array(column, pa.int32()) for name, column in zip(PLACES, columns[:4], strict=True)},
            "similarity": columns[4],
            "vector": pa.chunked_array([empty[0], given, empty[1]], pa.binary()).combine_chunks(),
        }
    )


NOTHING = pa.table(
    {
        "kind": pa.nulls(0, pa.int8()), **{name: pa.nulls(0, pa.int32()) for name in PLACES},
        "similarity": pa.nulls(0, pa.float64()), "vector": pa.nulls(0, pa.binary()),
    }
)  # fmt: skip
"""What a search of nothing found."""


@dataclass(frozen=True)
class Found:
    """The table, taken apart again."""

    table: pa.Table

    def of_kind(self, kind: int) -> pa.Table:
        """The rows of one kind, without a copy."""
        kinds = self.table.column("kind").to_numpy()
        begin, end = np.searchsorted(kinds, [kind, kind + 1])
        return self.table.slice(begin, end - begin)


def place(rows: pa.Table, side: str) -> Array:
    """(P,) int64 places of one side: piece << 32 | row."""
    piece, row = (rows.column(f"{part}_{side}").to_numpy().astype(np.int64) for part in ("piece", "row"))
    both: Array = piece << 32 | row
    return both
