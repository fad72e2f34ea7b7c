"""What Curator's pairs and cells are measured against: published rules written plainly, faiss, scikit-learn.

All take (N, D) float32 rows of unit length in memory and as many threads as Curator's workers have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from curator.stage import Array, Mask

QUERIES, BATCH = 1024, 1024


def settle(threads: int) -> None:
    """Threads of all libraries; NumPy's follow from the environment."""
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Cells:
    """Centroids (K, D), the cell of each row (N,) and its cosine to the centroid (N,)."""

    centroids: Array
    cell: Array
    cosine: Array

    @property
    def pairs(self) -> int:
        """Pairs that share a cell."""
        sizes = np.bincount(self.cell)
        return int((sizes * (sizes - 1) // 2).sum())

    def rows(self) -> Iterator[Array]:
        """The rows of each cell in ascending order."""
        order = np.argsort(self.cell, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(self.cell[order])) + 1)


def assigned(rows: Array, centroids: Array) -> Cells:
    """Each row to the centroid of largest cosine."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(centroids)
    cosine, cell = index.search(rows, 1)
    return Cells(centroids, cell[:, 0], cosine[:, 0])


def faiss_centroids(rows: Array, k: int, iterations: int, sampled: bool) -> Array:
    """Spherical k-means of all rows, or as faiss does it by default: of 256 rows a centroid."""
    most = 256 if sampled else len(rows)
    means = faiss.Kmeans(
        rows.shape[1], k, niter=iterations, spherical=True, seed=1, max_points_per_centroid=most,
        min_points_per_centroid=1,
    )  # fmt: skip
    means.train(rows)
    centroids: Array = means.centroids
    return centroids


def minibatch_centroids(rows: Array, k: int, passes: int) -> Array:
    """scikit-learn's; passes over all rows, none of them left out for lack of progress."""
    batch = min(4096, len(rows) // 4)  # scikit-learn 1.9 fails where all that it does is one batch
    means = MiniBatchKMeans(
        k, init="random", n_init=1, max_iter=passes, batch_size=batch, max_no_improvement=None, random_state=1,
        compute_labels=False,
    )  # fmt: skip
    centroids = means.fit(rows).cluster_centers_
    unit: Array = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float32)
    return unit


def semdedup(rows: Array, cells: Cells, floor: float) -> Mask:
    """SemDeDup's rule (Abbas et al., 2023): (N,) True for rows that it drops.

    In each cell the whole matrix of cosines; above the diagonal, a column whose largest entry exceeds 1 - eps is
    dropped for a row that stands before it. `floor` is 1 - eps.
    """
    dropped = np.zeros(len(rows), bool)
    for members in cells.rows():
        own = torch.from_numpy(rows[members])
        largest = torch.triu(own @ own.T, diagonal=1).max(dim=0).values
        dropped[members] = (largest > floor).numpy()
    return dropped


def nemo(rows: Array, cells: Cells, floor: float) -> Mask:
    """NeMo Curator's loop in a cell: (N,) True for rows that it drops.

    Rows by distance to the centroid, the farthest first ("hard"); all of them times a batch of columns, above the
    diagonal; the largest entry of each column and where it stands; at least 1 - eps is dropped.
    """
    dropped = np.zeros(len(rows), bool)
    for members in cells.rows():
        ordered = members[np.argsort(cells.cosine[members], kind="stable")]
        own = torch.from_numpy(rows[ordered])
        for start in range(0, len(own), BATCH):
            cosines = own @ own[start : start + BATCH].T
            largest, _ = torch.triu(cosines, diagonal=1 - start).max(dim=0)
            dropped[ordered[start : start + BATCH]] = (largest >= floor).numpy()
    return dropped


def faiss_pairs(rows: Array, queries: Array, floor: float) -> tuple[Array, Array]:
    """Pairs (of row numbers) that a range search finds for the queries (row numbers), itself left out."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    a, b = [], []
    for start in range(0, len(queries), QUERIES):
        some = queries[start : start + QUERIES]
        limits, _, near = index.range_search(rows[some], floor)
        of = np.repeat(some, np.diff(limits.astype(np.int64)))
        other = near != of
        a.append(of[other]), b.append(near[other])
    return np.concatenate(a), np.concatenate(b)


def faiss_halves(rows: Array, floor: float, part: int = 8192) -> tuple[Array, Array]:
    """The same for all rows with each pair compared once (nearly): an index of some rows is asked by later ones."""
    a, b = [], []
    for start in range(0, len(rows), part):
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows[start : start + part])
        for query in range(start, len(rows), QUERIES):
            limits, _, near = index.range_search(rows[query : query + QUERIES], floor)
            of = np.repeat(np.arange(query, min(query + QUERIES, len(rows))), np.diff(limits.astype(np.int64)))
            earlier = near + start < of
            a.append(of[earlier]), b.append(near[earlier] + start)
    return np.concatenate(a), np.concatenate(b)
