"""Who is kept for whom: in order of rank, a row stays unless it is a duplicate of a row that stays already.

So every dropped row has a kept one at or above the threshold, and no two kept rows are duplicates. (The published
SemDeDup rule follows chains: it drops a row for resembling one that is itself dropped.)
"""

from __future__ import annotations

import numpy as np

from curator.stage import Array

ROUNDS = 30
"""Enough for all but chains; each costs a pass over the open pairs."""


def keep_representatives(count: int, a_P: Array, b_P: Array, sim_P: Array, rank_N: Array) -> tuple[Array, Array]:
    """Greedy representatives among `count` rows.

    `a_P`, `b_P` (P,) are pairs of rows at or above the threshold, `sim_P` their similarity; `rank_N` (N,) is a
    permutation, 0 the best. Gives dropped_by (N,) int64: the most similar kept row of those it is a duplicate of
    (ties by rank), -1 where a row stays; and that similarity (N,) float64, NaN where it stays.
    """
    dropped_by = np.full(count, -1, np.int64)
    similarity = np.full(count, np.nan)
    if not len(a_P):
        return dropped_by, similarity
    better = np.where(rank_N[a_P] < rank_N[b_P], a_P, b_P)
    worse = np.where(better == a_P, b_P, a_P)
    kept = _kept(count, better, worse, rank_N)
    counts = kept[better] & ~kept[worse]
    # a kept row may also rank behind one that is dropped for another; only kept ones in front of it drop a row,
    # but the one it is named after may be any kept row at or above the threshold
    behind = kept[worse] & ~kept[better]
    of = np.concatenate([worse[counts], better[behind]])
    by = np.concatenate([better[counts], worse[behind]])
    sim = np.concatenate([sim_P[counts], sim_P[behind]])
    order = np.lexsort((rank_N[by], -sim, of))
    rows, first = np.unique(of[order], return_index=True)
    dropped_by[rows], similarity[rows] = by[order][first], sim[order][first]
    return dropped_by, similarity


def _kept(count: int, better_P: Array, worse_P: Array, rank_N: Array) -> Array:
    """(N,) True for rows that stay. Rounds over all open pairs at once; what long chains leave is walked in order."""
    kept, dropped, touched = (np.zeros(count, bool) for _ in range(3))
    touched[better_P], touched[worse_P] = True, True
    for _ in range(ROUNDS):
        waits = np.zeros(count, bool)
        waits[worse_P] = True
        kept |= touched & ~dropped & ~waits  # nothing better bears on it
        dropped[worse_P[kept[better_P]]] = True
        # a pair is done with when its worse row is dropped, or when its better row is and so bears on nothing
        open_pairs = ~dropped[worse_P] & ~dropped[better_P]
        better_P, worse_P = better_P[open_pairs], worse_P[open_pairs]
        if not len(better_P):
            break
    order = np.argsort(rank_N[better_P], kind="stable")
    for better, worse in zip(better_P[order].tolist(), worse_P[order].tolist(), strict=True):
        if not dropped[better]:  # all that is better than it has spoken
            dropped[worse] = True
    return ~dropped
