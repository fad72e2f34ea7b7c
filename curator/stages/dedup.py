"""dedup: of images whose vectors are nearly the same, one stays; every other names the one that stays for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from curator.pairs.crowd import Crowd
from curator.pairs.found import CROWDED, Found, place
from curator.pairs.ranking import BY_CELL, Policies, check_policies, columns_for
from curator.pairs.representatives import Pairs, keep_representatives, named
from curator.pairs.semdedup import cells_of, in_cell
from curator.pairs.standing import Standing, at
from curator.stage import (
    Array,
    Choice,
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


class SemanticDeduplicationStage(ProcessingStage):
    """Drop images whose cosine to a kept image is at least `similarity_threshold`. NeMo's `eps` is 1 - threshold."""

    called: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    elsewhere: ClassVar[dict[str, str]] = {
        "eps": "eps is 1 - similarity_threshold",
        "which_to_keep": "keep says who stays",
    }

    similarity_threshold: float = decides(0.95, gt=0, le=1)
    similarity_floor: float = measures(0.9, gt=0, le=1)
    keep: Policies = decides(None)
    rule: Literal["representatives", "semdedup"] = decides("representatives")
    recall: float = measures(1.0, gt=0.5, le=1)
    n_clusters: int | None = measures(None, ge=1)
    random_state: int = measures(0, ge=0)
    embedding: str | None = measures(None)
    against: str | tuple[str, ...] | None = speeds(None)  # what lies there is in the address, and not the path
    max_pairs_per_row: int = speeds(256, ge=1)
    block_rows: int = speeds(2048, ge=16, le=8192)

    @model_validator(mode="after")
    def _possible(self) -> SemanticDeduplicationStage:
        if self.similarity_threshold < self.similarity_floor:
            raise ValueError(
                f"similarity_threshold {self.similarity_threshold:g} lies below similarity_floor "
                f"{self.similarity_floor:g}, under which no pair is looked for; add "
                f"dedup.similarity_floor={self.similarity_threshold:g}"
            )
        check_policies(self.keep)
        return self

    def needed(self) -> tuple[Need, ...]:
        """An embedding, and the columns that an explicit `keep` ranks by."""
        return (Embedding(), *columns_for(self.keep))

    def find(self, vectors: Vectors, each: Each) -> pa.Table:
        """Every pair of distinct vectors at or above the floor, and what else choosing needs: see `pairs/found.py`."""
        from curator.pairs.search import Wanted, search  # brings torch along, which deciding never does

        wanted = Wanted(
            floor=self.similarity_floor, cells=self.n_clusters, seed=self.random_state, recall=self.recall,
            block_rows=self.block_rows, most_per_row=self.max_pairs_per_row,
        )  # fmt: skip
        return search(vectors, each, wanted).table()

    def choose(self, rows: Columns, found: pa.Table, alive: Mask) -> Choice:
        """Who is dropped for whom, among the rows that are alive.

        `rows` has the columns to rank by, and `piece` and `row`: where each row stands in what was found. Rows may
        stand in the same place: the same content, given twice.
        """
        view, count = Found(found), len(alive)
        standing = Standing.of(rows, view, self.keep, count)
        rank = standing.rank
        best, copies, best_of = standing.best(alive)
        pairs = Pairs.of(*standing.pairs(self.similarity_threshold, best), rank)
        crowd = self._crowd(view, standing.vectors, best)
        remarks = list(self._told(standing))
        unrepresented, resembles = np.zeros(count, bool), np.full(count, -1, np.int64)
        published = in_cell(count, pairs, standing.cell, rank, crowd) if self.rule == "semdedup" else None
        if published is not None:
            dropped_by, similarity = named(count, pairs, rank, ~published.dropped, crowd)
            unrepresented = published.dropped & (dropped_by < 0)
            resembles[unrepresented] = published.dropped_for[unrepresented]
            similarity[unrepresented] = published.similarity[unrepresented]
        else:
            dropped_by, similarity = keep_representatives(count, pairs, rank, crowd)
        stays = (dropped_by[best_of] < 0) & ~unrepresented[best_of]
        dropped_by[copies] = np.where(stays, best_of, dropped_by[best_of])
        similarity[copies] = np.where(stays, 1.0, similarity[best_of])  # rows of one vector have the same neighbours
        unrepresented[copies], resembles[copies] = unrepresented[best_of], resembles[best_of]
        if published is not None:
            remarks.append(published.told(int(unrepresented.sum())))
        walked = 0 if crowd is None else len(crowd.rows)
        return Choice(
            dropped_by, similarity, unrepresented=unrepresented, resembles=resembles, remarks=tuple(remarks),
            walked=walked,
        )  # fmt: skip

    def _told(self, standing: Standing) -> Iterator[str]:
        """From whose centroids `hard` and `easy` reckon."""
        policy = next((policy for policy in self.keep or () if policy in BY_CELL), None)
        cells = cells_of(standing.cell)
        if policy is not None and cells == 1:
            yield (
                f"{self.name}: keep={policy} ranks by the distance from the mean of all images, for there is one "
                f"k-means cell; {self.name}.n_clusters=N makes more"
            )
        elif policy is not None and cells:
            yield f"{self.name}: keep={policy} ranks by the distance from the centroids of {cells:,} k-means cells"

    def _crowd(self, found: Found, vectors: Array, best: Array) -> Crowd | None:
        """The rows whose pairs among themselves are not stored, those that live."""
        crowded = found.of_kind(CROWDED)
        if not crowded.num_rows or not len(vectors):
            return None
        where, here = at(vectors, place(crowded, "a"))
        here &= best[where] >= 0
        rows = best[where[here]]
        if not len(rows):
            return None
        order = np.argsort(rows)
        bytes_of = crowded.column("vector").take(pa.array(np.flatnonzero(here)[order])).to_pylist()
        given = np.frombuffer(b"".join(bytes_of), np.float16).reshape(len(rows), -1)
        return Crowd(rows[order], given, self.similarity_threshold)
