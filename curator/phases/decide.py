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

from curator.custom import blamed
from curator.errors import Cause, CuratorError
from curator.ledger import DUPLICATE
from curator.phases.columns import as_columns, valid
from curator.stage import Array, Choice, Embedding, Mask, Pixels, ProcessingStage

KEPT, DROPPED, FAILED = 0, 1, 2
STATUS = np.array(["kept", "dropped", "failed"], object)


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
    seen: dict[str, dict[str, int]] = field(default_factory=dict)  # stage -> in, kept, dropped, failed, flagged
    remarks: list[str] = field(default_factory=list)  # of collection stages
    walked: int = 0  # rows whose pairs were not stored and were compared again

    @classmethod
    def of(cls, count: int) -> Verdicts:
        """N rows, all kept so far."""
        stage, cause, reason = (np.full(count, None, object) for _ in range(3))
        nobody, never = np.full(count, -1, np.int64), np.full(count, np.nan)
        return cls(np.zeros(count, np.int8), stage, cause, reason, np.full(count, "", object), nobody, never)

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

    def flag(self, stage: str, rows: Array, reason: Sequence[str]) -> None:
        """Say what a stage with `action=flag` would have done."""
        for row, why in zip(rows, reason, strict=True):
            self.flags[row] = "; ".join(filter(None, (self.flags[row], f"{stage}: {why}")))


def decide(
    stages: Sequence[ProcessingStage], rows: pa.Table, found: Mapping[str, tuple[pa.Table, Array, Array]]
) -> Verdicts:
    """One verdict per row of `rows`: reading's columns, then those of every image stage, `<stage>.cause` beside them.

    `found` has, by collection stage, what it found and where each row stands in it: (N,) piece and (N,) row.
    """
    verdicts = Verdicts.of(rows.num_rows)
    for stage in stages:
        if stage.has("index"):
            _failures(verdicts, stage.name, rows, "")
        elif stage.kind == "image":
            _filter(verdicts, stage, rows)
    for stage in stages:
        if stage.kind == "collection":
            _choose(verdicts, stage, rows, *found[stage.name])
    return verdicts


def _failures(verdicts: Verdicts, stage: str, rows: pa.Table, prefix: str) -> None:
    """Rows that a stage has no values for, for a reason of theirs."""
    before = int(verdicts.alive.sum())
    causes = rows.column(prefix + "cause")
    failed = np.flatnonzero(causes.combine_chunks().is_valid().to_numpy(zero_copy_only=False) & verdicts.alive)
    if len(failed):
        details = rows.column(prefix + "detail").take(failed).to_pylist()
        verdicts.note(stage, failed, FAILED, np.array(causes.take(failed).to_pylist(), object), details)
    after = before - len(failed)
    verdicts.seen[stage] = {"in": before, "kept": after, "dropped": 0, "failed": len(failed), "flagged": 0}


def _filter(verdicts: Verdicts, stage: Any, rows: pa.Table) -> None:
    _failures(verdicts, stage.name, rows, f"{stage.name}.")
    names = [n for n in stage.gives if n != "embedding"]
    if any(isinstance(need, Pixels | Embedding) for need in stage.needed()):
        _unmeasured(verdicts, stage.name, np.flatnonzero(verdicts.alive & ~valid(rows, names)))
    if not stage.has("keep"):
        return
    places = np.flatnonzero(verdicts.alive & valid(rows, names))
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


def _unmeasured(verdicts: Verdicts, stage: str, places: Array) -> None:
    """A sound image without a score must never pass a filter: it fails, and says so."""
    detail = f"{stage} has no value for this image; run the same command again"
    verdicts.note(stage, places, FAILED, Cause.STAGE_ERROR.value, [detail] * len(places))
    verdicts.seen[stage]["failed"] += len(places)
    verdicts.seen[stage]["kept"] -= len(places)


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
    """Cause and reason of rows that a filter does not keep: its own `why`, or its score against its threshold."""
    if stage.has("why"):
        with blamed(stage, "why"):
            return "filtered", [str(why) for why in stage.why(columns)]
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


def _choose(verdicts: Verdicts, stage: Any, rows: pa.Table, found: pa.Table, piece: Array, row: Array) -> None:
    alive = verdicts.alive
    names = [n for n in rows.column_names if pa.types.is_primitive(rows.schema.field(n).type)]
    columns = {**as_columns(rows, names), "piece": piece, "row": row}
    choice: Choice = stage.choose(columns, found, alive)
    alone = choice.unrepresented if choice.unrepresented is not None else np.zeros(len(alive), bool)
    out = np.flatnonzero(((choice.dropped_by >= 0) | alone) & alive)
    before = int(alive.sum())
    verdicts.seen[stage.name] = {"in": before, "kept": before, "dropped": 0, "failed": 0, "flagged": 0}
    if stage.action == "flag":
        _drop(verdicts, stage, out, choice.cause, [f"near-duplicate {s:.3f}" for s in choice.similarity[out]])
        return
    verdicts.remarks += choice.remarks
    verdicts.walked += choice.walked
    verdicts.dropped_by[out] = choice.dropped_by[out]
    verdicts.similarity[out] = choice.similarity[out]
    reason = np.where(alone[out], "near-duplicate of an image that is dropped as well", "").tolist()
    _drop(verdicts, stage, out, choice.cause, reason)  # one that names a row is written with the ledger
    follow_representatives(verdicts)


def follow_representatives(verdicts: Verdicts) -> None:
    """Where a later stage dropped a representative, the rows that it stood for go over to its own."""
    by = verdicts.dropped_by
    while True:
        moved = (by >= 0) & (by[np.maximum(by, 0)] >= 0)
        if not moved.any():
            return
        by[moved] = by[by[moved]]


def duplicate_columns(verdicts: Verdicts, shards: pa.Array, keys: pa.Array, number: Array) -> dict[str, pa.Array]:
    """The ledger's four duplicate columns; `number` (N,) are the rows' places in the ledger."""
    by = verdicts.dropped_by
    has = by >= 0
    of = pa.array(np.maximum(by, 0), mask=~has)
    group = np.where(has, number[np.maximum(by, 0)], -1)
    group[np.unique(by[has])] = number[np.unique(by[has])]
    columns = (
        shards.take(of).cast(pa.string()),
        keys.take(of),
        pa.array(verdicts.similarity, mask=~has),
        pa.array(group, mask=group < 0),
    )
    return dict(zip(DUPLICATE.names, columns, strict=True))
