"""What `run.json` says about a run, and the hash that tells whether another run would give the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator import address
from curator.cluster import Cluster
from curator.custom import identity_of
from curator.errors import TRANSIENT
from curator.ledger import counts
from curator.models.weights import digest
from curator.phases.columns import Found
from curator.phases.decide import Verdicts
from curator.phases.measure import Census
from curator.settings import Settings
from curator.stage import ProcessingStage, Role
from curator.wiring import Plan, given_by

PACKAGES = ("curator", "dask", "hydra-core", "numpy", "open_clip_torch", "pillow", "pyarrow", "torch")


def run_identity(plan: Plan, settings: Settings, census: Census, found: Mapping[str, Found]) -> str:
    """A hash of everything that the output depends on: inputs, measurements, decisions, writers."""
    inputs = [
        [k.shard.given, list(k.contents), [k.damage.cause, k.damage.detail] if k.damage else None]
        for k in census.shards
    ]
    stages = [
        [s.name, identity_of(type(s)), plan.keys.get(s.name), fields_that_matter(s), decided_from(s)]
        for s in plan.stages
        if not s.has("list")
    ]
    before = {name: list(its.before) for name, its in found.items()}
    told = {"inputs": inputs, "stages": stages, "before": before, "write_images": settings.write_images}
    return address.tagged("run", told)


def fields_that_matter(stage: ProcessingStage) -> dict[str, Any]:
    """The settings that change what comes out."""
    names = {n for n in type(stage).model_fields if stage.role_of(n) is not Role.SPEEDS}
    return stage.model_dump(mode="json", include=names)


def decided_from(stage: ProcessingStage) -> list[str]:
    """SHA-256 (hex) of the files that a stage decides from."""
    return [digest(path) for path in stage.decided_from()]


def run_record(
    name: str,
    plan: Plan,
    settings: Settings,
    census: Census,
    found: Mapping[str, Found],
    verdicts: Verdicts,
    ledger: pa.Table,
    facts: Mapping[str, Any],
    seconds: Mapping[str, float],
    identity: str,
    *,
    cluster: Cluster | None,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole of run.json, less the parts that the output folder adds."""
    return {
        "name": name,
        "counts": counts(ledger),
        "stages": verdicts.seen,
        "work": work(plan, census, found) | ({"walked": verdicts.walked} if verdicts.walked else {}),
        "remarks": verdicts.remarks,
        "seconds": {phase: round(took, 3) for phase, took in seconds.items()},
        "stage_seconds": {stage: round(took, 3) for stage, took in census.seconds.items()},
        "open": max(open_rows(ledger), int(census.is_open)),
        "damaged_shards": sum(k.damage is not None for k in census.shards),
        "damaged_objects": census.damaged,
        "passed_over": sum(k.passed_over for k in census.shards),
        "write": {key: value for key, value in facts.items() if key != "ledger_sha256"},
        "ledger_sha256": facts["ledger_sha256"],
        "identity": identity,
        "store": str(settings.store_place),
        "config": {
            **settings.model_dump(mode="json"),
            "stages": {s.name: s.model_dump(mode="json", exclude={"name"}) for s in plan.stages},
        },
        "keys": plan.keys,
        "spaces": {s.name: s.space for s in plan.embedders},
        "embeddings": {s.name: plan.embedding(s.name) for s in plan.embedders},
        "inputs": [
            {"shard": k.shard.given, "samples": k.samples, "contents": list(k.contents), "found": asdict(k.shard)}
            for k in census.shards
        ],
        "preprocessing": {s.name: asdict(s.preprocessing) for s in plan.images if hasattr(s, "preprocessing")},
        "weights": {stage: [w.id for w in ws] for stage, ws in plan.weights.items() if ws},
        "decided_from": {s.name: decided_from(s) for s in plan.stages if s.decided_from()},
        "measured_with": census.provenance,
        "cluster": cluster.describe() if cluster is not None else {"kind": "none", "line": "all came from the store"},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        **record,
    }


def work(plan: Plan, census: Census, found: Mapping[str, Found]) -> dict[str, int]:
    """The images on which each kind of work was done in this run; 0 where all came from the store."""
    embeds = {s.name for s in plan.embedders}
    hashes = {s.name for s in plan.images if given_by(s) and all(name.endswith("_hash") for name in given_by(s))}
    rows = census.measured
    return {
        "decoded": census.decoded,
        "embedded": max((rows[name] for name in embeds), default=0),
        "scored": max((rows[s.name] for s in plan.images if s.name not in {*embeds, *hashes}), default=0),
        "paired": max((f.compared for f in found.values()), default=0),
        **({"hashed": max(rows[name] for name in hashes)} if hashes else {}),
    }


def open_rows(ledger: pa.Table) -> int:
    """Rows that failed by the machine's fault: the next run tries them again."""
    return int(pc.sum(pc.is_in(ledger.column("cause"), pa.array(sorted(TRANSIENT)))).as_py() or 0)
