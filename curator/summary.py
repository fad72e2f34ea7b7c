"""The tables at the end of a run: what each stage did, how scores are spread, what other thresholds would keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from curator.ledger import causes
from curator.phases.columns import as_columns, valid
from curator.progress import table
from curator.stage import Array
from curator.wiring import Plan

BARS = " ▁▂▃▄▅▆▇█"
COLUMNS = 24
STEPS = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)


def summary_lines(ledger: pa.Table, plan: Plan, run: dict[str, Any], output: str) -> str:
    """Everything that is printed when a run is done, as one text."""
    total = run["counts"]
    blocks = [stage_table(run)]
    blocks += list(_scores(ledger, plan))
    blocks.append("\n".join(_closing(total, run, output, plan, causes(ledger))))
    return "\n".join(blocks)


def stage_table(run: dict[str, Any]) -> str:
    """Per stage: in, kept, dropped, failed, seconds."""
    rows = []
    for name, seen in run["stages"].items():
        seconds = run["stage_seconds"].get(name)
        took = "stored" if seconds is None else f"{seconds:.1f}"
        flagged = f" ({seen['flagged']:,} flagged)" if seen["flagged"] else ""
        rows.append([name, f"{seen['in']:,}", f"{seen['kept']:,}{flagged}", f"{seen['dropped']:,}",
                     f"{seen['failed']:,}", took])  # fmt: skip
    return table("", ["stage", "in", "kept", "dropped", "failed", "seconds"], rows)


def _scores(ledger: pa.Table, plan: Plan) -> Iterator[str]:
    """For each filter with a score threshold: its distribution, and what other thresholds would have kept."""
    for stage in plan.images:
        if not hasattr(stage, "score_threshold") or not stage.has("keep"):
            continue
        names = [n for n in stage.gives if n != "embedding"]
        columns = as_columns(ledger.filter(pa.array(valid(ledger, names))), names)
        scores = columns[names[0]]
        if len(scores):
            yield "\n".join([_distribution(names[0], scores), _alternatives(stage, columns)])


def _distribution(name: str, scores: Array) -> str:
    low, *middle, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
    counts, _ = np.histogram(scores, bins=COLUMNS, range=(float(low), float(high) if high > low else float(low) + 1))
    bars = "".join(BARS[int(np.ceil(8 * c / counts.max()))] for c in counts)
    marks = "  ".join(f"{label} {v:.2f}" for label, v in zip(("5%", "median", "95%"), middle, strict=True))
    return f"{name:<16} {low:.2f} {bars} {high:.2f}   {marks}"


def _alternatives(stage: Any, columns: dict[str, Array] | Any) -> str:
    """How many of all measured images this filter alone keeps, at its threshold and at others."""
    parts = []
    for threshold in sorted({round(stage.score_threshold + step, 4) for step in (*STEPS, 0.0)}):
        try:
            other = type(stage).model_validate({**stage.model_dump(), "score_threshold": threshold})
        except ValueError:  # outside what the stage allows
            continue
        kept = int(np.sum(other.keep(columns)))
        shown = f"{threshold:.2f}: {kept:,}"
        parts.append(f"[{shown}]" if threshold == round(stage.score_threshold, 4) else shown)
    return f"  keeps of {len(next(iter(columns.values()))):,} at  " + "  ".join(parts)


def _closing(total: dict[str, Any], run: dict[str, Any], output: str, plan: Plan, causes: str) -> Iterator[str]:
    work = run["work"]
    damaged = run["damaged_shards"]
    shards = f" ({damaged} of them for a damaged shard as a whole)" if damaged else ""
    yield (
        f"{total['inputs']:,} in = {total['kept']:,} kept + {total['dropped']:,} dropped + {total['failed']:,} failed"
        f"{shards}; ledger sha256 {run['ledger_sha256'][:12]}"
    )
    yield (
        f"done on images in this run: decoded {work['decoded']:,}, embedded {work['embedded']:,}, "
        f"scored {work['scored']:,}, compared {work['paired']:,}"
    )
    if causes:
        yield f"failed: {causes}"
    if run["passed_over"]:
        yield f"passed over: {run['passed_over']:,} (files that belong to no image, dot-names, links to folders)"
    if not total["kept"] and plan.writers and run["config"]["write_images"]:
        yield "nothing was kept, so no shards were written; the ledger says why"
    yield from _remarks(run)
    for stage in plan.images if not plan.collections and not plan.writers else ():
        if "embedding" in stage.gives:
            place = f"{run['config']['store']}/{stage.name}"
            yield f"{stage.name}: its vectors are in {place}: float16, an Arrow stream for each piece"
    yield f"the result is in {output}"
    yield from _next(plan)


def _remarks(run: dict[str, Any]) -> Iterator[str]:
    yield from run["remarks"]
    for writer, facts in run["write"].items():
        for remark in facts.get("remarks", []):
            yield f"{writer}: {remark}"
    mixed = {stage: with_what for stage, with_what in run["measured_with"].items() if len(with_what) > 1}
    for stage, with_what in mixed.items():
        yield f"{stage}: measured in different ways: {'; '.join(with_what)}"
    if run["open"]:
        yield f"{run['open']:,} images failed by this machine's fault; run the same command again to retry them"


def _next(plan: Plan) -> Iterator[str]:
    tunable = [s for s in plan.images if hasattr(s, "score_threshold")]
    if tunable:
        stage = tunable[-1]
        yield (
            f"try next: the same command with {stage.name}.score_threshold=... (measures nothing again), "
            f"or -m {stage.name}.score_threshold=0.4,0.5,0.6 to compare"
        )
