"""What both twins promise: `cpu` defines it, `cuda` does it with RAPIDS."""

from __future__ import annotations

from typing import Protocol

from curator.stage import Array


class Compute(Protocol):
    """K-means over unit rows. Whatever cells come out, the pair search built on them finds every pair."""

    def fit(self, sample_ND: Array, k: int, seed: int) -> Array:
        """(K, D) float32 centroids of (N, D) float16 or float32 rows, K = min(k, N)."""

    def assign(self, rows_ND: Array, centroids_KD: Array) -> Array:
        """(N,) int32: the nearest centroid of each row, by Euclidean distance; near ties may fall either way."""

    def order(self, cell_N: Array, new_N: Array) -> Array:
        """(N,) int64: the rows sorted by cell, in it those that are not new first, then as they came."""
