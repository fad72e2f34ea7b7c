"""A dry run: what would run on what, what the store already has, what is missing. Hashes nothing, writes nothing."""

from __future__ import annotations

from curator import address
from curator.phases.gather import is_found
from curator.phases.measure import survey
from curator.progress import table
from curator.settings import Settings
from curator.store import Store
from curator.units import counted
from curator.wiring import Plan
from curator.wording import together


def rehearsal(plan: Plan, settings: Settings) -> str:
    """The whole report as text."""
    shards = plan.shards(settings)
    store = Store(settings.store)
    known = survey(plan, store, shards, settings.fingerprint)
    contents = [c for k in known if k is not None for c in k.contents if c is not None]
    seen = sum(k is not None and k.hashed for k in known)
    samples = sum(k.samples for k in known if k is not None)
    lines = [
        f"input: {counted(len(shards), 'shard')}, {sum(s.bytes for s in shards) / 1e6:,.1f} MB; {seen:,} known from "
        f"before ({counted(samples, 'sample')}), {len(shards) - seen:,} to be looked at",
        table(
            "",
            ["stage", "stored", "to do", "weights"],
            [_row(plan, store, s.name, contents, len(shards) - seen) for s in plan.stages],
        ),
    ]
    lines += together((stage, w.missing) for stage, ws in plan.weights.items() for w in ws if w.missing and not w.path)
    return "\n".join([*lines, "dry run: nothing was done"])


def _row(plan: Plan, store: Store, stage: str, contents: list[str], unseen: int) -> list[str]:
    weights = plan.weights.get(stage, ())
    here = "" if not weights else "here" if all(w.path for w in weights) else "missing"
    if stage not in (plan.read.name, *(s.name for s in plan.images)):
        finder = next((s for s in plan.collections if s.name == stage and s.has("find")), None)
        if finder is None:
            return [stage, "", "", here]
        is_stored = not unseen and is_found(plan, store, finder, contents)
        return [stage, "its pairs" if is_stored else "", "" if is_stored else "to find pairs", here]
    stored = sum(store.has(stage, address.measurement(plan.keys[stage], c)) for c in contents)
    to_do = [counted(len(contents) - stored, "piece")] if len(contents) > stored or not unseen else []
    to_do += [f"all of {counted(unseen, 'shard')}"] if unseen else []
    return [stage, counted(stored, "piece"), " and ".join(to_do), here]
