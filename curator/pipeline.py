"""The three phases on one page: measure what the store lacks, decide about every row, write what is kept.

`Pipeline(name, stages).run(input=..., output=...)` is what the command line calls as well.
Next to read: `stage.py`, what a stage promises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from curator import ledger as ledgers
from curator.checks import against_what, as_read, listed, missing_weights, mistakes_of
from curator.cluster import Cluster, inline
from curator.demo.draw import draw_demo
from curator.errors import ConfigError, OutsideError, TooManyFailed
from curator.formats.base import Shard
from curator.phases import weights
from curator.phases.book import book
from curator.phases.columns import Found, Samples
from curator.phases.decide import Verdicts, decide
from curator.phases.gather import Missing, find, gather
from curator.phases.measure import Census, measure
from curator.phases.write import StoredSource, statuses_written, write
from curator.record import run_identity, run_record
from curator.rehearsal import rehearsal
from curator.settings import DEMO_FOLDER, Settings, completed, settled
from curator.stage import Each, ProcessingStage
from curator.store import Store
from curator.summary import summary_lines
from curator.units import counted
from curator.uploaded import output_at
from curator.voice import Voice
from curator.wiring import Plan, order_told, wire

TRIES = 3  # a damaged object is set aside when it is met, and then measured again


@dataclass(frozen=True, repr=False)
class Result:
    """What came of a run: the ledger, its counts, and the lines that were shown at the end."""

    ledger: pa.Table
    counts: dict[str, Any]
    output: Path | str | None = None  # a folder, or a URL
    run: dict[str, Any] = field(default_factory=dict)
    unchanged: bool = False

    def __len__(self) -> int:
        return int(self.counts["kept"])

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {self.counts[name]:,}" for name in ("inputs", "kept", "dropped", "failed"))
        return f"Result({told}{f', in {self.output}' if self.output is not None else ''})"


class Pipeline:
    """Stages under a name, run over images."""

    def __init__(self, name: str = "curator", stages: Sequence[ProcessingStage] = (), description: str = "") -> None:
        self.name, self.description = name, description
        self.stages = list(stages)

    def add_stage(self, stage: ProcessingStage) -> Pipeline:
        """Append a stage; gives the pipeline back, so that calls can be chained."""
        self.stages.append(stage)
        return self

    def run(
        self,
        *,
        started: Callable[[Callable[[], Cluster]], Cluster] | None = None,
        voice: Voice | None = None,
        record: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Result:
        """Measure, decide, write. Keyword arguments are the top-level keys of the config.

        `started` gives the cluster that several runs share, making it by what it is handed; `record` is what the
        command line adds to run.json. Raises ConfigError with every mistake at once, before any work, and other
        CuratorErrors as `errors.py` tells.
        """
        voice = voice or Voice()
        stages, run_settings = settled(self.stages, settings, voice)
        if run_settings.demo:
            if run_settings.dry_run and not Path(DEMO_FOLDER).exists():
                voice.say(f"the demo's pictures are drawn first, into {DEMO_FOLDER}")
            draw_demo(Path(DEMO_FOLDER))
        plan = wired(stages, run_settings)
        for line in (*getattr(plan.read, "told", ()), *order_told(plan)):
            voice.say(line)
        if run_settings.dry_run:
            return rehearsed(plan, run_settings, voice)
        with ExitStack() as stack:
            run = Run(self.name, plan, run_settings, voice, dict(record or {}), stack, started)
            return run.go()


def wired(stages: Sequence[ProcessingStage], settings: Settings) -> Plan:
    """The plan of a run. Raises ConfigError with every mistake of the whole."""
    shards, wrong = listed(stages, settings)
    try:
        stages = as_read(stages, shards)
        plan, mistakes = wire(stages), []
    except ConfigError as error:
        plan, mistakes = None, error.mistakes
    of_the_run = mistakes_of(stages, settings, wrong=wrong)
    if any(line.startswith(("input:", "read.")) for line in of_the_run):  # whether reading gives vectors is not known
        mistakes = [line for line in mistakes if "needs an embedding" not in line]
    mistakes = [*mistakes, *of_the_run, *(against_what(plan, settings) if plan is not None else ())]
    if mistakes or plan is None:
        raise ConfigError(mistakes)
    if not settings.dry_run and (mistakes := missing_weights(plan, settings)):
        raise ConfigError(mistakes)
    return plan


def check(stages: Sequence[ProcessingStage], settings: Settings) -> list[str]:
    """Every mistake of a run as a whole, one line each."""
    try:
        wired(completed(list(stages), None), settings)
    except ConfigError as error:
        return error.mistakes
    return []


def fetched(stages: Sequence[ProcessingStage], settings: Settings, voice: Voice) -> None:
    """The weights that a run would measure with are here. Raises WeightsError for all that cannot be had."""
    plan = wired(completed(list(stages), None), settings)
    shards = plan.shards(settings)
    weights.have(plan, Store(settings.store), shards, settings.fingerprint, voice)


def rehearsed(plan: Plan, settings: Settings, voice: Voice) -> Result:
    """A dry run: what would be done. Hashes and changes nothing."""
    voice.say(rehearsal(plan, settings))
    empty = {name: 0 for name in ("inputs", "kept", "dropped", "failed")}
    return Result(pa.table({}), empty)


class Run:
    """One run of one plan."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        settings: Settings,
        voice: Voice,
        record: dict[str, Any],
        stack: ExitStack,
        started: Callable[[Callable[[], Cluster]], Cluster] | None,
    ) -> None:
        self.name, self.plan, self.settings, self.voice, self.record = name, plan, settings, voice, record
        self.stack, self.started = stack, started
        self.cluster: Cluster | None = None
        self.shards: list[Shard] = []
        self.output = output_at(settings.output_place)
        self.store = Store(settings.store)
        self.seconds = {"measure": 0.0, "decide": 0.0, "write": 0.0}

    def go(self) -> Result:
        """Everything, in order."""
        self.stack.enter_context(self.output.locked())
        self.stack.enter_context(self.store.opened())
        self.output.begin()  # a place that cannot be written to is said before hours of measuring
        self.shards = self.plan.shards(self.settings)
        self._timed("measure", self._fetched)
        census, rows, found = self._timed("measure", lambda: self._measured(self.shards))
        identity = run_identity(self.plan, self.settings, census, found)
        if (done := self._finished(identity)) is not None:
            return done
        verdicts = self._timed("decide", lambda: self._decided(rows, found))
        ledger = book(rows, verdicts, census.shards, self._score_columns(), self.plan.read.name)
        self._check_failures(ledger)
        self._check_replaced(ledger)
        ledger, facts = self._timed("write", lambda: self._written(ledger, census, identity))
        return self._committed(ledger, verdicts, facts, census, found, identity)

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[phase] += time.monotonic() - begin

    def _fetched(self) -> None:
        """Bodies of the URLs in the input, where it has any."""
        if any(shard.format == "urls" for shard in self.shards):
            try:
                self.plan.read.fetch(self.shards, self.voice.begin)
            finally:
                self.voice.end()

    def _measured(self, shards: Sequence[Shard]) -> tuple[Census, Samples, dict[str, Found]]:
        """Fill the store, then bring together what deciding needs; what turns out damaged is measured again."""
        weights.have(self.plan, self.store, shards, self.settings.fingerprint, self.voice)
        damaged: list[str] = []
        for _ in range(TRIES):
            census = measure(self.plan, self.store, shards, self.settings.fingerprint, self._each, self.voice)
            damaged += self._told_damaged(census.damaged)
            try:
                rows = gather(self.plan, self.store, census)
                find_in = (self.plan, self.store, census)
                finders = [s for s in self.plan.collections if s.has("find")]
                found = {s.name: find(*find_in, s, self._each, self.voice) for s in finders}
                census.damaged = damaged + self._told_damaged([])
                return census, rows, found
            except Missing as missing:
                damaged += (known := self._told_damaged([]))
                if not known:
                    self.voice.say(f"store: objects of {missing} went missing; they are measured again")
        raise OutsideError(f"{self.store.place}: objects are damaged as soon as they are written; is the disk sound?")

    def _told_damaged(self, by_workers: Sequence[str]) -> list[str]:
        """The objects that workers and this process found damaged since it was last asked; said in one line."""
        found = list(dict.fromkeys([*by_workers, *self.store.taken_aside()]))
        if found:
            self.voice.say(
                f"store: {counted(len(found), 'object')} {'was' if len(found) == 1 else 'were'} damaged, now in "
                f"{self.settings.store}/damaged; what they held is measured again"
            )
        return found

    def _each(self, fn: Callable[[Any], Any], items: Any, **options: Any) -> Any:
        """`each` of a cluster that is started when the first task needs it: a re-decide never does."""
        if self.cluster is None:
            enter = self.started or (lambda make: self.stack.enter_context(make()))
            self.cluster = enter(lambda: Cluster(self.settings.cluster, **self._model_size()))
            self.cluster.probe([str(self.store.place), *(shard.path for shard in self.shards[:3])])
            self.voice.say(self.cluster.describe()["line"])
        return self.cluster.each(fn, items, **options)

    def _model_size(self) -> dict[str, Any]:
        sizes = [w.path.stat().st_size for ws in self.plan.weights.values() for w in ws if w.path and w.path.is_file()]
        share = min(
            (s.num_gpus_per_worker for s in self.plan.images if hasattr(s, "num_gpus_per_worker")), default=0.25
        )
        return {"model_bytes": sum(sizes), "in_flight_per_gpu": max(1, round(1 / share))}

    def _decided(self, rows: Samples, found: Mapping[str, Found]) -> Verdicts:
        return decide(self.plan.stages, rows.table, dict(found))

    def _score_columns(self) -> list[str]:
        return [column for stage in self.plan.images for column in stage.gives if column != "embedding"]

    def _check_failures(self, ledger: pa.Table) -> None:
        total = ledgers.counts(ledger)
        allowed = self.settings.max_failed
        if total["inputs"] and total["failed"] / total["inputs"] > allowed:
            raise TooManyFailed(
                f"{total['failed']:,} of {total['inputs']:,} inputs failed ({total['failed'] / total['inputs']:.1%}), "
                f"more than max_failed={allowed:g} allows. Nothing was written; all measurements are kept. "
                f"The causes: {ledgers.causes(ledger)}."
            )

    def _check_replaced(self, ledger: pa.Table) -> None:
        """Where a finished run's shards would go and none come, refuse."""
        before = self.output.run
        if before is None:
            return
        had, total = before.get("counts", {}), ledgers.counts(ledger)
        writes = self.settings.write_images and any(w.copies_images for w in self.plan.writers)
        if writes and not total["kept"] and "shards" in before.get("parts", []) and not self.settings.overwrite:
            causes = f" ({ledgers.causes(ledger)})" if total["failed"] else ""
            raise ConfigError(
                f"output: {self.settings.output} holds the shards of {had.get('kept', 0):,} images, and this run keeps "
                f"none of {counted(total['inputs'], 'input')}: {total['dropped']:,} dropped, {total['failed']:,} failed"
                f"{causes}. Nothing was replaced, and what was measured is kept. Other thresholds, another output, or "
                "overwrite=true to lose the shards."
            )

    def _tell_replaced(self) -> None:
        """Say which finished run is about to be replaced."""
        before = self.output.run
        if before is None:
            return
        kept, given = before.get("counts", {}).get("kept", 0), before.get("config", {}).get("input")
        of = ", ".join(given) if isinstance(given, list) else given
        self.voice.say(f"{self.settings.output}: replaces the run of {of} ({kept:,} kept)")

    def _written(self, ledger: pa.Table, census: Census, identity: str) -> tuple[pa.Table, dict[str, Any]]:
        """Copy what is kept into `.next`, and the ledger beside it."""
        folder = self.output.begin()
        source = StoredSource(self.store, census.shards, self.plan, identity, str(self.output.place))
        writers = [w for w in self.plan.writers if w.light or self.settings.write_images]
        ledger, facts = write(ledger, writers, source, folder, _in_threads)
        inputs = sum(known.samples + (known.damage is not None) for known in census.shards)
        ledgers.check(ledger, inputs, statuses_written(writers))
        facts["ledger_sha256"] = ledgers.write(ledger, folder / "ledger")
        return ledger, facts

    def _committed(
        self,
        ledger: pa.Table,
        verdicts: Verdicts,
        facts: dict[str, Any],
        census: Census,
        found: Mapping[str, Found],
        identity: str,
    ) -> Result:
        run = run_record(
            self.name, self.plan, self.settings, census, found, verdicts, ledger, facts, self.seconds, identity,
            cluster=self.cluster, record=self.record,
        )  # fmt: skip
        self._tell_replaced()
        told = summary_lines(ledger, self.plan, run, str(self.settings.output))
        self.voice.log(told)
        self.voice.save(self.output.next, self.record.get("hydra"))
        self.output.commit(run)
        self.voice.show(told)
        return Result(ledger, run["counts"], self.output.place, run)

    def _finished(self, identity: str) -> Result | None:
        """The run that already stands in the output, where it answers the same question and nothing is open."""
        before = self.output.run
        if before is None or before.get("identity") != identity or before.get("open", True):
            return None
        counts = before["counts"]
        if counts["inputs"] and counts["failed"] / counts["inputs"] > self.settings.max_failed:
            return None
        try:
            ledger = ledgers.read(self.output.part("ledger"))
        except (OSError, pa.ArrowException):
            ledger = None
        if ledger is None or not self.output.is_whole:
            self.voice.say(f"{self.output.place}: its files are not as they were written; they are made again")
            return None
        self.voice.say(f"{self.output.place}: finished already with this config and this input. Nothing to do.")
        return Result(ledger, before["counts"], self.output.place, before, unchanged=True)


def _in_threads(fn: Callable[[Any], Any], items: Any) -> Any:
    """Writing copies bytes and hashes them, both outside Python's lock: threads of this process are enough."""
    return inline(fn, items, threads=4)


__all__ = ["Each", "Pipeline", "Result"]
