"""One piece while it is measured: what the store has of it, what is wanted, and what has come so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from curator import address
from curator.custom import StageSpec
from curator.formats.base import Sample, Shard
from curator.phases.columns import ReadRows, Rows
from curator.stage import ProcessingStage
from curator.store import Object, Store
from curator.wiring import pixels_of


@dataclass(frozen=True)
class Work:
    """What all tasks of a run share: the stages as descriptions, their keys, and who feeds whom."""

    specs: tuple[StageSpec, ...]  # read first, then the image stages as listed
    keys: dict[str, str]
    feeds: dict[str, str]
    givers: dict[str, str]
    store: Store

    @cached_property
    def stages(self) -> tuple[Any, ...]:
        """The stages, built in this process."""
        return tuple(spec.build() for spec in self.specs)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "stages"}


@dataclass(frozen=True)
class PieceRef:
    """One piece of one shard: its place in the run, its samples and, where it was hashed before, its content."""

    shard: Shard
    shard_number: int
    number: int
    first: int
    last: int
    content: str | None
    stamp: str  # the shard's, when it was indexed

    def __str__(self) -> str:
        return f"{self.shard.given}, samples {self.first:,} to {self.last - 1:,}"


class Piece:
    """One piece while it is measured: what is wanted of it, and what came so far."""

    def __init__(self, work: Work, ref: PieceRef, samples: Sequence[Sample], content: str) -> None:
        self.work, self.ref, self.samples, self.content = work, ref, samples, content
        self.count = len(samples)
        self.read_stage: Any = work.stages[0]
        self.wanted: dict[str, Rows] = {}  # pixel stages whose rows are being filled
        self.streamed = False  # whether all its images were handed to the decoders
        self.waiting = 0  # images at the decoders, and rows in batches
        self.stamp = ""  # of its members, when they were first looked at
        self.open = False  # whether any row is to be tried again by the next run
        self.read: ReadRows | None = None
        for stage in work.stages:
            work.store.check_copy(stage.name, self.address(stage.name))
        stored = self.stored(self.read_stage.name)
        self.was_open = stored is not None and stored.header.get("open", False)
        if stored is None:
            self.read, self.to_decode = ReadRows(self.count), set(range(self.count))
        else:
            causes, again = stored.table.column("cause").to_pylist(), stored.table.column("open").to_pylist()
            self.to_decode = {i for i in range(self.count) if again[i]}
            self.read = ReadRows.resumed(stored.table) if self.was_open else None
        for stage in work.stages[1:]:
            if pixels_of(stage):
                self._want(stage, {i for i in range(self.count) if stored is None or causes[i] is None or again[i]})

    def _want(self, stage: ProcessingStage, sound: set[int]) -> None:
        had = self.stored(stage.name)
        if had is None:
            self.wanted[stage.name] = Rows(self.count, stage.gives)
            self.to_decode |= sound
        elif had.header.get("open"):
            self.wanted[stage.name] = Rows.resumed(had.table, stage.gives)
            self.to_decode |= {i for i in sound if self.lacks_row(stage.name, i)}

    def stored(self, stage: str) -> Object | None:
        """What the store has of this piece."""
        return self.work.store.get(stage, self.address(stage))

    def address(self, stage: str) -> str:
        """Where this piece's columns of a stage lie."""
        return address.measurement(self.work.keys[stage], self.content)

    def lacks_row(self, stage: str, row: int) -> bool:
        """Whether this decoded row is still to be measured by the stage."""
        rows = self.wanted.get(stage)
        return rows is not None and not rows.has[row] and row not in rows.faults

    def read_value(self, row: int, name: str) -> Any:
        """One of the columns that reading gives, for a stage that measures beside the pixels."""
        if self.read is not None:
            return self.read.rows[row].get(name)
        stored = self.stored(self.read_stage.name)
        return None if stored is None else stored.table.column(name)[row].as_py()
