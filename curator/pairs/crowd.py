"""Rows with so many near ones that the pairs among them are not stored: they are walked from their vectors.

Products in float32 decide where they are clear of the threshold by more than they can be off; what is left is decided
by the exact cosine. NumPy alone: deciding knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curator.pairs.exact import cosines
from curator.stage import Array

AT_ONCE = 2048


@dataclass(frozen=True)
class Crowd:
    """C rows of a run, `rows` (C,) their numbers, ascending, and their vectors (C, D) float16."""

    rows: Array
    vectors_CD: Array
    threshold: float

    @property
    def margin(self) -> float:
        """What a float32 product may be off, twice (see `bounds.full_product`)."""
        return float(2 * (self.vectors_CD.shape[1] + 4) * 2.0**-24)

    def among(self, rows: Array) -> Array:
        """The crowd's own numbers of those of some rows that are in it."""
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        found: Array = at[self.rows[at] == rows]
        return found

    def any_near(self, some: Array, others: Array, dropped: Array) -> Array:
        """(n,) True where one of `some` is at or above the threshold to any of `others`; notes them as dropped."""
        near = np.zeros(len(some), bool)
        for at in range(0, len(others), AT_ONCE):
            left = np.flatnonzero(~near)
            if not len(left):
                break
            near[left] = self._near(some[left], others[at : at + AT_ONCE]).any(axis=1)
        dropped[self.rows[some[near]]] = True
        return near

    def pairs(self, some: Array) -> tuple[Array, Array]:
        """All pairs among some of the crowd that are at or above the threshold, as rows."""
        return self.pairs_between(some, some) if len(some) else (some, some)

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """All of it against all of it, in blocks: each pair of blocks once."""
        blocks = [np.arange(at, min(at + AT_ONCE, len(self.rows))) for at in range(0, len(self.rows), AT_ONCE)]
        yield from ((a, b) for n, a in enumerate(blocks) for b in blocks[n:])

    def pairs_between(self, some: Array, others: Array) -> tuple[Array, Array]:
        """All near pairs of rows between two blocks; each once where they are the same."""
        near = self._near(some, others)
        a, b = np.nonzero(np.triu(near, 1) if some[0] == others[0] else near)
        return self.rows[some[a]], self.rows[others[b]]

    def nearest(self, kept: Array, rank_N: Array) -> tuple[Array, Array, Array]:
        """For every row of the crowd that is not kept, the most similar kept one of it, where one is near enough.

        Gives rows, the kept row of each, and their similarity.
        """
        stays, goes = (np.flatnonzero(mask[self.rows]) for mask in (kept, ~kept))
        stays = stays[np.argsort(rank_N[self.rows[stays]], kind="stable")]
        of, by, sim = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
        for at in range(0, len(goes), AT_ONCE) if len(stays) else ():
            some = goes[at : at + AT_ONCE]
            products = self._unit(some) @ self._unit(stays).T
            close = products >= products.max(axis=1, keepdims=True) - 2 * self.margin
            i, j = np.nonzero(close)
            exact = cosines(self.vectors_CD, some[i], self.vectors_CD, stays[j])
            near = exact >= self.threshold
            of.append(self.rows[some[i[near]]])
            by.append(self.rows[stays[j[near]]])
            sim.append(exact[near])
        return np.concatenate(of), np.concatenate(by), np.concatenate(sim)

    def _near(self, some: Array, others: Array) -> Array:
        """(n, m) True where the exact cosine is at or above the threshold."""
        products = self._unit(some) @ self._unit(others).T
        near: Array = products >= self.threshold
        i, j = np.nonzero(np.abs(products - self.threshold) <= self.margin)
        near[i, j] = cosines(self.vectors_CD, some[i], self.vectors_CD, others[j]) >= self.threshold
        return near

    def _unit(self, some: Array) -> Array:
        wide = self.vectors_CD[some].astype(np.float32)
        unit: Array = wide / np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
        return unit
