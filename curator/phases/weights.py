"""Weights are fetched before measuring begins, and only those of stages that have something to measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curator.formats.base import Shard
from curator.models.weights import ensure
from curator.phases.measure import survey, weights_needed
from curator.store import Store
from curator.wiring import Plan


def have(plan: Plan, store: Store, shards: Sequence[Shard], fingerprint: str, voice: Any) -> None:
    """Fetch what is missing. Raises WeightsError that says which file, where from and where to put it."""
    if not any(plan.weights.values()):
        return
    for name in weights_needed(plan, store, survey(plan, store, shards, fingerprint)):
        for weights in plan.weights[name]:
            if weights.path is None:
                voice.say(f"{name}: weights are not here yet")
                ensure(weights)
