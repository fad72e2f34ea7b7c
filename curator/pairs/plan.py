"""How a collection is searched: how many coordinates bound a pair, and whether cells are worth their making.

Either way every pair is found; a sample of the vectors says which is cheaper. Costs are in units of one multiplication
of a bfloat16 product, as measured on two processor cores and reckoned for a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator import here
from curator.compute import compute_for
from curator.desk import Desk
from curator.pairs.bounds import WIDTHS, as_tensor, directions_of, leads_of, least_product, settle
from curator.stage import Array

CELLS_FROM = 150_000  # rows from which cells are considered
PER_CENTROID = 32  # rows of the sample
SAMPLE = 65_536
PROBE = 2048
BOUNDS_FROM = 8192  # rows from which a narrow product is worth its directions
DIRECTIONS = 16_384  # rows of the sample that they are taken from
CHECK = 1_400_000  # units that one exact cosine costs
LOOK = {"cpu": 40, "cuda": 400}  # units that looking at one product costs: a GPU multiplies faster than it looks
LOOK_AGAIN = 12  # times that, where a row has any candidate in a block and all its products are looked at once more
BLOCK = 2048  # rows of a block
LOST_OF_ALL = 1.2  # the most that rounding takes of any row is more than that of a sample's
MARGINS = 3.5  # products of every row with every centroid: assignment, margins, visits and what lies between
SEEN_IN_SAMPLE = 1.5  # a sample's least margins are larger than those of all rows
CHEAPER_WAY = 0.45  # of two ways between cells only one is gone


@dataclass(frozen=True)
class Planning:
    """What the plan is made from."""

    desk: Desk
    count: int
    dims: int
    floor: float
    cells: int | None
    seed: int


def cells_for(count: int) -> int:
    """Cells where none are asked for: about 2 sqrt(N), a power of two."""
    return int(2 ** round(math.log2(2 * math.sqrt(count))))


def sample_size(count: int, cells: int | None) -> int:
    """Rows that the plan, the directions and the centroids are made from."""
    wanted = cells if cells is not None else cells_for(count) if count >= CELLS_FROM else 1
    return min(count, max(SAMPLE, PER_CENTROID * wanted))


def plan(job: Planning) -> None:
    """Lay down `rotation` (or none), `centroids`, and `plan` with the number of cells, the width and one line."""
    sample = job.desk.take_array("sample")
    settle(here.this_worker())
    device = here.this_worker().device.partition(":")[0]
    width, pair_cost = _width(sample, job, device)
    cells, centroids, told = _cells(sample, job, device, pair_cost)
    job.desk.put_array("centroids", centroids)
    line = told if width == job.dims else f"{told}, most of them by {width} of {job.dims:,} columns"
    job.desk.put("plan", pa.table({"cells": [cells], "width": [width]}), line=line)


def _width(sample: Array, job: Planning, device: str) -> tuple[int, float]:
    """The number of columns that costs least, and what a pair costs with it; lays down the rotation."""
    a, b = sample[:PROBE], sample[PROBE : 2 * PROBE] if len(sample) > PROBE else sample
    best: tuple[float, int, Array | None] = (float("inf"), job.dims, None)
    narrow = [w for w in WIDTHS if w < job.dims] if job.count >= BOUNDS_FROM else []
    # not from the rows of the probe: directions are too good for the rows that they come from
    directions = directions_of(sample[2 * PROBE :][:DIRECTIONS]) if narrow else np.zeros((0, 0))
    for width in (*narrow, job.dims):
        rotation = np.ascontiguousarray(directions[:, : width - 1]) if width < job.dims else None
        one, other = (leads_of(rows, rotation, device) for rows in (a, b))
        least = least_product(job.floor, LOST_OF_ALL * max(one.lost, other.lost), width)
        product = as_tensor(one.coordinates, device) @ as_tensor(other.coordinates, device).T
        rate = float((product >= least).float().mean()) if len(a) and len(b) else 0.0
        again = 1 - math.exp(-rate * BLOCK)  # of the rows, if candidates fall anywhere
        cost = width + LOOK[device] * (1 + LOOK_AGAIN * again) + rate * CHECK
        if cost < best[0]:
            best = (cost, width, rotation)
    if best[2] is not None:
        job.desk.put_array("rotation", best[2])
    return best[1], best[0]


def _cells(sample: Array, job: Planning, device: str, pair_cost: float) -> tuple[int, Array, str]:
    """How many cells, their centroids, and why."""
    wanted = job.cells if job.cells is not None else cells_for(job.count) if job.count >= CELLS_FROM else 1
    wanted = min(wanted, len(sample))
    asked = job.cells if job.cells is not None and job.cells > wanted else None
    few = f" (n_clusters={asked} is more than there are different images)" if asked else ""
    one = sample.astype(np.float32).mean(axis=0, keepdims=True)
    if wanted < 2:
        return 1, one, f"no k-means cells, every pair is compared{few}"
    centroids = compute_for(device).fit(sample, wanted, job.seed)
    # short centroids are those of rows that belong nowhere: cells of one kind side by side are looked at by the same
    centroids = centroids[np.argsort(np.linalg.norm(centroids, axis=1), kind="stable")]
    share = _share(sample, centroids, job.floor, compute_for(device))
    through = job.count**2 * share * CHEAPER_WAY * SEEN_IN_SAMPLE * pair_cost
    through += job.count * len(centroids) * MARGINS * (job.dims + LOOK[device])
    without = job.count**2 / 2 * pair_cost
    told = f"{share * CHEAPER_WAY:.1%} of all pairs"
    if job.cells is None and through > without:
        why = f"{len(centroids):,} would leave {told} to compare, which does not pay"
        return 1, one, f"no k-means cells ({why}), every pair is compared"
    return len(centroids), centroids, f"{len(centroids):,} k-means cells{few}, about {told} are compared"


def _share(sample: Array, centroids: Array, floor: float, compute: object) -> float:
    """The share of a sample's rows that a row of it must look at, through cells."""
    home = compute.assign(sample, centroids)  # type: ignore[attr-defined]
    reach = 2 * math.sin(math.acos(floor) / 2)
    order = np.argsort(home, kind="stable")
    starts = np.searchsorted(home[order], np.arange(len(centroids) + 1))
    least = np.full((len(centroids), len(centroids)), np.inf, np.float32)
    for cell in np.flatnonzero(np.diff(starts)):
        products = sample[order[starts[cell] : starts[cell + 1]]].astype(np.float32) @ centroids.T
        least[cell] = (products[:, cell : cell + 1] - products).min(axis=0)
    sizes = np.diff(starts) / len(sample)
    products = sample[:1024].astype(np.float32) @ centroids.T
    squares = np.einsum("kd,kd->k", centroids, centroids)
    seen = []
    for row, cell in enumerate(home[: len(products)]):
        apart = np.sqrt(np.maximum(squares + squares[cell] - 2 * (centroids @ centroids[cell]), 0))
        looks = products[row, cell] - products[row] <= reach * apart - least[:, cell]
        seen.append(sizes[looks].sum())
    return float(np.mean(seen))
