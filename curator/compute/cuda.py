"""k-means on GPUs, by RAPIDS: cuML on one GPU. Only imported where one is."""

from __future__ import annotations

import numpy as np

from curator.stage import Array


class CudaCompute:
    """cuML's k-means; vectors go to the GPU once per call."""

    def fit(self, sample_ND: Array, k: int, seed: int) -> Array:
        """(K, D) float32 centroids."""
        import cupy
        from cuml.cluster import KMeans

        rows = cupy.asarray(sample_ND).astype(cupy.float32)
        model = KMeans(
            n_clusters=min(k, len(rows)), init="k-means||", max_iter=20, random_state=seed, output_type="cupy"
        )
        model.fit(rows)
        return np.asarray(cupy.asnumpy(model.cluster_centers_), np.float32)

    def assign(self, rows_ND: Array, centroids_KD: Array) -> Array:
        """(N,) int32 nearest centroids, by one product on the GPU."""
        import cupy

        rows, centroids = cupy.asarray(rows_ND).astype(cupy.float32), cupy.asarray(centroids_KD)
        half = (centroids * centroids).sum(axis=1) / 2
        return np.asarray(cupy.asnumpy((rows @ centroids.T - half).argmax(axis=1)), np.int32)
