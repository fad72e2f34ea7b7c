"""K-means cells as a guarantee: which rows of which cells can be near at all.

Two unit rows x, y with cosine >= floor lie within 2 s of each other, s = sin(theta / 2), theta = arccos(floor). With
x in cell i, y in cell j and d = c_j - c_i, (y - x).d <= 2 s |d|, which is

    (x.c_i - x.c_j) + (y.c_j - y.c_i) <= 2 s |c_i - c_j|

The second margin is at least m_ji, the least of all rows of cell j. So x need look at cell j only where

    x.c_i - x.c_j <= 2 s |c_i - c_j| - m_ji

and each pair of rows is found from either side: one of the two ways between two cells is enough, the cheaper one.
True for any centroids and any homes, cuML's included. (The plain border test, x.c_i - x.c_j <= s |c_i - c_j|, splits
the angle in half without knowing y: on realistic vectors it left 0.22 of all work where this leaves 0.09.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from curator import here
from curator.machine import good_at_bf16
from curator.pairs.bounds import settle, tensor
from curator.pairs.layout import Layout
from curator.stage import Array, Each

PRODUCT_ROUNDING = 2.0**-9  # half the last place of a bfloat16 product below 1; twice that below 2, and so on
CELLS_TOGETHER = 32
BLOCK = 4096


@dataclass(frozen=True)
class Cells:
    """K cells over a layout: cell k holds positions `start[k]` .. `start[k + 1]`. Its arrays lie on the desk."""

    layout: Layout
    count: int
    floor: float
    border: float = 1.0  # below 1 the guarantee is traded for time

    @cached_property
    def start(self) -> Array:
        """(K + 1,) int64 positions."""
        return self.layout.desk.take_array("starts")

    @cached_property
    def bits(self) -> Array:
        """(K + 1,) int64: where each cell's bytes begin in a row of the visits, a bit for each of its rows."""
        sizes = np.diff(self.start)
        return np.concatenate([[0], np.cumsum((sizes + 7) // 8)])

    def is_new(self, positions: Array) -> Array:
        """(P,) True where a position's row was not searched before: known ones come first in their cell."""
        cell = np.searchsorted(self.start, positions, "right") - 1
        new: Array = positions >= self.start[cell] + self.old[cell]
        return new

    @cached_property
    def old(self) -> Array:
        """(K,) int64: how many rows of each cell were searched before."""
        return self.layout.desk.take_array("old")

    def visits(self, writable: bool = False) -> Array:
        """(K, bytes) uint8: row k has a bit for every row of the layout that must look at cell k."""
        return self.layout.desk.array("visits", (self.count, int(self.bits[-1])), np.uint8, writable)

    def __getstate__(self) -> dict[str, object]:
        return {n: v for n, v in self.__dict__.items() if n not in ("start", "bits", "old")}


@dataclass(frozen=True)
class Some:
    """Cells first..last-1, for one task."""

    cells: Cells
    first: int
    last: int


def with_margins(cells: Cells, each: Each) -> None:
    """Lay down the least margin of each cell's rows towards every centroid: (K, K) float32."""
    desk, groups = cells.layout.desk, _groups(cells)
    todo = [g for g in groups if not desk.has(f"margins-{g.first}")]
    desk.go(each, measure_margins, todo, "dedup: measuring how far cells reach")
    if not desk.has("margins"):
        desk.put_array("margins", np.concatenate([desk.take_array(f"margins-{g.first}") for g in groups]))


def directed(cells: Cells, each: Each) -> tuple[Array, Array]:
    """(K, K) True where the rows of cell i look at cell j, and (K,) how many rows look at each."""
    desk, count, groups = cells.layout.desk, cells.count, _groups(cells)
    desk.make("visits", (count, int(cells.bits[-1])), np.uint8)
    todo = [g for g in groups if not desk.has(f"visits-{g.first}")]
    desk.go(each, mark_visits, todo, "dedup: finding cells that are to be compared")
    visits = np.concatenate([desk.take_array(f"visits-{g.first}") for g in groups])
    cost = visits.astype(np.float64) * np.diff(cells.start)[None, :]
    upper = np.triu(np.ones((count, count), bool), 1)
    way = (cost < cost.T) | ((cost == cost.T) & upper)
    np.fill_diagonal(way, False)
    desk.put_array("ways", way.astype(np.uint8))
    return way, np.where(way, visits, 0).sum(0)


def _groups(cells: Cells) -> list[Some]:
    return [Some(cells, f, min(f + CELLS_TOGETHER, cells.count)) for f in range(0, cells.count, CELLS_TOGETHER)]


def measure_margins(some: Some) -> None:
    """Lay down, for each of these cells, the least margin of its rows towards every centroid: (n, K) float32."""
    least = np.full((some.last - some.first, some.cells.count), np.inf, np.float32)
    for spans, margins in _margins(some):
        for cell, rows in spans:
            so_far = least[cell - some.first]
            np.minimum(so_far, margins[:, rows].amin(1).cpu().numpy(), out=so_far)
    some.cells.layout.desk.put_array(f"margins-{some.first}", least)


def mark_visits(some: Some) -> None:
    """Lay down which rows of these cells must look at which cells, and how many do."""
    import torch

    cells, desk = some.cells, some.cells.layout.desk
    centroids = np.array(desk.take_array("centroids"), np.float64)
    least = np.array(desk.take_array("margins")[:, some.first : some.last])
    reach = 2 * math.sin(math.acos(min(1.0, cells.floor)) / 2) * cells.border
    limits = torch.from_numpy((reach * _apart(centroids, some) - least.T).astype(np.float32))
    packed: dict[int, list[Array]] = {cell: [] for cell in range(some.first, some.last)}
    for spans, margins in _margins(some):
        for cell, rows in spans:
            looks = margins[:, rows] <= limits[cell - some.first].to(margins.device)[:, None]
            looks[cell] = False
            packed[cell].append(looks.cpu().numpy())
    columns = {cell: np.packbits(np.concatenate(parts, axis=1), axis=1) for cell, parts in packed.items() if parts}
    if columns:
        array = cells.visits(writable=True)
        together = np.concatenate(list(columns.values()), axis=1)
        array[:, cells.bits[some.first] : cells.bits[some.last]] = together
        array.flush()  # type: ignore[attr-defined]
    counts = np.zeros((some.last - some.first, cells.count), np.int32)
    for cell, marked in columns.items():
        counts[cell - some.first] = np.bitwise_count(marked).sum(axis=1)
    desk.put_array(f"visits-{some.first}", counts)


def _apart(centroids: Array, some: Some) -> Array:
    """(n, K) float64 distances of some centroids to all, never too small."""
    mine = centroids[some.first : some.last]
    squares = np.einsum("kd,kd->k", centroids, centroids)
    apart: Array = squares[some.first : some.last, None] + squares[None, :] - 2 * (mine @ centroids.T)
    return np.sqrt(np.maximum(apart, 0) + 1e-12) * (1 + 1e-6)


def _margins(some: Some) -> Iterator[tuple[list[tuple[int, slice]], Any]]:
    """Block by block of these cells' rows: which of its rows are of which cell, and (K, n) x.c_home - x.c_j.

    Products are of rows and centroids rounded to bfloat16; what rounding can have made of the margins is taken off.
    """
    import torch

    cells, device = some.cells, here.this_worker().device
    settle(here.this_worker())
    kind = torch.bfloat16 if good_at_bf16(device) else torch.float32
    exact = torch.from_numpy(np.array(cells.layout.desk.take_array("centroids")))
    centroids = exact.bfloat16()
    lost_centroid = float((exact.double() - centroids.double()).norm(dim=1).max())
    longest = float(exact.double().norm(dim=1).max())
    centroids = centroids.to(device, kind)
    lost = float(cells.layout.desk.take_array("rounding")[0])
    rounding = PRODUCT_ROUNDING * 2.0 ** max(0, math.ceil(math.log2(max(longest, 1e-30) * 1.01)))
    off = lost * longest + lost_centroid * (1 + lost) + rounding + 1e-4 * max(1.0, longest)
    rows_ND, end = cells.layout.rows(), int(cells.start[some.last])
    begin = int(cells.start[some.first])
    room = torch.empty(cells.count * min(BLOCK, max(1, end - begin)), dtype=kind, device=device)
    wide = torch.empty(len(room), device=device)
    with torch.inference_mode():
        for at in range(begin, end, BLOCK):
            last = min(at + BLOCK, end)
            shape = (cells.count, last - at)
            rows = tensor(rows_ND[at:last]).to(device).bfloat16().to(kind)
            product = torch.mm(centroids, rows.T, out=room[: shape[0] * shape[1]].view(shape))
            home = np.searchsorted(cells.start, np.arange(at, last), "right") - 1
            at_home = product.gather(0, torch.from_numpy(home).to(device)[None, :]).float() - 2 * off
            edges = [*np.flatnonzero(np.diff(home, prepend=-1)).tolist(), last - at]
            spans = [(int(home[f]), slice(f, e)) for f, e in pairwise(edges)]
            yield spans, torch.sub(at_home, product, out=wide[: shape[0] * shape[1]].view(shape))


def visitors(cells: Cells, way: Array, first: int, last: int) -> Array:
    """Positions, ascending, of all rows outside cells first..last-1 that must look at one of them."""
    sizes = np.diff(cells.bits)
    visits = cells.visits()
    marked = np.zeros(visits.shape[1], np.uint8)
    for cell in range(first, last):
        looks = np.where(way[:, cell], np.uint8(255), np.uint8(0))
        looks[first:last] = 0
        marked |= visits[cell] & np.repeat(looks, sizes)
    bit = np.flatnonzero(np.unpackbits(marked))
    home = np.searchsorted(cells.bits, bit // 8, "right") - 1
    return np.asarray(bit - 8 * cells.bits[home] + cells.start[home])
