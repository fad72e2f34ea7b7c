"""Who is kept for whom: in order of rank, a row stays unless it is a duplicate of a row that stays already.

So every dropped row has a kept one at or above the threshold, and no two kept rows are duplicates. (The published
SemDeDup rule follows chains: it drops a row for resembling one that is itself dropped.) Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curator.pairs.crowd import Crowd
from curator.stage import Array

ROUNDS = 30
"""Enough for all but chains; each costs a pass over the open pairs."""

WALK = 2048  # rows in order of rank that are decided at once where there is a crowd


@dataclass(frozen=True)
class Pairs:
    """P pairs of rows at or above the threshold, by rank: `better` (P,), `worse` (P,), `similarity` (P,)."""

    better: Array
    worse: Array
    similarity: Array

    @classmethod
    def of(cls, a_P: Array, b_P: Array, sim_P: Array, rank_N: Array) -> Pairs:
        """Pairs in any direction; `rank_N` (N,) is a permutation, 0 the best."""
        first = rank_N[a_P] < rank_N[b_P]
        return cls(np.where(first, a_P, b_P), np.where(first, b_P, a_P), sim_P)


def keep_representatives(count: int, pairs: Pairs, rank_N: Array, crowd: Crowd | None = None) -> tuple[Array, Array]:
    """Greedy representatives among `count` rows; `crowd` holds rows whose pairs among themselves are not in `pairs`.

    Gives dropped_by (N,) int64: the most similar kept row of those it is a duplicate of (ties by rank), -1 where a
    row stays; and that similarity (N,) float64, NaN where it stays.
    """
    kept = _kept(count, pairs.better, pairs.worse, rank_N) if crowd is None else _walked(count, pairs, rank_N, crowd)
    return named(count, pairs, rank_N, kept, crowd)


def named(count: int, pairs: Pairs, rank_N: Array, kept: Array, crowd: Crowd | None) -> tuple[Array, Array]:
    """For every row that is not kept, the kept row that it resembles most; -1 and NaN where there is none."""
    dropped_by = np.full(count, -1, np.int64)
    similarity = np.full(count, np.nan)
    # a kept row may also rank behind one that is dropped for another; only kept ones in front of it drop a row,
    # but the one it is named after may be any kept row at or above the threshold
    better_stays = kept[pairs.better]
    counts = np.flatnonzero(better_stays != kept[pairs.worse])
    of = np.where(better_stays, pairs.worse, pairs.better)[counts]
    by = np.where(better_stays, pairs.better, pairs.worse)[counts]
    sim = pairs.similarity[counts]
    if crowd is not None:
        of, by, sim = (np.concatenate(c) for c in zip((of, by, sim), crowd.nearest(kept, rank_N), strict=True))
    if (sim[1:] > sim[:-1]).any():
        order = np.argsort(-sim, kind="stable")
        of, by, sim = of[order], by[order], sim[order]
    # the last value assigned to a place stays: backwards, that is the most similar one
    dropped_by[of[::-1]], similarity[of[::-1]] = by[::-1], sim[::-1]
    ties = np.flatnonzero((sim == similarity[of]) & (by != dropped_by[of]))
    better = ties[rank_N[by[ties]] < rank_N[dropped_by[of[ties]]]]
    better = better[np.argsort(-rank_N[by[better]], kind="stable")]  # the best comes last, and stays
    dropped_by[of[better]] = by[better]
    return dropped_by, similarity


def _kept(count: int, better_P: Array, worse_P: Array, rank_N: Array) -> Array:
    """(N,) True for rows that stay. Rounds over all open pairs at once; what long chains leave is walked in order."""
    if not len(better_P):
        return np.ones(count, bool)
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


def _walked(count: int, pairs: Pairs, rank_N: Array, crowd: Crowd) -> Array:
    """(N,) True for rows that stay, some thousand at once in order of rank; a crowd's pairs are made as needed."""
    dropped = np.zeros(count, bool)
    in_order = np.empty(count, np.int64)
    in_order[rank_N] = np.arange(count)
    by_worse = np.argsort(rank_N[pairs.worse], kind="stable")
    better, worse = pairs.better[by_worse], pairs.worse[by_worse]
    edges = np.searchsorted(rank_N[worse], np.arange(0, count + WALK, WALK))
    stays = np.zeros(0, np.int64)  # of the crowd, by its own numbers
    for block, first in enumerate(range(0, count, WALK)):
        mine = slice(edges[block], edges[block + 1])
        earlier = rank_N[better[mine]] < first
        dropped[worse[mine][earlier & ~dropped[better[mine]]]] = True
        crowded = crowd.among(in_order[first : first + WALK])
        crowded = crowded[~dropped[crowd.rows[crowded]]]
        crowded = crowded[~crowd.any_near(crowded, stays, dropped)]
        a, b = crowd.pairs(crowded)
        inside = Pairs.of(a, b, np.ones(len(a)), rank_N)
        open_better = np.concatenate([better[mine][~earlier], inside.better])
        open_worse = np.concatenate([worse[mine][~earlier], inside.worse])
        alive = ~dropped[open_better] & ~dropped[open_worse]
        dropped |= ~_kept(count, open_better[alive], open_worse[alive], rank_N)
        stays = np.concatenate([stays, crowded[~dropped[crowd.rows[crowded]]]])
    return ~dropped
