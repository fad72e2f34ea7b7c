"""The published in-cell rule, for comparison: of two near rows of a cell the worse goes, in any case.

It misses pairs across cells and follows chains: a row may go for one that goes itself. How much, is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curator.pairs.crowd import Crowd
from curator.pairs.representatives import Pairs
from curator.stage import Array


@dataclass(frozen=True)
class InCell:
    """What the rule does: `dropped` (N,), and how many of the near pairs lie in one cell."""

    dropped: Array
    pairs: int
    in_cell: int

    def told(self, unrepresented: int) -> str:
        """What came of it, in one line."""
        share = f"{self.in_cell / self.pairs:.3f}" if self.pairs else "1"
        return (
            f"rule=semdedup compares inside cells: it saw {self.in_cell:,} of {self.pairs:,} near pairs (recall "
            f"{share}), and dropped {unrepresented:,} images without a kept one at the threshold"
        )


def in_cell(count: int, pairs: Pairs, cell_N: Array, rank_N: Array, crowd: Crowd | None) -> InCell:
    """Apply the rule to near pairs of `count` rows; `cell_N` (N,) is everybody's cell."""
    same = cell_N[pairs.better] == cell_N[pairs.worse]
    dropped = np.zeros(count, bool)
    dropped[pairs.worse[same]] = True
    total, inside = len(same), int(same.sum())
    for some, others in crowd.blocks() if crowd is not None else ():
        a, b = crowd.pairs_between(some, others)  # type: ignore[union-attr]
        more = Pairs.of(a, b, np.ones(len(a)), rank_N)
        alike = cell_N[more.better] == cell_N[more.worse]
        dropped[more.worse[alike]] = True
        total, inside = total + len(alike), inside + int(alike.sum())
    return InCell(dropped, total, inside)
