"""The tables at the end of a run: what each stage did, how scores are spread, what other thresholds would keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curator.errors import CuratorError
from curator.ledger import causes, reasons
from curator.phases.columns import as_columns, valid
from curator.progress import WIDEST, table, terminal_width
from curator.stage import Array
from curator.wiring import Plan, pixels_of

BARS = " ▁▂▃▄▅▆▇█"
COLUMNS = 24
FEWEST_COLUMNS = 8
STEPS = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)
REASONS = 3  # of failures that are told in words
REASON_LETTERS = 160


def summary_lines(ledger: pa.Table, plan: Plan, run: dict[str, Any], output: str) -> str:
    """Everything that is printed when a run is done, as one text."""
    blocks = [stage_table(run, plan)]
    blocks += list(_scores(ledger, plan))
    blocks.append("\n".join(_closing(ledger, run, output, plan)))
    return "\n".join(blocks)


def stage_table(run: dict[str, Any], plan: Plan) -> str:
    """Per stage: in, kept, dropped, failed, seconds. A damaged shard is one input that reading failed."""
    rows = []
    for name, seen in run["stages"].items():
        damaged = run["damaged_shards"] if name == plan.read.name else 0
        flagged = f" ({seen['flagged']:,} flagged)" if seen["flagged"] else ""
        rows.append([name, f"{seen['in'] + damaged:,}", f"{seen['kept']:,}{flagged}", f"{seen['dropped']:,}",
                     f"{seen['failed'] + damaged:,}", _took(name, run, plan)])  # fmt: skip
    return table("", ["stage", "in", "kept", "dropped", "failed", "seconds"], rows)


def _took(name: str, run: dict[str, Any], plan: Plan) -> str:
    """The seconds that a stage worked; `stored` where its results were there, nothing where it had nothing to do."""
    seconds = run["stage_seconds"].get(name)
    if seconds is not None:
        return f"{seconds:.1f}"
    stage = next(s for s in plan.stages if s.name == name)
    works = stage is plan.read or stage.has("measure") or stage.has("find")
    return "stored" if works and run["stages"][name]["in"] else ""


def _scores(ledger: pa.Table, plan: Plan) -> Iterator[str]:
    """For each filter with a score threshold: its distribution, and what other thresholds would have kept."""
    width = min(terminal_width() or WIDEST, WIDEST)
    for stage in plan.images:
        if not hasattr(stage, "score_threshold") or not stage.has("keep"):
            continue
        names = [n for n in stage.gives if n != "embedding"]
        columns = as_columns(ledger.filter(pa.array(valid(ledger, names))), names)
        scores = columns[names[0]]
        if len(scores):
            yield "\n".join([_distribution(names[0], scores, width), _alternatives(stage, columns, width)])


def _distribution(name: str, scores: Array, width: int) -> str:
    low, *middle, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
    marks = "  ".join(f"{label} {v:.2f}" for label, v in zip(("5%", "median", "95%"), middle, strict=True))
    before, behind = f"{name:<16} {low:.2f} ", f" {high:.2f}   {marks}"
    columns = max(FEWEST_COLUMNS, min(COLUMNS, width - len(before) - len(behind)))
    counts, _ = np.histogram(scores, bins=columns, range=(float(low), float(high) if high > low else float(low) + 1))
    return before + "".join(BARS[int(np.ceil(8 * c / counts.max()))] for c in counts) + behind


def _alternatives(stage: Any, columns: dict[str, Array] | Any, width: int) -> str:
    """How many of all measured images this filter alone keeps, at its threshold and at others: the nearest that fit."""
    parts: dict[float, str] = {}
    others = _thresholds(stage, STEPS)
    for threshold in others:
        kept = int(np.sum(_at(stage, threshold).keep(columns)))
        shown = f"{threshold:.2f}: {kept:,}"
        parts[threshold] = f"[{shown}]" if threshold == round(stage.score_threshold, 4) else shown
    head = f"  keeps of {len(next(iter(columns.values()))):,} at  "
    while len(parts) > 1 and len(head + "  ".join(parts.values())) > width:
        del parts[max(parts, key=lambda t: abs(t - stage.score_threshold))]
    return head + "  ".join(parts.values())


def _thresholds(stage: Any, steps: Sequence[float]) -> list[float]:
    """The stage's threshold and those so far from it that it takes, ascending."""
    unit = max(1.0, stage.score_threshold)  # no score of 0 to 1: the steps are parts of the threshold
    around = sorted({round(stage.score_threshold + step * unit, 4) for step in (*steps, 0.0)})
    return [threshold for threshold in around if _at(stage, threshold) is not None]


def _at(stage: Any, threshold: float) -> Any:
    """The same stage with another threshold; None where that is outside what it allows."""
    try:
        return type(stage).model_validate({**stage.model_dump(), "score_threshold": threshold})
    except (ValueError, CuratorError):
        return None


def _closing(ledger: pa.Table, run: dict[str, Any], output: str, plan: Plan) -> Iterator[str]:
    work, total = run["work"], run["counts"]
    damaged = run["damaged_shards"]
    shards = f" ({damaged} of them for a damaged shard as a whole)" if damaged else ""
    yield (
        f"{total['inputs']:,} in = {total['kept']:,} kept + {total['dropped']:,} dropped + {total['failed']:,} failed"
        f"{shards}; ledger sha256 {run['ledger_sha256'][:12]}"
    )
    hashed = f", hashed {work['hashed']:,}" if "hashed" in work else ""
    yield (
        f"done on images in this run: decoded {work['decoded']:,}, embedded {work['embedded']:,}, "
        f"scored {work['scored']:,}{hashed}, compared {work['paired']:,}"
    )
    yield from _failures(ledger, run, plan)
    if run["passed_over"]:
        yield f"passed over: {run['passed_over']:,} (files that belong to no image, dot-names, links to folders)"
    if not total["kept"] and run["config"]["write_images"] and any(w.copies_images for w in plan.writers):
        yield "nothing was kept, so no shards were written; the ledger says why"
    yield from _remarks(run)
    for stage in plan.images if not plan.collections and not plan.writers else ():
        if "embedding" in stage.gives:
            place = f"{run['config']['store']}/{stage.name}"
            yield f"{stage.name}: its vectors are in {place}: float16, an Arrow stream for each piece"
    yield f"the result is in {output}"
    yield from _next(plan)


def _failures(ledger: pa.Table, run: dict[str, Any], plan: Plan) -> Iterator[str]:
    """The causes with their counts, the most frequent in words; and plainly, where nothing came through."""
    total = run["counts"]
    if not total["failed"]:
        return
    yield f"failed: {causes(ledger)}"
    for cause, reason in reasons(ledger, REASONS):
        line = " ".join(reason.split())
        yield f"  {cause}: {line if len(line) <= REASON_LETTERS else line[: REASON_LETTERS - 3] + '...'}"
    if total["failed"] < total["inputs"]:
        return
    yield (
        f"all {total['inputs']:,} inputs failed. With max_failed=0.5, a run of which more than half fail ends with "
        "exit 3 and replaces nothing"
    )
    own = [s.name for s in plan.images if pixels_of(s) and not type(s).__module__.startswith("curator.")]
    if own and run["open"] >= total["inputs"]:
        yield (
            f"every decoder died: that may be the doing of prepare in {' or '.join(own)}, which runs in it (it must "
            "not end its process, nor hang or fill the memory)"
        )


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
        near = sorted(_thresholds(stage, (-0.2, -0.1, 0.1, 0.2)), key=lambda t: abs(t - stage.score_threshold))[:3]
        yield (
            f"try next: the same command with {stage.name}.score_threshold=... (measures nothing again), "
            f"or -m {stage.name}.score_threshold={','.join(f'{t:g}' for t in sorted(near))} to compare"
        )
