"""k-means and the sorting of rows on a GPU, by RAPIDS: cuML, cuDF, and CuPy below them. Imported only where one is."""

from __future__ import annotations

import cudf
import cupy
import numpy as np
from cuml.cluster import KMeans

from curator.stage import Array

ROUNDS = 20
BLOCK_BYTES = 1 << 30  # of products of rows with centroids at once


class CudaCompute:
    """cuML's k-means; rows go to the GPU once for each call."""

    def fit(self, sample_ND: Array, k: int, seed: int) -> Array:
        """(K, D) float32 centroids of a sample, by scalable k-means++."""
        rows = cupy.asarray(np.asarray(sample_ND, np.float32))
        means = KMeans(
            n_clusters=min(k, len(rows)), init="scalable-k-means++", max_iter=ROUNDS, random_state=seed,
            output_type="cupy",
        )  # fmt: skip
        means.fit(rows)
        return np.asarray(cupy.asnumpy(means.cluster_centers_), np.float32)

    def assign(self, rows_ND: Array, centroids_KD: Array) -> Array:
        """(N,) int32 nearest centroids, by products of blocks."""
        centroids = cupy.asarray(np.asarray(centroids_KD, np.float32))
        half = (centroids * centroids).sum(axis=1) / 2
        at_once = max(1, BLOCK_BYTES // (4 * len(centroids)))
        homes = [np.zeros(0, np.int32)]
        for at in range(0, len(rows_ND), at_once):
            rows = cupy.asarray(np.asarray(rows_ND[at : at + at_once], np.float32))
            homes.append(cupy.asnumpy((rows @ centroids.T - half).argmax(axis=1)).astype(np.int32))
        return np.concatenate(homes)

    def order(self, cell_N: Array, new_N: Array) -> Array:
        """(N,) int64 rows by cell, known ones first, then as they came."""
        table = cudf.DataFrame(
            {"cell": cupy.asarray(cell_N), "new": cupy.asarray(new_N), "row": cupy.arange(len(cell_N))}
        )
        rows = table.sort_values(["cell", "new", "row"])["row"]
        return np.asarray(cupy.asnumpy(rows.values), np.int64)
