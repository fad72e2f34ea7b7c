"""dedup: of images whose vectors are nearly the same, one stays; every other names the one that stays for it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from curator.pairs.blocks import Near, folded, near_pairs
from curator.pairs.ranking import check_policy, ranked_by, ranks
from curator.pairs.representatives import keep_representatives
from curator.stage import (
    Array,
    Choice,
    Column,
    Columns,
    Each,
    Embedding,
    Mask,
    Need,
    ProcessingStage,
    Vectors,
    decides,
    measures,
    speeds,
)  # fmt: skip

PLACES = ("piece_a", "row_a", "piece_b", "row_b")


class SemanticDeduplicationStage(ProcessingStage):
    """Drop images whose cosine to a kept image is at least `similarity_threshold`. NeMo's `eps` is 1 - threshold."""

    called: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1

    similarity_threshold: float = decides(0.95, gt=0, le=1)
    similarity_floor: float = measures(0.9, gt=0, le=1)
    keep: tuple[str, ...] | None = decides(None)
    embedding: str | None = measures(None)
    block_rows: int = speeds(4096, ge=16)

    @model_validator(mode="after")
    def _possible(self) -> SemanticDeduplicationStage:
        if self.similarity_threshold < self.similarity_floor:
            raise ValueError(
                f"similarity_threshold {self.similarity_threshold:g} lies below similarity_floor "
                f"{self.similarity_floor:g}, under which no pair is looked for; add "
                f"dedup.similarity_floor={self.similarity_threshold:g}"
            )
        for policy in self.keep or ():
            check_policy(policy)
            if policy in ("hard", "easy"):
                raise ValueError(f"keep: {policy} ranks by distance to a k-means centroid, and there are no cells yet")
        return self

    def needed(self) -> tuple[Need, ...]:
        """An embedding, and the columns that an explicit `keep` ranks by."""
        columns = [column for policy in self.keep or () for column, _ in ranked_by(policy)]
        return (Embedding(), *(Column(name) for name in dict.fromkeys(columns)))

    def find(self, vectors: Vectors, each: Each) -> pa.Table:
        """Every pair of distinct vectors at or above the floor, and every copy of a vector (`same`), sorted."""
        distinct, first, copy = folded(vectors)
        near = near_pairs(vectors, distinct, self.similarity_floor, self.block_rows, each)
        ones = np.ones(len(copy.piece))
        parts = [*map(_ordered, near), (first.piece, first.row, copy.piece, copy.row, ones)]
        columns = [np.concatenate([part[n] for part in parts]) for n in range(5)]
        same = np.zeros(len(columns[0]), bool)
        same[len(same) - len(ones) :] = True
        order = np.lexsort(columns[3::-1])
        return pa.table(
            {
                **{name: pa.array(column[order], pa.int32()) for name, column in zip(PLACES, columns[:4], strict=True)},
                "similarity": pa.array(columns[4][order], pa.float64()),
                "same": pa.array(same[order]),
            }
        )

    def choose(self, rows: Columns, found: pa.Table, alive: Mask) -> Choice:
        """Who is dropped for whom, among the rows that are alive.

        `rows` has the columns to rank by, and `piece` and `row`: where each row stands in what was found. Rows may
        stand in the same place: the same content, given twice.
        """
        rank = ranks(rows, self.keep, len(alive))
        vectors, best, copies, best_of = _folded(rows, found, alive, rank)
        a, b, sim = self._pairs(found, vectors, best)
        dropped_by, similarity = keep_representatives(len(alive), a, b, sim, rank)
        stays = dropped_by[best_of] < 0  # rows of one vector have the same neighbours, and so the same fate
        dropped_by[copies] = np.where(stays, best_of, dropped_by[best_of])
        similarity[copies] = np.where(stays, 1.0, similarity[best_of])
        return Choice(dropped_by, similarity)

    def _pairs(self, found: pa.Table, vectors: Array, best: Array) -> tuple[Array, Array, Array]:
        """Pairs at or above the threshold whose vectors both live, as rows: the best-ranked of each vector."""
        similarity = found.column("similarity").to_numpy()
        near = ~found.column("same").to_numpy() & (similarity >= self.similarity_threshold)
        if not len(vectors) or not near.any():
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        places = [_place(found, side)[near] for side in "ab"]
        at = [np.minimum(np.searchsorted(vectors, place), len(vectors) - 1) for place in places]
        here = (vectors[at[0]] == places[0]) & (vectors[at[1]] == places[1])
        return best[at[0][here]], best[at[1][here]], similarity[near][here]


def _place(found: pa.Table, side: str) -> Array:
    """(P,) int64 that stands for piece and row of one side of the pairs."""
    piece, row = (found.column(f"{part}_{side}").to_numpy().astype(np.int64) for part in ("piece", "row"))
    place: Array = piece << 32 | row
    return place


def _folded(rows: Columns, found: pa.Table, alive: Mask, rank: Array) -> tuple[Array, Array, Array, Array]:
    """Living rows by vector: the vectors (V,) sorted, the best-ranked row of each; every other row, and its best."""
    living = np.flatnonzero(alive & (rows["piece"] >= 0))
    place = rows["piece"][living].astype(np.int64) << 32 | rows["row"][living].astype(np.int64)
    same = found.filter(found.column("same"))
    vector = _vector_of(place, _place(same, "a"), _place(same, "b"))
    order = np.lexsort((rank[living], vector))
    vectors, start, group = np.unique(vector[order], return_index=True, return_inverse=True)
    ordered = living[order]
    best = ordered[start]
    copy = ordered != best[group]
    return vectors, best, ordered[copy], best[group][copy]


def _vector_of(place: Array, first: Array, copy: Array) -> Array:
    """For each place, the place of the first row with the same vector."""
    if not len(copy):
        return place
    order = np.argsort(copy)
    at = np.minimum(np.searchsorted(copy, place, sorter=order), len(copy) - 1)
    is_copy = copy[order[at]] == place
    vector: Array = np.where(is_copy, first[order[at]], place)
    return vector


def _ordered(near: Near) -> tuple[Array, Array, Array, Array, Array]:
    """Pairs with the earlier row first."""
    swap = (near.piece_a > near.piece_b) | ((near.piece_a == near.piece_b) & (near.row_a > near.row_b))
    sides = [(near.piece_a, near.piece_b), (near.row_a, near.row_b)]
    (pa_, pb), (ra, rb) = ((np.where(swap, y, x), np.where(swap, x, y)) for x, y in sides)
    return pa_, ra, pb, rb, near.similarity
