"""k-means and the sorting of rows on a GPU, by RAPIDS: cuML, cuDF, and CuPy below them. Imported only where one is."""

from __future__ import annotations

from typing import Any

import cudf
import cupy
import numpy as np
from cuml.cluster import KMeans

from curator.stage import Array

ROUNDS = 20
BLOCK_BYTES = 1 << 30  # of rows, and of their products with the centroids, at once


class CudaCompute:
    """cuML's k-means; rows go to the GPU once for each call."""

    def fit(self, sample_ND: Array, k: int, seed: int) -> Array:
        """(K, D) float32 centroids of a sample, by scalable k-means++; cuML's sums are not the same bits each time."""
        rows = _on_gpu(sample_ND)
        means = KMeans(
            n_clusters=min(k, len(rows)), init="scalable-k-means++", max_iter=ROUNDS, random_state=seed,
            output_type="cupy",
        )  # fmt: skip
        means.fit(rows)
        return np.asarray(cupy.asnumpy(means.cluster_centers_), np.float32)

    def assign(self, rows_ND: Array, centroids_KD: Array) -> Array:
        """(N,) int32 nearest centroids, by products of blocks."""
        centroids = _on_gpu(centroids_KD)
        half = (centroids * centroids).sum(axis=1) / 2
        row_bytes = 4 * len(centroids) + 6 * centroids.shape[1]  # products; the row as it is stored and in float32
        at_once = max(1, BLOCK_BYTES // row_bytes)
        homes = [np.zeros(0, np.int32)]
        for at in range(0, len(rows_ND), at_once):
            products = _on_gpu(rows_ND[at : at + at_once]) @ centroids.T
            products -= half
            homes.append(cupy.asnumpy(products.argmax(axis=1)).astype(np.int32))
        return np.concatenate(homes)

    def order(self, cell_N: Array, new_N: Array) -> Array:
        """(N,) int64 rows by cell, known ones first, then as they came."""
        table = cudf.DataFrame(
            {"cell": cupy.asarray(cell_N), "new": cupy.asarray(new_N), "row": cupy.arange(len(cell_N))}
        )
        rows = table.sort_values(["cell", "new", "row"])["row"]
        return np.asarray(cupy.asnumpy(rows.values), np.int64)


def _on_gpu(rows_ND: Array) -> Any:
    """(N, D) float32 there; float16 rows travel as they are, which is half the way."""
    return cupy.asarray(np.ascontiguousarray(rows_ND)).astype(np.float32, copy=False)
