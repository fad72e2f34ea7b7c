"""The distinct rows on disk in the order of the search: by cell, and inside a cell as they came.

Two arrays on the desk: the whole float16 rows, from which pairs are computed, and the coordinates that bound them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from curator import here
from curator.compute import compute_for
from curator.desk import Desk
from curator.pairs.bounds import leads_of, settle
from curator.pairs.fold import Group
from curator.stage import Array, Each

ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Layout:
    """Where the N rows lie. `width` columns of coordinates, the last one for the rest unless all D are taken."""

    desk: Desk
    count: int
    dims: int
    width: int

    def rows(self, writable: bool = False) -> Array:
        """(N, D) float16."""
        return self.desk.array("rows", (self.count, self.dims), np.float16, writable)

    def leads(self, writable: bool = False) -> Array:
        """(N, width) bfloat16 as uint16."""
        return self.desk.array("leads", (self.count, self.width), np.uint16, writable)


@dataclass(frozen=True)
class Part:
    """One group's share of the layout: its rows are `start`..`end` of the distinct ones."""

    group: Group
    start: int
    end: int
    layout: Layout

    def rows(self) -> Iterator[tuple[slice, Array]]:
        """The group's distinct rows in order, some thousand at once: which of the distinct rows, and (n, D) float16."""
        places = self.layout.desk.take("distinct").slice(self.start, self.end - self.start)
        piece, row = (places.column(name).to_numpy() for name in ("piece", "row"))
        held: list[Array] = []
        begin = self.start
        for number, address in enumerate(self.group.vectors.addresses, self.group.first):
            mine = row[piece == number]
            if len(mine):
                held.append(self.group.vectors.read(address)[0][mine])
            if sum(map(len, held)) >= ROWS_AT_ONCE:
                yield self._some(begin, held)
                begin, held = begin + sum(map(len, held)), []
        if held:
            yield self._some(begin, held)

    @staticmethod
    def _some(begin: int, held: Sequence[Array]) -> tuple[slice, Array]:
        rows = np.concatenate(held)
        return slice(begin, begin + len(rows)), rows


def assigned(parts: Sequence[Part], each: Each) -> tuple[Array, Array]:
    """(N,) int32 home cell of every distinct row and (N,) float32 its cosine to the centroid."""
    desk = parts[0].layout.desk
    todo = [part for part in parts if not desk.has(f"homes-{part.group.number}")]
    desk.go(each, assign, todo, "dedup: finding each vector's cell")
    tables = [desk.take(f"homes-{part.group.number}") for part in parts]
    home, cosine = (np.concatenate([t.column(name).to_numpy() for t in tables]) for name in ("cell", "cosine"))
    return home, cosine


def assign(part: Part) -> None:
    """Lay down the home cells of one group's rows."""
    desk = part.layout.desk
    centroids = desk.take_array("centroids")
    lengths = np.linalg.norm(centroids, axis=1)
    compute = compute_for(here.this_worker().device.partition(":")[0])
    homes, cosines = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for _, rows in part.rows():
        home = compute.assign(rows, centroids) if len(centroids) > 1 else np.zeros(len(rows), np.int32)
        wide = rows.astype(np.float32)
        dots = np.einsum("nd,nd->n", wide, centroids[home])
        homes.append(home)
        cosines.append(dots / np.maximum(lengths[home] * np.sqrt(np.einsum("nd,nd->n", wide, wide)), 1e-12))
    table = pa.table({"cell": np.concatenate(homes), "cosine": np.concatenate(cosines).astype(np.float32)})
    desk.put(f"homes-{part.group.number}", table)


def placed(parts: Sequence[Part], each: Each) -> float:
    """Lay all rows down in the order of the search; gives the most that rounding took of any row's coordinates.

    What it takes of whole rows is laid down as `rounding`.
    """
    desk = parts[0].layout.desk
    todo = [part for part in parts if not desk.has(f"placed-{part.group.number}")]
    desk.go(each, place, todo, "dedup: laying the vectors in order")
    lost = np.stack([desk.take_array(f"placed-{part.group.number}") for part in parts]).max(axis=0)
    desk.put_array("rounding", lost[1:])
    return float(lost[0])


def place(part: Part) -> None:
    """Lay one group's rows down, each at its position."""
    layout, device = part.layout, here.this_worker().device
    settle(here.this_worker())
    position = layout.desk.take_array("positions")
    rotation = layout.desk.take_array("rotation") if layout.desk.has("rotation") else None
    lost = np.zeros(2)
    if part.end > part.start:
        rows_ND, leads_NW = layout.rows(writable=True), layout.leads(writable=True)
        for which, rows in part.rows():
            leads = leads_of(rows, rotation, device)
            rows_ND[position[which]] = rows
            leads_NW[position[which]] = leads.coordinates
            lost = np.maximum(lost, [leads.lost, leads.whole])
        rows_ND.flush()  # type: ignore[attr-defined]
        leads_NW.flush()  # type: ignore[attr-defined]
    layout.desk.put_array(f"placed-{part.group.number}", lost)


def parts_of(groups: Sequence[Group], starts: Array, layout: Layout) -> list[Part]:
    """Every group with its share of the distinct rows."""
    return [
        Part(replace(group, desk=layout.desk), int(starts[n]), int(starts[n + 1]), layout)
        for n, group in enumerate(groups)
    ]
