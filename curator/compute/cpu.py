"""k-means on the processor, in torch: bfloat16 products where it is good at them, sums in float32."""

from __future__ import annotations

import numpy as np
import torch

from curator.machine import good_at_bf16
from curator.stage import Array

ROUNDS = 10
BLOCK = 8192
RUN = 64


class CpuCompute:
    """Lloyd's algorithm from a random start."""

    def fit(self, sample_ND: Array, k: int, seed: int) -> Array:
        """(K, D) float32 centroids; those that lose all their rows begin anew at the rows farthest from theirs."""
        with torch.inference_mode():
            rows = torch.from_numpy(np.array(sample_ND)).to(_narrow())
            count = len(rows)
            k = min(k, count)
            start = torch.from_numpy(np.random.default_rng(seed).permutation(count)[:k].copy())
            centroids = rows[start].float()
            for _ in range(ROUNDS):
                home, distance = _nearest(rows, centroids)
                sums = torch.zeros_like(centroids)
                for at in range(0, count, BLOCK):
                    sums.index_add_(0, home[at : at + BLOCK], rows[at : at + BLOCK].float())
                sizes = torch.bincount(home, minlength=k)
                centroids = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)
                empty = (sizes == 0).nonzero()[:, 0]
                if len(empty):
                    far = distance.topk(len(empty)).indices
                    centroids[empty] = rows[far].float()
            return centroids.numpy()

    def assign(self, rows_ND: Array, centroids_KD: Array) -> Array:
        """(N,) int32 nearest centroids."""
        with torch.inference_mode():
            rows = torch.from_numpy(np.array(rows_ND)).to(_narrow())
            home, _ = _nearest(rows, torch.from_numpy(np.array(centroids_KD)))
            return home.to(torch.int32).numpy()

    def order(self, cell_N: Array, new_N: Array) -> Array:
        """(N,) int64 rows by cell, known ones first, then as they came."""
        return np.lexsort((np.arange(len(cell_N)), new_N, cell_N))


def _nearest(rows: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) the nearest centroid of each row, and (N,) its squared distance less the row's own square."""
    half = (centroids * centroids).sum(1) / 2
    # |c|^2 / 2 rides along as three more columns, so that one product gives what is to be largest
    parts = _split(half, rows.dtype)
    spare = -len(centroids) % RUN
    columns = torch.cat([centroids.to(rows.dtype), *(-p[:, None] for p in parts)], dim=1)
    never = torch.zeros(spare, columns.shape[1], dtype=rows.dtype)
    never[:, -1] = -1e30
    columns = torch.cat([columns, never]).T.contiguous()
    wide = torch.ones(min(BLOCK, len(rows)), rows.shape[1] + len(parts), dtype=rows.dtype)
    room = torch.empty(len(wide), columns.shape[1], dtype=rows.dtype)
    home, value = torch.empty(len(rows), dtype=torch.int64), torch.empty(len(rows))
    for at in range(0, len(rows), BLOCK):
        block = rows[at : at + BLOCK]
        wide[: len(block), : rows.shape[1]] = block
        product = torch.mm(wide[: len(block)], columns, out=room[: len(block)])
        home[at : at + BLOCK], value[at : at + BLOCK] = _largest(product)
    return home, -2 * value


def _largest(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) where each row is largest, and how large. The largest of runs first: looking for a place is slow."""
    runs = product.view(len(product), -1, RUN)
    run = runs.amax(2).argmax(1)
    inside = runs[torch.arange(len(product)), run].max(1)
    return run * RUN + inside.indices, inside.values.float()


def _split(values: torch.Tensor, kind: torch.dtype) -> list[torch.Tensor]:
    """Numbers as sums of three narrower ones."""
    parts, rest = [], values.double()
    for _ in range(3 if kind != torch.float32 else 1):
        parts.append(rest.to(kind))
        rest = rest - parts[-1].double()
    return parts


def _narrow() -> torch.dtype:
    return torch.bfloat16 if good_at_bf16("cpu") else torch.float32
