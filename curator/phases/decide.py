"""The second phase: columns and thresholds in, one verdict with its reason per row out. No images, no torch.

Filters decide in listed order and the first that does not keep a row is the one that its row names; collection
stages choose after all filters, from the rows that every filter keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.custom import blamed
from curator.errors import Cause, CuratorError
from curator.ledger import DUPLICATE
from curator.phases.columns import Found, as_columns, valid
from curator.stage import Array, Choice, Embedding, Mask, Pixels, ProcessingStage
from curator.units import counted
from curator.wiring import READ_GIVES, columns_of, given_by, kept_from, measured_from

KEPT, DROPPED, FAILED = 0, 1, 2
STATUS = np.array(["kept", "dropped", "failed"], object)
UNREPRESENTED = "near-duplicate of an image that is dropped as well"


@dataclass
class Verdicts:
    """The decision about N rows while it is made: arrays of length N."""

    status: Array
    stage: Array
    cause: Array
    reason: Array
    flags: Array
    dropped_by: Array  # (N,) int64: the row kept in its place, -1 where there is none
    similarity: Array  # (N,) float64 to that row, NaN where there is none
    resembles: Array  # (N,) int64: the row that it was dropped for, which a later stage may have dropped in its turn
    alone: Array  # (N,) True where it was dropped for a row that the same stage dropped
    seen: dict[str, dict[str, int]] = field(default_factory=dict)  # stage -> in, kept, dropped, failed, flagged
    flagged: list[tuple[str, Array, Sequence[str], Array]] = field(default_factory=list)
    """By collection stages that flag: their name, rows, words, and the row that each of the words names, or -1."""
    remarks: list[str] = field(default_factory=list)  # of filters and collection stages
    walked: int = 0  # rows whose pairs were not stored and were compared again
    outside: pa.Table | None = None  # shard and key of what is kept elsewhere, of every row that was dropped for it
    outside_of: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # (N,) its row there, -1 without one

    @classmethod
    def of(cls, count: int) -> Verdicts:
        """N rows, all kept so far."""
        stage, cause, reason = (np.full(count, None, object) for _ in range(3))
        nobody, never = np.full(count, -1, np.int64), np.full(count, np.nan)
        flags = np.full(count, "", object)
        alone = np.zeros(count, bool)
        return cls(np.zeros(count, np.int8), stage, cause, reason, flags, nobody, never, nobody.copy(), alone)

    @property
    def alive(self) -> Mask:
        """(N,) True where a row is kept so far."""
        mask: Mask = self.status == KEPT
        return mask

    def note(self, stage: str, rows: Array, status: int, cause: Any, reason: Sequence[str]) -> None:
        """Decide about some rows."""
        self.status[rows] = status
        self.stage[rows] = stage
        self.cause[rows] = cause
        self.reason[rows] = np.asarray(reason, object)

    def kept_elsewhere(self, outside: pa.Table, rows: Array, of: Array) -> None:
        """Some rows are dropped for rows `of` a table of what is kept elsewhere."""
        if not len(self.outside_of):
            self.outside_of = np.full(len(self.status), -1, np.int64)
        named = outside.select(["shard", "key"]).take(pa.array(of))
        had = 0 if self.outside is None else self.outside.num_rows
        self.outside = named if self.outside is None else pa.concat_tables([self.outside, named])
        self.outside_of[rows] = had + np.arange(len(rows))

    def flag(self, stage: str, rows: Array, reason: Sequence[str]) -> None:
        """Say what a stage with `action=flag` would have done."""
        for row, why in zip(rows, reason, strict=True):
            self.flags[row] = "; ".join(filter(None, (self.flags[row], f"{stage}: {why}")))

    def flag_for(self, stage: str, rows: Array, words: list[str], of: Array, outside: pa.Table | None) -> None:
        """The same of rows for others: `of` counts rows of the run, behind them those of `outside`; -1 is unknown."""
        for n in np.flatnonzero(of >= len(self.status)):
            assert outside is not None
            words[n] += kept_before(outside, int(of[n]) - len(self.status))
        self.flagged.append((stage, rows, words, np.where(of < len(self.status), of, -1)))


def kept_before(outside: pa.Table, row: int) -> str:
    """The name of a row that is kept elsewhere, as it follows a reason."""
    shard, key = (outside.column(name)[row].as_py() for name in ("shard", "key"))
    return f" {shard}/{key}, kept before"


def decide(stages: Sequence[ProcessingStage], rows: pa.Table, found: Mapping[str, Found]) -> Verdicts:
    """One verdict per row of `rows`: reading's columns, then those of every image stage, `<stage>.cause` beside them.

    `found` has, by collection stage that finds, what it found and where each row stands in it.
    """
    verdicts = Verdicts.of(rows.num_rows)
    for stage in stages:
        if stage.has("index"):
            _failures(verdicts, stage.name, rows, "")
        elif stage.has("measure") or stage.has("keep"):
            _filter(verdicts, stage, rows)
    for stage in stages:
        if stage.has("choose"):
            _choose(verdicts, stage, rows, found.get(stage.name))
    return verdicts


def _failures(verdicts: Verdicts, stage: str, rows: pa.Table, prefix: str) -> None:
    """Rows that a stage has no values for, for a reason of theirs."""
    before = int(verdicts.alive.sum())
    causes = rows.column(prefix + "cause")
    failed = np.flatnonzero(causes.combine_chunks().is_valid().to_numpy(zero_copy_only=False) & verdicts.alive)
    if len(failed):
        details = rows.column(prefix + "detail").take(failed).to_pylist()
        verdicts.note(stage, failed, FAILED, np.array(causes.take(failed).to_pylist(), object), details)
    wished = failed[verdicts.cause[failed] == Cause.OPTED_OUT.value]  # nothing failed: somebody's wish is respected
    verdicts.status[wished] = DROPPED
    counts = {"dropped": len(wished), "failed": len(failed) - len(wished)}
    verdicts.seen[stage] = {"in": before, "kept": before - len(failed), **counts, "flagged": 0}


def _filter(verdicts: Verdicts, stage: Any, rows: pa.Table) -> None:
    names = kept_from(stage)
    if stage.has("measure"):
        _measured(verdicts, stage, rows, names)
        places = np.flatnonzero(verdicts.alive & valid(rows, names))
    else:  # what an empty column means is for the stage to say
        _seen_by_now(verdicts, stage.name, int(verdicts.alive.sum()))
        places = np.flatnonzero(verdicts.alive)
    if not stage.has("keep"):
        return
    columns = as_columns(rows.select(names).take(pa.array(places)), names)
    with blamed(stage, "keep"):
        mask = np.asarray(stage.keep(columns))
    if mask.dtype.kind != "b" or mask.shape != places.shape:
        raise CuratorError(
            f"{stage.name}.keep gave {mask.dtype} {mask.shape}; it must give one bool per row: bool {places.shape}."
        )
    out = places[~mask]
    cause, reason = reasons(stage, {name: column[~mask] for name, column in columns.items()})
    _drop(verdicts, stage, out, cause, reason)
    verdicts.remarks += _without(stage, rows, len(places)) if not len(out) else ()
    if stage.has("remarks"):
        with blamed(stage, "remarks"):
            verdicts.remarks += [f"{stage.name}: {remark}" for remark in stage.remarks(columns, mask)]


def _without(stage: Any, rows: pa.Table, alive: int) -> list[str]:
    """That a filter dropped nothing since no image has what it decides from, as vectors without a table have not."""
    empty = [name for name in columns_of(stage) if name in READ_GIVES and rows.column(name).null_count == rows.num_rows]
    if not empty or not alive:
        return []
    return [f"{stage.name}: none of {counted(alive, 'image')} has a {' or '.join(empty)}, so none was dropped for it"]


def _measured(verdicts: Verdicts, stage: Any, rows: pa.Table, names: Sequence[str]) -> None:
    """A sound image without a score must never pass a filter: it fails, and says so.

    Only where it lacks a column that the score is made from, such as a caption, is there nothing to judge.
    """
    _failures(verdicts, stage.name, rows, f"{stage.name}.")
    if not any(isinstance(need, Pixels | Embedding) for need in stage.needed()):
        return
    places = np.flatnonzero(verdicts.alive & ~valid(rows, names) & valid(rows, measured_from(stage)))
    detail = f"{stage.name} has no value for this image; run the same command again"
    verdicts.note(stage.name, places, FAILED, Cause.STAGE_ERROR.value, [detail] * len(places))
    verdicts.seen[stage.name]["failed"] += len(places)
    verdicts.seen[stage.name]["kept"] -= len(places)


def _drop(verdicts: Verdicts, stage: Any, out: Array, cause: Sequence[str] | str, reason: Sequence[str]) -> None:
    seen = verdicts.seen[stage.name]
    if stage.action == "flag":
        verdicts.flag(stage.name, out, reason)
        seen["flagged"] += len(out)
        return
    verdicts.note(stage.name, out, DROPPED, cause, reason)
    seen["dropped"] += len(out)
    seen["kept"] -= len(out)


def reasons(stage: Any, columns: Mapping[str, Array]) -> tuple[Any, list[str]]:
    """Cause and reason of rows that a filter does not keep: its own `why`, or its score against its threshold.

    `why` gives a text for each row, or a pair of a cause and a text.
    """
    if stage.has("why"):
        with blamed(stage, "why"):
            told = [why if isinstance(why, tuple) else ("filtered", why) for why in stage.why(columns)]
            return np.array([str(cause) for cause, _ in told], object), [str(text) for _, text in told]
    threshold = getattr(stage, "score_threshold", None)
    if threshold is None or not stage.gives:
        return "filtered", [f"not kept by {stage.name}"] * len(next(iter(columns.values()), ()))
    scores = columns[stage.gives[0]]
    causes = np.where(scores < threshold, "below_threshold", "above_threshold").astype(object)
    return causes, [compared(float(score), threshold) for score in scores]


def compared(score: float, threshold: float) -> str:
    """`0.31 < 0.5`: with as many digits as it takes to see which is larger."""
    sign = "<" if score < threshold else ">="
    for digits in range(2, 10):
        if float(f"{score:.{digits}f}") != threshold or score == threshold:
            break
    return f"{score:.{digits}f} {sign} {max(f'{threshold:.2f}', f'{threshold:g}', key=len)}"


def _choose(verdicts: Verdicts, stage: Any, rows: pa.Table, found: Found | None) -> None:
    alive = verdicts.alive
    choice = _choice(stage, rows, found, alive)
    count = len(alive)
    alone = choice.unrepresented[:count] if choice.unrepresented is not None else np.zeros(count, bool)
    dropped_by = choice.dropped_by[:count]
    elsewhere = (dropped_by >= count) & alive
    represented = (dropped_by >= 0) & alive & ~elsewhere
    out = np.flatnonzero(represented | elsewhere | (alone & alive))
    if not (alive & (dropped_by < 0) & ~alone)[dropped_by[represented]].all():
        raise CuratorError(f"{stage.name}.choose drops rows for rows that do not stay; each must name one that does.")
    _seen_by_now(verdicts, stage.name, int(alive.sum()))
    # the names of rows are added when the ledger is written
    words = [choice.reason.format(similarity=similarity) for similarity in choice.similarity[out]]
    resembles = np.where(alone, -1 if choice.resembles is None else choice.resembles[:count], dropped_by)
    words = [UNREPRESENTED if resembles[row] < 0 else told for row, told in zip(out, words, strict=True)]
    verdicts.remarks += choice.remarks if stage.action != "flag" or not len(out) else ()
    verdicts.walked += choice.walked
    if stage.action == "flag":
        verdicts.flag_for(stage.name, out, words, resembles[out], None if found is None else found.outside)
        verdicts.seen[stage.name]["flagged"] += len(out)
        return
    verdicts.resembles[out] = np.where(elsewhere, -1, resembles)[out]
    verdicts.dropped_by[out] = np.where(elsewhere, -1, dropped_by)[out]
    verdicts.similarity[out] = np.where(alone, np.nan, choice.similarity[:count])[out]
    verdicts.alone[out] = alone[out]
    if elsewhere.any():
        assert found is not None
        verdicts.kept_elsewhere(found.outside, np.flatnonzero(elsewhere), dropped_by[elsewhere] - count)
    _drop(verdicts, stage, out, choice.cause, words)
    follow_representatives(verdicts)


def _choice(stage: Any, rows: pa.Table, found: Found | None, alive: Mask) -> Choice:
    """What the stage chooses. Rows that were kept elsewhere stand behind the others, alive and without columns."""
    columns = dict(as_columns(rows, _chosen_from(stage, rows)))
    if found is not None:
        columns |= {"piece": found.piece, "row": found.row}
    if found is not None and found.outside is not None:
        more = found.outside.num_rows
        columns = {name: _lengthened(column, more) for name, column in columns.items()}
        for name in ("piece", "row"):
            columns[name] = np.concatenate([columns[name][: len(alive)], found.outside.column(name).to_numpy()])
        columns["outside"] = np.arange(len(alive) + more) >= len(alive)
        alive = np.concatenate([alive, np.ones(more, bool)])
    with blamed(stage, "choose"):
        choice: Choice = stage.choose(columns, None if found is None else found.table, alive)
    return choice


def _lengthened(column: Array, more: int) -> Array:
    """A column with so many empty values behind it."""
    empty = np.full(more, None, object) if column.dtype.kind == "O" else np.full(more, np.nan)
    return np.concatenate([column, empty.astype(column.dtype) if column.dtype.kind in "fO" else empty])


def _chosen_from(stage: Any, rows: pa.Table) -> list[str]:
    """The columns that `choose` is given: all numbers, and of texts those that the stage measured or asks for."""
    asked = {*columns_of(stage), *given_by(stage)}
    return [f.name for f in rows.schema if pa.types.is_primitive(f.type) or f.name in asked]


def _seen_by_now(verdicts: Verdicts, stage: str, alive: int) -> None:
    """Begin the stage's count of what it chooses among, behind all filters; what it measured before counts as well."""
    seen = verdicts.seen.pop(stage, {})
    out = {name: seen.get(name, 0) for name in ("dropped", "failed", "flagged")}
    verdicts.seen[stage] = {"in": alive + out["dropped"] + out["failed"], "kept": alive, **out}


def follow_representatives(verdicts: Verdicts) -> None:
    """Where a later stage dropped a representative, the rows that it stood for go over to its own, if it has one.

    How similar they are to that one was not measured: not more than the less similar step on the way is claimed, which
    is exact for copies.
    """
    by, outside = verdicts.dropped_by, verdicts.outside_of
    while True:
        if len(outside):
            away = (by >= 0) & (outside[np.maximum(by, 0)] >= 0)
            verdicts.similarity[away] = np.minimum(verdicts.similarity[away], verdicts.similarity[by[away]])
            outside[away], by[away] = outside[by[away]], -1
        moved = (by >= 0) & (by[np.maximum(by, 0)] >= 0)
        if not moved.any():
            break
        verdicts.similarity[moved] = np.minimum(verdicts.similarity[moved], verdicts.similarity[by[moved]])
        by[moved] = by[by[moved]]
    left = (by >= 0) & verdicts.alone[np.maximum(by, 0)]
    by[left], verdicts.similarity[left] = -1, np.nan


def duplicate_columns(verdicts: Verdicts, shards: pa.Array, keys: pa.Array, number: Array) -> dict[str, pa.Array]:
    """The ledger's four duplicate columns; `number` (N,) are the rows' places in the ledger."""
    by = verdicts.dropped_by
    has = by >= 0
    of = pa.array(np.maximum(by, 0), mask=~has)
    group = np.where(has, number[np.maximum(by, 0)], -1)
    group[np.unique(by[by >= 0])] = number[np.unique(by[by >= 0])]
    names = [shards.take(of).cast(pa.string()), keys.take(of)]
    if verdicts.outside is not None:
        away = verdicts.outside_of >= 0
        there = verdicts.outside.take(pa.array(verdicts.outside_of[away]))
        given = zip(names, (there.column(name) for name in ("shard", "key")), strict=True)
        names = [pc.replace_with_mask(name, pa.array(away), more.combine_chunks()) for name, more in given]
        has = has | away
    columns = (
        *names,
        pa.array(verdicts.similarity, mask=~has),
        pa.array(group, mask=group < 0),
    )
    return dict(zip(DUPLICATE.names, columns, strict=True))
