"""The first phase: fill, partition by partition, the columns that the store lacks. Drops nothing, knows no threshold.

What is known of unchanged files is recalled, new files are indexed, and tasks are sent out only for pieces of which
something is missing: when all is stored, no worker is started.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import cloudpickle

from curator import address, remote
from curator.custom import StageSpec
from curator.formats.base import Shard
from curator.phases import inputs
from curator.phases.inputs import Known
from curator.phases.piece import PieceRef, Work
from curator.phases.worker import Outcome, measure_partition
from curator.stage import Each
from curator.store import Store
from curator.wiring import Plan

PIECES_AT_ONCE = 8  # of one task at most: a lost worker costs no more than these


class Watcher(Protocol):
    """Who is told how measuring goes."""

    def begin(self, total: int) -> Callable[[dict[str, int]], None]:
        """`total` images are to be looked at; what it returns takes counts of `done` and `failed`."""

    def end(self) -> None:
        """All of them were."""


@dataclass
class Census:
    """What a run's inputs hold, all measured: one Known per shard in input order, and what had to be done for it."""

    shards: list[Known]
    decoded: int = 0
    measured: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # spent on each stage, over all workers
    damaged: list[str] = field(default_factory=list)
    provenance: dict[str, list[str]] = field(default_factory=dict)  # by stage: what its columns were computed with
    is_open: bool = False  # whether a fault of the machine left rows that the next run is to measure

    @property
    def contents(self) -> list[str]:
        """The content of every piece, in input order."""
        return [c for known in self.shards for c in known.contents if c is not None]


def survey(plan: Plan, store: Store, shards: Sequence[Shard], fingerprint: str) -> list[Known | None]:
    """What is known already about each shard, None where it must be looked at. Reads no image."""
    key = plan.keys[plan.read.name]
    records = [store.behind.at(inputs.FOLDER)] if store.behind else []
    with remote.as_listed(*records):  # the input was listed a moment ago
        return [inputs.recall(store, shard, key, fingerprint) for shard in shards]


def measure(
    plan: Plan, store: Store, shards: Sequence[Shard], fingerprint: str, each: Each, watcher: Watcher
) -> Census:
    """Everything that the plan's stages measure about these shards is in the store when this returns."""
    known = survey(plan, store, shards, fingerprint)
    new = [shard for shard, found in zip(shards, known, strict=True) if found is None]
    if new:
        look = partial(_look, store, StageSpec.of(plan.read), plan.keys[plan.read.name])
        looked = {found.shard: found for found in each(look, new)}
        known = [found or looked[shard] for shard, found in zip(shards, known, strict=True)]
    census = Census([found for found in known if found is not None])
    tasks = list(_tasks(plan, store, census))
    if tasks:
        _run(plan, store, census, tasks, each, watcher)
    return census


def _look(store: Store, read: StageSpec, key: str, shard: Shard) -> Known:
    return inputs.look(store, read.build(), shard, key)


def _tasks(plan: Plan, store: Store, census: Census) -> Iterator[tuple[PieceRef, ...]]:
    """The pieces of which something is missing, a few to a task: neighbours together, as `partition` groups them."""
    numbers = {known.shard: n for n, known in enumerate(census.shards)}
    for group in plan.partition.group([known.shard for known in census.shards]):
        refs: list[PieceRef] = []
        for shard in group:
            refs += _lacking(plan, store, numbers[shard], census.shards[numbers[shard]])
        for start in range(0, len(refs), PIECES_AT_ONCE):
            yield tuple(refs[start : start + PIECES_AT_ONCE])


def _lacking(plan: Plan, store: Store, number: int, known: Known) -> Iterator[PieceRef]:
    stages = [plan.read.name, *(s.name for s in plan.images)]
    for piece, content in enumerate(known.contents):
        if content is None or not all(complete(plan, store, stage, content) for stage in stages):
            yield PieceRef(known.shard, number, piece, *known.bounds(piece), content, known.stamp)


def complete(plan: Plan, store: Store, stage: str, content: str) -> bool:
    """Whether the store has this stage's columns of a piece, with no row left open by a fault of the machine."""
    return store.has(stage, address.measurement(plan.keys[stage], content))


def _run(
    plan: Plan, store: Store, census: Census, tasks: Sequence[tuple[PieceRef, ...]], each: Each, watcher: Watcher
) -> None:
    specs = tuple(StageSpec.of(stage) for stage in (plan.read, *plan.images))
    work = cloudpickle.dumps(Work(specs, plan.keys, plan.feeds, plan.givers, store))
    contents = {n: list(known.contents) for n, known in enumerate(census.shards)}
    advance = watcher.begin(sum(ref.last - ref.first for refs in tasks for ref in refs))
    try:
        for outcome in each(measure_partition, ((work, refs) for refs in tasks), on_progress=advance):  # type: ignore[call-arg]
            _note(store, census, contents, outcome)
    finally:
        watcher.end()
        store.look_again()


def _note(store: Store, census: Census, contents: dict[int, list[str | None]], outcome: Outcome) -> None:
    """Take in what a task did; a shard whose last piece was hashed is remembered."""
    census.decoded += outcome.decoded
    census.measured += outcome.measured
    for stage, seconds in outcome.seconds.items():
        census.seconds[stage] += seconds
    census.damaged += outcome.damaged
    for (shard, piece), content in outcome.contents.items():
        contents[shard][piece] = content
    for shard in {shard for shard, _ in outcome.contents}:
        known = census.shards[shard]
        if None in contents[shard] or known.hashed:
            continue
        census.shards[shard] = inputs.remember(store, known, contents[shard])


def weights_needed(plan: Plan, store: Store, known: Iterable[Known | None]) -> list[str]:
    """The names of the stages that must measure something, as far as that can be told without reading images."""
    needed = []
    seen = list(known)
    for stage in plan.images:
        unknown = any(k is None or not k.hashed for k in seen)
        contents = (c for k in seen if k is not None for c in k.contents if c is not None)
        if unknown or not all(complete(plan, store, stage.name, c) for c in contents):
            needed.append(stage.name)
    return needed
