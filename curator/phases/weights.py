"""Weights are fetched before measuring begins, and only those of stages that have something to measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curator.errors import WeightsError
from curator.formats.base import Shard
from curator.models.weights import ensure
from curator.phases.measure import survey, weights_needed
from curator.store import Store
from curator.wiring import Plan


def have(plan: Plan, store: Store, shards: Sequence[Shard], fingerprint: str, voice: Any) -> None:
    """Fetch what is missing. Raises one WeightsError for all: which files, where from and where to put them."""
    if all(weights.path is not None for several in plan.weights.values() for weights in several):
        return
    problems = []
    for name in weights_needed(plan, store, survey(plan, store, shards, fingerprint)):
        for weights in plan.weights[name]:
            if weights.path is None:
                voice.say(f"{name}: weights are not here yet")
                try:
                    ensure(weights)
                except WeightsError as error:
                    problems.append(f"{name}: {error}")
    if problems:
        raise WeightsError("\n".join(problems))
