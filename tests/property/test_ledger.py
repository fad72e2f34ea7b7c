"""The ledger adds up, whatever is put in: filters, duplicates, faults, flags, damaged shards."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import Cause
from curator.formats.base import Damage, Shard
from curator.ledger import check, counts
from curator.pairs.found import NEAR
from curator.phases.book import book
from curator.phases.columns import READ_SCHEMA, Found, Samples
from curator.phases.decide import Verdicts, compared, decide, follow_representatives
from curator.phases.inputs import Known
from curator.stages.dedup import SemanticDeduplicationStage
from curator.stages.read import ImageReaderStage
from tests.stages import Brightness


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=0, max_size=4),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.sampled_from(["drop", "flag"]),
)
def test_inputs_are_kept_dropped_or_failed(sizes, seed, threshold, action):
    """For any shards, faults, scores, missing scores, pairs and damage."""
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    shards = [
        Known(
            Shard(f"{n}.tar", f"/{n}.tar", "webdataset"), "", size, (0,) if size else (), ("x",) if size else (),
            Damage(Cause.TRUNCATED, "cut") if rng.random() < 0.4 else None,
        )
        for n, size in enumerate(sizes)
    ]  # fmt: skip
    table, shard, index = drawn(rng, sizes)
    pairs = rng.integers(0, max(count, 1), (2, count))
    pairs = np.unique(np.sort(pairs[:, pairs[0] != pairs[1]], axis=0), axis=1)
    found = pa.table(
        {
            "piece_a": pa.array(np.zeros(pairs.shape[1], np.int32)), "row_a": pa.array(pairs[0].astype(np.int32)),
            "piece_b": pa.array(np.zeros(pairs.shape[1], np.int32)), "row_b": pa.array(pairs[1].astype(np.int32)),
            "similarity": pa.array(rng.uniform(0.9, 1, pairs.shape[1])),
            "kind": pa.array(np.full(pairs.shape[1], NEAR, np.int8)), "vector": pa.nulls(pairs.shape[1], pa.binary()),
        }
    )  # fmt: skip
    stages = [ImageReaderStage(), Brightness(score_threshold=threshold, action=action), SemanticDeduplicationStage()]
    where = Found(found, np.zeros(count, np.int64), np.arange(count), 0)
    verdicts = decide(stages, table, {"dedup": where})
    ledger = book(Samples(table, shard, index), verdicts, shards, ["brightness"], "read")
    inputs = count + sum(s.damage is not None for s in shards)
    check(ledger, inputs, written=False)
    total = counts(ledger)
    assert total["kept"] + total["dropped"] + total["failed"] == inputs
    by_stage = total["by_stage"].values()
    assert sum(s["dropped"] for s in by_stage) == total["dropped"]
    assert sum(s["failed"] for s in by_stage) == total["failed"]
    rows = ledger.to_pylist()
    assert [r["shard"] for r in rows] == sorted(r["shard"] for r in rows)
    for row in rows:
        assert (row["status"] == "kept") == (row["stage"] is None)
        if row["status"] != "kept":
            assert row["reason"]


def drawn(rng, sizes):
    """What reading and one filter may have stored of some shards."""
    count = sum(sizes)
    failed = rng.random(count) < 0.2
    fields = {}
    for f in READ_SCHEMA:
        fields[f.name] = pa.nulls(count, f.type)
    fields["key"] = pa.array([f"{n}".encode() for n in range(count)], pa.binary())
    fields["notes"] = pa.array([""] * count, pa.string())
    fields["cause"] = pa.array(["truncated" if x else None for x in failed], pa.string())
    fields["detail"] = pa.array(["cut" if x else None for x in failed], pa.string())
    odd = ~failed & (rng.random(count) < 0.1)
    fields["brightness"] = pa.array(rng.random(count).astype(np.float32), mask=failed | odd)
    fields["brightness.cause"] = pa.array(["score_not_finite" if x else None for x in odd], pa.string())
    fields["brightness.detail"] = pa.array(["NaN" if x else None for x in odd], pa.string())
    index = np.concatenate([np.arange(s) for s in sizes]) if count else np.zeros(0, np.int64)
    return pa.table(fields), np.repeat(np.arange(len(sizes)), sizes), index


def test_a_reason_shows_as_many_digits_as_it_takes():
    """`0.50 < 0.50` would say nothing."""
    assert compared(0.31, 0.5) == "0.31 < 0.50"
    assert compared(0.49999, 0.5) == "0.49999 < 0.50"
    assert compared(0.5, 0.5) == "0.50 >= 0.50"
    assert compared(0.2, 0.125) == "0.20 >= 0.125"


def test_rows_go_over_to_the_representative_of_their_representative():
    """When a later collection stage drops it."""
    verdicts = Verdicts.of(5)
    verdicts.dropped_by[:] = [-1, 0, 1, 2, -1]
    follow_representatives(verdicts)
    assert verdicts.dropped_by.tolist() == [-1, 0, 0, 0, -1]
