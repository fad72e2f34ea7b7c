"""Choosing again at another threshold: seconds of the first setting and of each further one, over drawn pairs.

    python scripts/bench_choose.py [ROWS] [PAIRS]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pyarrow as pa

from curator.pairs.found import CELL, NEAR, NOTHING
from curator.stages.dedup import SemanticDeduplicationStage

THRESHOLDS = (0.95, 0.97, 0.96, 0.93, 0.99)


def found(rows: int, pairs: int, rng: np.random.Generator) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """What a search would have found: pairs drawn at random; and piece and row of everybody."""
    a, b = rng.integers(0, rows, (2, pairs))
    a, b = np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    piece, row = (np.arange(rows) // 1024).astype(np.int32), (np.arange(rows) % 1024).astype(np.int32)
    columns = {
        "kind": np.repeat(np.array([NEAR, CELL], np.int8), [len(a), rows]),
        "piece_a": np.concatenate([piece[a], piece]), "row_a": np.concatenate([row[a], row]),
        "piece_b": np.concatenate([piece[b], np.full(rows, -1, np.int32)]),
        "row_b": np.concatenate([row[b], np.zeros(rows, np.int32)]),
        "similarity": np.concatenate([rng.uniform(0.9, 1, len(a)), np.ones(rows)]),
        "vector": pa.nulls(len(a) + rows, pa.binary()),
    }  # fmt: skip
    return pa.table(columns).cast(NOTHING.schema), piece.astype(np.int64), row.astype(np.int64)


def main(rows: int = 1_000_000, pairs: int = 2_000_000) -> None:
    """One line for each setting."""
    rng = np.random.default_rng(0)
    table, piece, row = found(rows, pairs, rng)
    columns = {
        "piece": piece, "row": row, "aesthetic_score": rng.random(rows), "width": rng.integers(1, 5000, rows),
        "height": rng.integers(1, 5000, rows), "bytes": rng.integers(1, 10**6, rows),
    }  # fmt: skip
    print(f"{rows:,} rows, {pairs:,} pairs at or above 0.9\n\n| setting | dropped | seconds |\n|---|---|---|")
    for threshold in THRESHOLDS:
        alive = rng.random(rows) < 0.9  # other filters let others through
        begin = time.monotonic()
        choice = SemanticDeduplicationStage(similarity_threshold=threshold).choose(columns, table, alive)
        print(f"| {threshold} | {(choice.dropped_by >= 0).sum():,} | {time.monotonic() - begin:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
