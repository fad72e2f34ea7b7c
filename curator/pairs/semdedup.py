"""The published in-cell rule, for comparison: of two near rows of a cell the worse goes, in any case.

It misses pairs across cells and follows chains: a row may go for one that goes itself. How much, is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curator.pairs.crowd import Crowd
from curator.pairs.representatives import Pairs
from curator.stage import Array
from curator.units import counted


@dataclass(frozen=True)
class InCell:
    """What the rule does: `dropped` (N,), and how many of the near pairs lie in one of the `cells`.

    `dropped_for` (N,) int64 is the better row that each dropped one is most like, `similarity` (N,) how much; -1 and
    NaN where no pair of it is stored.
    """

    dropped: Array
    dropped_for: Array
    similarity: Array
    pairs: int
    in_cell: int
    cells: int

    def told(self, unrepresented: int) -> str:
        """What came of it, in one line."""
        share = f"{self.in_cell / self.pairs:.3f}" if self.pairs else "1"
        return (
            f"rule=semdedup compares inside cells ({self.cells:,} here): it saw {self.in_cell:,} of "
            f"{counted(self.pairs, 'near pair')} (recall {share}), and dropped {counted(unrepresented, 'image')} "
            "without a kept one at the threshold"
        )


def in_cell(count: int, pairs: Pairs, cell_N: Array, rank_N: Array, crowd: Crowd | None) -> InCell:
    """Apply the rule to near pairs of `count` rows; `cell_N` (N,) is everybody's cell."""
    same = cell_N[pairs.better] == cell_N[pairs.worse]
    dropped = np.zeros(count, bool)
    dropped[pairs.worse[same]] = True
    dropped_for, similarity = np.full(count, -1, np.int64), np.full(count, np.nan)
    rising = np.flatnonzero(same)[np.argsort(pairs.similarity[same], kind="stable")]  # what is assigned last stays
    dropped_for[pairs.worse[rising]] = pairs.better[rising]
    similarity[pairs.worse[rising]] = pairs.similarity[rising]
    total, inside = len(same), int(same.sum())
    for some, others in crowd.blocks() if crowd is not None else ():
        a, b = crowd.pairs_between(some, others)  # type: ignore[union-attr]
        more = Pairs.of(a, b, np.ones(len(a)), rank_N)
        alike = cell_N[more.better] == cell_N[more.worse]
        dropped[more.worse[alike]] = True
        total, inside = total + len(alike), inside + int(alike.sum())
    return InCell(dropped, dropped_for, similarity, total, inside, cells_of(cell_N))


def cells_of(cell_N: Array) -> int:
    """How many cells have rows; -1 is none."""
    return int(np.count_nonzero(np.bincount(cell_N[cell_N >= 0])))
