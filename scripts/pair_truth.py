"""What a method found, and whether it is right: by what was planted, and by all cosines in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from vectors import Collection
from watch import Watch

from curator.stage import Array, Mask

ALL, SAMPLED, BLOCK_ROWS = 100_000, 4096, 512  # up to so many rows all with all; else so many of them; at once


@dataclass
class Result:
    """What one method took, and what it found: pairs of rows, or rows that it drops."""

    label: str
    watch: Watch
    compared: int
    a: Array | None = None
    b: Array | None = None
    dropped: Mask | None = None
    asked: Array | None = None  # (Q,) sorted rows, where not all were asked for
    steps: dict[str, tuple[int, float]] = field(default_factory=dict)
    similarity: Array | None = None


@dataclass(frozen=True)
class Truth:
    """Planted pairs whose stored cosine reaches the floor."""

    made: Collection
    floor: float
    keys: Array  # sorted

    @classmethod
    def of(cls, made: Collection, floor: float) -> Truth:
        """Looked up after ours has run: it maps the vectors into this process."""
        near = made.cosines(made.copy, made.source) >= floor
        return cls(made, floor, np.sort(key_of(made.copy[near], made.source[near], made.count)))

    def score(self, result: Result, known: Array) -> tuple[float, float]:
        """Recall of planted pairs; the share of what was found that is right by the cosine in float64.

        A rule that only drops rows is given a planted pair where it drops either row of it; a row is dropped rightly
        if it stands in a pair at or above the floor (`known`: rows in planted pairs, or in any that were found).
        """
        first, second = self.keys // self.made.count, self.keys % self.made.count
        if result.dropped is not None:
            found = result.dropped[first] | result.dropped[second]
            return float(found.mean()), float(known[result.dropped].mean()) if result.dropped.any() else 1.0
        assert result.a is not None
        assert result.b is not None
        hit = np.isin(self.keys, key_of(result.a, result.b, self.made.count))
        if result.asked is not None:
            hit = hit[np.isin(first, result.asked) | np.isin(second, result.asked)]
        right = self.made.cosines(result.a, result.b) >= self.floor
        return float(hit.mean()), float(right.mean()) if len(right) else 1.0

    def known(self, results: Sequence[Result]) -> Array:
        """(N,) True for rows in a pair at or above the floor, as far as anybody found them."""
        known = np.zeros(self.made.count, bool)
        known[np.concatenate([self.keys // self.made.count, self.keys % self.made.count])] = True
        for result in results:
            if result.a is not None and result.b is not None:
                near = self.made.cosines(result.a, result.b) >= self.floor
                known[result.a[near]] = known[result.b[near]] = True
        return known


def key_of(a: Array, b: Array, count: int) -> Array:
    """One number for a pair of rows, whichever comes first."""
    key: Array = np.minimum(a, b).astype(np.int64) * count + np.maximum(a, b)
    return key


def pairs_of(count: int) -> int:
    """All pairs among so many rows."""
    return count * (count - 1) // 2


def brute(made: Collection, floor: float, found: Result, sample: int) -> list[str]:
    """Ours against the cosine in float64, of all pairs or of a sample of rows with all."""
    assert found.a is not None
    assert found.b is not None
    assert found.similarity is not None
    count = sample or (made.count if made.count <= ALL else SAMPLED)
    whole = count >= made.count
    asked = np.sort(np.random.default_rng(1).choice(made.count, min(count, made.count), replace=False))
    with Watch() as watch:
        a, b = float64_pairs(made, asked, floor, whole)
    true = np.unique(key_of(a, b, made.count))
    keys = key_of(found.a, found.b, made.count)
    at = np.isin(found.a, asked) | np.isin(found.b, asked)
    keys, similarity = keys[at], found.similarity[at]
    both, _, place = np.intersect1d(true, keys, return_indices=True)
    exact = made.cosines(both // made.count, both % made.count)
    apart = np.abs(exact - similarity[place]).max() if len(both) else 0.0
    missed, wrong = len(true) - len(both), len(np.setdiff1d(keys, true))
    what = "all pairs" if whole else f"{len(asked):,} sampled rows with all"
    return [
        f"| {what} in float64, floor {floor:g} | pairs | missed by ours | wrong in ours | similarity off by "
        "| seconds, brute |",
        "|---|---|---|---|---|---|",
        f"| {made.count:,} rows | {len(true):,} | {missed} | {wrong} | {apart:.1g} | {watch.seconds:.0f} |",
    ]


def float64_pairs(made: Collection, asked: Array, floor: float, whole: bool) -> tuple[Array, Array]:
    """Pairs at or above the floor of the asked rows with all (where all are asked, with later ones), in float64."""
    stored = np.concatenate([made.take(np.arange(s, min(s + 8192, made.count))) for s in range(0, made.count, 8192)])
    lengths = np.empty(made.count)
    hits: tuple[list[Array], list[Array]] = ([], [])
    step = 65_536
    for start in range(0, made.count, step):
        lengths[start : start + step] = (stored[start : start + step].astype(np.float64) ** 2).sum(axis=1)
    for start in range(0, made.count, step):
        right = stored[start : start + step].astype(np.float64)
        for first in range(0, len(asked), BLOCK_ROWS):
            left = asked[first : first + BLOCK_ROWS]
            if whole and left[0] >= start + step:
                break
            # sums of products of float16 numbers are exact here, and so this is the cosine, rounded thrice
            dot = stored[left].astype(np.float64) @ right.T
            i, j = np.nonzero(dot >= floor - 0.05)  # stored lengths are off 1 by far less
            cosine = dot[i, j] / np.sqrt(lengths[left[i]] * lengths[start + j])
            near = (cosine >= floor) & ((left[i] < start + j) if whole else (left[i] != start + j))
            hits[0].append(left[i[near]]), hits[1].append(start + j[near])
    return np.concatenate(hits[0]), np.concatenate(hits[1])
