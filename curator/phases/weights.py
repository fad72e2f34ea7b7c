"""Weights are fetched before measuring begins, and only those of stages that have something to measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curator.errors import WeightsError
from curator.formats.base import Shard
from curator.models.weights import ensure
from curator.phases.measure import survey, weights_needed
from curator.stage import Weights
from curator.store import Store
from curator.wiring import Plan
from curator.wording import together


def have(plan: Plan, store: Store, shards: Sequence[Shard], fingerprint: str, voice: Any) -> None:
    """Fetch what is missing. Raises one WeightsError for all: which files, where from and where to put them."""
    if all(weights.path is not None for several in plan.weights.values() for weights in several):
        return
    lacking: dict[Weights, list[str]] = {}
    for name in weights_needed(plan, store, survey(plan, store, shards, fingerprint)):
        for weights in plan.weights[name]:
            if weights.path is None:
                lacking.setdefault(weights, []).append(name)
    problems = []
    for weights, names in lacking.items():
        needing = " and ".join(dict.fromkeys(names))
        voice.say(f"{needing}: weights are not here yet")
        try:
            ensure(weights)
        except WeightsError as error:
            problems.append((needing, str(error)))
    if problems:
        raise WeightsError("\n".join(together(problems)))
