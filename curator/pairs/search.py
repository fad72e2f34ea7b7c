"""Every pair of stored vectors at or above a floor: found exactly, in bounded memory, as tasks that can be resumed.

    hash rows -> fold copies -> sample -> plan -> homes -> lay rows down by cell -> margins, visits -> compare

What is proposed by bounds is decided by the float64 cosine of the stored float16 numbers: the result depends on
nothing but the vectors and the floor. Everything on the way lies on the desk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curator import here
from curator.compute import compute_for
from curator.desk import Desk
from curator.pairs.bounds import FullProducts, as_tensor, candidates, least_product, settle
from curator.pairs.cells import Cells, directed, visitors, with_margins
from curator.pairs.exact import cosines
from curator.pairs.fold import Folded, Group, fold, groups_of
from curator.pairs.found import Searched
from curator.pairs.layout import Layout, Part, assigned, parts_of, placed
from curator.pairs.plan import Planning, plan, sample_size
from curator.pairs.recall import Truth, narrowed
from curator.stage import Array, Each, Vectors

TASK_PAIRS = 4e9  # pairs of rows that one task looks at, about
TOGETHER = 512  # rows up to which small cells are looked at together
CHUNK = {"cpu": 8192, "cuda": 131_072}  # rows that are compared with a full block at once; with a smaller one more
MOST_AT_ONCE = 131_072
ON_DEVICE = 0.25  # share of a GPU's memory up to which all coordinates lie there


@dataclass(frozen=True)
class Wanted:
    """What is looked for, and what limits the looking."""

    floor: float
    cells: int | None = None
    seed: int = 0
    block_rows: int = 2048
    most_per_row: int = 256
    recall: float = 1.0


@dataclass(frozen=True)
class Span:
    """Rows first..last-1 by position, of cells cell..behind-1: several small ones, or a part of one."""

    cell: int
    behind: int
    first: int
    last: int
    work: int = 0  # pairs that it looks at, about


@dataclass(frozen=True)
class Unit:
    """Rows that one task compares with all that must look at them."""

    cells: Cells
    number: int
    spans: tuple[Span, ...]
    least: float
    most_per_row: int
    block_rows: int

    def __str__(self) -> str:
        return f"near pairs of rows {self.spans[0].first:,} to {self.spans[-1].last - 1:,}"


def search(vectors: Vectors, each: Each, wanted: Wanted) -> Searched:
    """All pairs at or above the floor; those that `vectors.known` has are taken over."""
    known = vectors.known
    if known is None:
        return _searched(vectors, each, wanted, None)
    found = _searched(vectors, each, wanted, known.pieces_of(vectors.addresses))
    return known.added_to(found, vectors.addresses)  # type: ignore[no-any-return]


def _searched(vectors: Vectors, each: Each, wanted: Wanted, old_pieces: Array | None) -> Searched:
    """Pairs of which at least one row is new: `old_pieces` (pieces,) True where pairs among them are known."""
    desk = vectors.desk
    groups = groups_of(vectors, desk)
    folded = fold(groups, desk, each)
    count = len(folded.piece)
    nothing = np.zeros(0, np.int64)
    if count < 2:
        alone = np.zeros(count, np.int32)
        return Searched(folded, nothing, nothing, np.zeros(0), nothing, np.zeros((0, 1), np.float16), alone,
                        np.ones(count, np.float32))  # fmt: skip
    is_new = np.ones(count, bool) if old_pieces is None else ~_any_old(folded, old_pieces)
    layout, parts = _prepared(vectors, groups, folded, wanted, each)
    home, cosine = assigned(parts, each)
    order, cells = _ordered(layout, home, is_new, wanted, each)
    desk.make("rows", (count, layout.dims), np.float16)
    desk.make("leads", (count, layout.width), np.uint16)
    lost = placed(parts, each)
    least, truth = least_product(wanted.floor, lost, layout.width), None
    if cells.count > 1:
        with_margins(cells, each)
    elif wanted.recall < 1:
        desk.say(f"dedup: recall={wanted.recall:g} saves nothing here: without cells every pair is found")
    if cells.count > 1 and wanted.recall < 1 and is_new.any():
        cells, truth = narrowed(cells, wanted.recall, least, wanted.seed, each)
    units = list(_units(cells, least, wanted, each))
    todo = [unit for unit in units if not desk.has(f"near-{unit.number}")]
    desk.go(each, compare, todo, "dedup: comparing", sum(span.work for unit in todo for span in unit.spans))
    return _gathered(folded, units, layout, order, home, cosine, truth)


def _any_old(folded: Folded, old_pieces: Array) -> Array:
    """(N,) True where a distinct row, or a copy of it, lies in an old piece."""
    old: Array = old_pieces[folded.piece].copy()
    old[folded.copy_of[old_pieces[folded.copy_piece]]] = True
    return old


def _prepared(
    vectors: Vectors, groups: Sequence[Group], folded: Folded, wanted: Wanted, each: Each
) -> tuple[Layout, list[Part]]:
    """The sample, the plan, and the parts that tasks take."""
    desk, count = vectors.desk, len(folded.piece)
    dims = vectors.read(vectors.addresses[int(folded.piece[0])])[0].shape[1]
    if not desk.has("distinct"):
        desk.put("distinct", pa.table({"piece": folded.piece, "row": folded.row}))
    size = sample_size(count, wanted.cells)
    parts = parts_of(groups, folded.starts, Layout(desk, count, dims, dims))
    if not desk.has("sample"):
        chosen = np.sort(np.argpartition(folded.order, size - 1)[:size])
        desk.put_array("chosen", chosen)
        todo = [p for p in parts if not desk.has(f"sample-{p.group.number}")]
        desk.go(each, take_sample, todo, "dedup: taking a sample")
        rows = np.concatenate([desk.take_array(f"sample-{p.group.number}") for p in parts])
        desk.put_array("sample", rows[np.argsort(folded.order[chosen], kind="stable")])
    if not desk.has("plan"):
        planning = Planning(desk, count, dims, wanted.floor, wanted.cells, wanted.seed)
        desk.go(each, plan, [planning], "dedup: planning the search")
    found = desk.get("plan")
    assert found is not None, "it was just made"
    desk.say(f"dedup: {found.header['line']}")
    layout = Layout(desk, count, dims, int(found.table.column("width")[0].as_py()))
    return layout, [replace(part, layout=layout) for part in parts]


def take_sample(part: Part) -> None:
    """Lay down the rows of one group that were chosen."""
    desk = part.layout.desk
    chosen = desk.take_array("chosen")
    mine = [rows[chosen[(chosen >= which.start) & (chosen < which.stop)] - which.start] for which, rows in part.rows()]
    rows = np.concatenate(mine) if mine else np.zeros((0, part.layout.dims), np.float16)
    desk.put_array(f"sample-{part.group.number}", rows.astype(np.float16))


def _ordered(layout: Layout, home: Array, is_new: Array, wanted: Wanted, each: Each) -> tuple[Array, Cells]:
    """The row at each position, by cell, known ones first; lays down what tasks need of it."""
    desk = layout.desk
    count = len(desk.take_array("centroids"))
    if not desk.has("order"):
        desk.put("cells", pa.table({"cell": home, "new": is_new.astype(np.uint8)}))
        desk.go(each, sort_rows, [desk], "dedup: sorting")
    order = np.array(desk.take_array("order"))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    desk.put_array("positions", position)
    sizes = np.bincount(home, minlength=count)
    desk.put_array("starts", np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    desk.put_array("old", np.bincount(home[~is_new], minlength=count).astype(np.int64))
    return order, Cells(layout, count, wanted.floor)


def sort_rows(desk: Desk) -> None:
    """Lay down the rows in the order of the search."""
    table = desk.take("cells")
    cell, new = (table.column(name).to_numpy() for name in ("cell", "new"))
    desk.put_array("order", compute_for(here.this_worker().device.partition(":")[0]).order(cell, new))


def _units(cells: Cells, least: float, wanted: Wanted, each: Each) -> Iterator[Unit]:
    """Spans gathered into tasks of about the same work."""
    looking = directed(cells, each)[1] if cells.count > 1 else np.zeros(1)
    spans: list[Span] = []
    work = number = 0
    for span in _spans(cells, wanted.block_rows):
        inside = span.last - int(cells.start[span.cell])
        pairs = (span.last - span.first) * (inside + int(looking[span.cell : span.behind].max()))
        spans.append(replace(span, work=pairs))
        work += pairs
        if work >= TASK_PAIRS:
            yield Unit(cells, number, tuple(spans), least, wanted.most_per_row, wanted.block_rows)
            spans, work, number = [], 0, number + 1
    if spans:
        yield Unit(cells, number, tuple(spans), least, wanted.most_per_row, wanted.block_rows)


def _spans(cells: Cells, block_rows: int) -> Iterator[Span]:
    """All rows, in runs of at most `block_rows`; small cells together."""
    start = cells.start.tolist()
    cell = 0
    while cell < cells.count:
        behind = cell + 1
        while behind < cells.count and start[behind + 1] - start[cell] <= min(TOGETHER, block_rows):
            behind += 1
        for at in range(start[cell], start[behind], block_rows):
            yield Span(cell, behind, at, min(at + block_rows, start[behind]))
        cell = behind


def compare(unit: Unit) -> None:
    """Lay down the near pairs of one unit, by position, and the positions that are crowded."""
    import torch

    worker = here.this_worker()
    settle(worker)
    comparison = Comparison(unit, worker.device)
    with torch.inference_mode():
        for span in unit.spans:
            comparison.span(span)
    comparison.lay_down()


class Comparison:
    """One unit's work."""

    def __init__(self, unit: Unit, device: str) -> None:
        self.unit, self.cells, self.device = unit, unit.cells, device
        self.desk = unit.cells.layout.desk
        self.rows, self.leads = unit.cells.layout.rows(), unit.cells.layout.leads()
        self.any_old = bool(self.cells.old.any())
        self.way = self.desk.take_array("ways").astype(bool) if self.cells.count > 1 else None
        self.looking: tuple[int, Array] = (-1, np.zeros(0, np.int64))
        self.a: list[Array] = []
        self.b: list[Array] = []
        self.similarity: list[Array] = []
        self.crowded: list[Array] = []
        self.room: Any = None
        self.halved = 0
        self.chunk = CHUNK[device.partition(":")[0]]
        on_gpu = device.startswith("cuda")
        self.whole = here.keep_one("leads", self._written(), lambda: on_device(self.leads, device)) if on_gpu else None

    def span(self, span: Span) -> None:
        """Compare these rows with all that must look at them, and with those before them in their own cells."""
        first, last = span.first, span.last
        coordinates = self._coordinates(slice(first, last))
        self.full = FullProducts(self.rows, first, last, self.cells.floor, self.device)
        others = np.concatenate([np.arange(int(self.cells.start[span.cell]), first), self._visitors(span)])
        if self.any_old and not self.cells.is_new(np.arange(first, last)).any():
            others = others[self.cells.is_new(others)]
        else:
            self._compared(np.arange(first, last), coordinates, first, last, triangle=True)
        chunk = min(MOST_AT_ONCE, self.chunk * self.unit.block_rows // (last - first))
        done = 0
        for at in range(0, len(others), chunk):
            self._compared(others[at : at + chunk], coordinates, first, last)
            here.report(done=(more := span.work * min(chunk, len(others) - at) // len(others)))
            done += more
        here.report(done=span.work - done)

    def _written(self) -> tuple[str, int, int]:
        """Which coordinates these are: a search of the same that began anew lays its rows in another order."""
        file = (self.desk.folder / "leads.array").stat()
        return self.desk.name, file.st_ino, file.st_mtime_ns

    def _coordinates(self, who: slice | Array) -> Any:
        if self.whole is None:
            return as_tensor(self.leads[who], self.device)
        import torch

        return self.whole[who if isinstance(who, slice) else torch.from_numpy(who).to(self.whole.device)]

    def _visitors(self, span: Span) -> Array:
        if self.way is None:
            return np.zeros(0, np.int64)
        if self.looking[0] != span.cell:  # several spans may be of one large cell
            self.looking = (span.cell, visitors(self.cells, self.way, span.cell, span.behind))
        return self.looking[1]

    def _compared(self, who: Array, theirs: Any, first: int, last: int, triangle: bool = False) -> None:
        """Rows at the positions `who` against those at first..last, whose coordinates are `theirs`."""
        import torch

        floor = self.cells.floor
        try:
            mine = theirs if triangle else self._coordinates(who)
            full = self.full.of(who)
            found = candidates(
                mine, theirs, self.unit.least, full, self.unit.most_per_row, triangle, self._room(theirs)
            )
        except torch.OutOfMemoryError:
            if triangle or len(who) < 2:
                raise
            self.halved += 1
            half = len(who) // 2
            for some in (who[:half], who[half:]):
                self._compared(some, theirs, first, last)
            return
        a, b = who[found.i], first + found.j
        if self.any_old:
            new = self.cells.is_new(a) | self.cells.is_new(b)
            a, b = a[new], b[new]
        similarity = cosines(self.rows, a, self.rows, b)
        near = similarity >= floor
        self.a.append(a[near])
        self.b.append(b[near])
        self.similarity.append(similarity[near])
        self.crowded += [who[found.crowded_a], first + found.crowded_b]

    def _room(self, like: Any) -> Any:
        import torch

        if self.room is None:
            self.room = torch.empty(self.chunk * self.unit.block_rows, dtype=like.dtype, device=like.device)
        return self.room

    def lay_down(self) -> None:
        """Lay down what was found."""
        nothing = np.zeros(0, np.int64)
        crowded = np.unique(np.concatenate([nothing, *self.crowded]))
        self.desk.put_array(f"crowded-{self.unit.number}", crowded)
        a, b = (np.concatenate([nothing, *parts]) for parts in (self.a, self.b))
        columns = {"a": a, "b": b, "similarity": np.concatenate([np.zeros(0), *self.similarity])}
        self.desk.put(f"near-{self.unit.number}", pa.table(columns), halved=self.halved)


def on_device(leads_NW: Array, device: str) -> Any:
    """All coordinates as a tensor on a GPU where they fit, else None: rows are then sent as they are needed.

    A product on a GPU takes less time than the way of its factors to it.
    """
    import torch

    fits = leads_NW.nbytes <= ON_DEVICE * torch.cuda.get_device_properties(device).total_memory
    try:
        return as_tensor(leads_NW, device) if fits else None
    except torch.OutOfMemoryError:  # others are on this GPU too
        return None


def _gathered(
    folded: Folded, units: Sequence[Unit], layout: Layout, order: Array, home: Array, cosine: Array, truth: Truth | None
) -> Searched:
    desk: Desk = layout.desk
    tables = [desk.take(f"near-{unit.number}") for unit in units]
    stored = [desk.get(f"near-{unit.number}") for unit in units]
    if halved := sum(its.header["halved"] for its in stored if its is not None):
        desk.say(f"dedup: a GPU's memory was short, {halved:,} blocks were halved; try a smaller dedup.block_rows")
    a, b, similarity = (
        np.concatenate([t.column(name).to_numpy() for t in tables]) for name in ("a", "b", "similarity")
    )
    # two blocks of cells may have found the same pair from either side
    once = np.unique(np.minimum(a, b) * np.int64(len(order)) + np.maximum(a, b), return_index=True)[1]
    a, b, similarity = a[once], b[once], similarity[once]
    crowded = np.unique(np.concatenate([desk.take_array(f"crowded-{unit.number}") for unit in units]))
    if truth is not None:
        desk.say(f"dedup: {truth.told(a, b, crowded, len(order))}")
    vectors = np.array(layout.rows()[crowded])
    return Searched(folded, order[a], order[b], similarity, order[crowded], vectors, home, cosine)
