"""Less than every pair, for time: a narrower border between cells, chosen and judged by a sample's true pairs.

Some new rows are compared with all others; half of the pairs found so say how narrow the border may be for the recall
that was asked for, the other half say what came of it. Pairs of rows that were searched before do not count: nobody
looks for them again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from curator import here
from curator.pairs.bounds import FullProducts, as_tensor, candidates, settle
from curator.pairs.cells import Cells
from curator.pairs.exact import cosines
from curator.stage import Array, Each
from curator.units import counted

ROWS = 4096  # of the sample, each compared with all rows
AT_ONCE = 8192


@dataclass(frozen=True)
class Truth:
    """Near pairs of a sample by position, (P,) each; the first `judges` of them are for the verdict."""

    a: Array
    b: Array
    judges: int

    def told(self, found_a: Array, found_b: Array, crowded: Array, count: int) -> str:
        """The share of the judges' pairs that was found, in one line; pairs of crowded rows are walked later."""
        if not self.judges:
            return "recall was not measured, for a sample has too few near pairs to be looked for; none was left out"
        a, b = self.a[: self.judges], self.b[: self.judges]
        found = np.minimum(found_a, found_b) * np.int64(count) + np.maximum(found_a, found_b)
        hit = np.isin(np.minimum(a, b) * np.int64(count) + np.maximum(a, b), found)
        hit |= np.isin(a, crowded) & np.isin(b, crowded)
        return f"recall {hit.mean():.4f}, measured on {counted(self.judges, 'near pair')} of a sample"


@dataclass(frozen=True)
class Asking:
    """Rows at the positions `who` are compared with all."""

    cells: Cells
    who: Array
    least: float


def narrowed(cells: Cells, wanted: float, least: float, seed: int, each: Each) -> tuple[Cells, Truth]:
    """Cells with the border that finds a share `wanted` of the sample's pairs."""
    desk, count = cells.layout.desk, cells.layout.count
    rng = np.random.default_rng(seed)
    who = np.sort(rng.permutation(np.flatnonzero(cells.is_new(np.arange(count))))[:ROWS])
    if not desk.has("truth"):
        desk.go(each, ask, [Asking(cells, who, least)], "dedup: comparing a sample with all", count)
    table = desk.take("truth")
    a, b = table.column("a").to_numpy(), table.column("b").to_numpy()
    order = rng.permutation(len(a))
    truth = Truth(a[order], b[order], len(a) // 2)
    needed = np.sort(_border_of(cells, truth.a[truth.judges :], truth.b[truth.judges :]))
    # so many pairs more than the share asked for that chance does not take it below
    spare = 2 * math.sqrt(wanted * (1 - wanted) / max(1, len(needed)))
    at = math.ceil((wanted + spare) * len(needed)) - 1
    border = float(needed[at]) if 0 <= at < len(needed) else 1.0
    return replace(cells, border=min(1.0, max(border, 1e-3))), truth


def ask(asking: Asking) -> None:
    """Lay down the near pairs of some rows with all."""
    import torch

    cells, device = asking.cells, here.this_worker().device
    settle(here.this_worker())
    rows, leads, who = cells.layout.rows(), cells.layout.leads(), asking.who
    parts = []
    with torch.inference_mode():
        theirs = as_tensor(leads[who], device)
        for at in range(0, cells.layout.count, AT_ONCE):
            some = np.arange(at, min(at + AT_ONCE, cells.layout.count))
            full = FullProducts(rows[who], 0, len(who), cells.floor, device).of_rows(rows, some)
            found = candidates(as_tensor(leads[some], device), theirs, asking.least, full, len(some))
            a, b = some[found.i], who[found.j]
            near = (cosines(rows, a, rows, b) >= cells.floor) & (a != b)
            parts.append((a[near], b[near]))
            here.report(done=len(some))
    a, b = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    both = np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)]), axis=1)
    cells.layout.desk.put("truth", pa.table({"a": both[0], "b": both[1]}))


def _border_of(cells: Cells, a: Array, b: Array) -> Array:
    """(P,) the narrowest border with which each pair is found, whichever way its cells look."""
    desk, rows = cells.layout.desk, cells.layout.rows()
    centroids = np.array(desk.take_array("centroids"), np.float64)
    least = desk.take_array("margins")
    home_a, home_b = (np.searchsorted(cells.start, side, "right") - 1 for side in (a, b))
    between = centroids[home_a] - centroids[home_b]
    reach = 2 * math.sin(math.acos(min(1.0, cells.floor)) / 2) * np.linalg.norm(between, axis=1)
    needed = []
    for side, mine, other, sign in ((a, home_a, home_b, 1), (b, home_b, home_a, -1)):
        margin = sign * np.einsum("pd,pd->p", rows[side].astype(np.float64), between)
        needed.append((margin + least[other, mine]) / np.maximum(reach, 1e-12))
    return np.where(home_a == home_b, 0.0, np.maximum(*needed))
