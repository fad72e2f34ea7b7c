"""One table for a GPU: the matmul's peak, k-means and pairs at 1 M and 10 M x 768; and the same on this processor.

    python scripts/bench_gpu.py                    # needs a GPU, and 50 GB of disk for ten million rows
    python scripts/bench_gpu.py --device cpu --rows 100000

Vectors are those of scripts/vectors.py (the shared set). It has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vectors import collection

from curator.cluster import Cluster
from curator.compute import compute_for
from curator.desk import Desk
from curator.machine import ClusterSettings, gpus
from curator.pairs.found import NEAR, Found
from curator.pairs.plan import PER_CENTROID, cells_for
from curator.stages.dedup import SemanticDeduplicationStage

SIDE = 8192


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """The better of three."""
    best = float("inf")
    work()  # the first one loads what it needs
    for _ in range(3):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.monotonic()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.monotonic() - begin)
    return best


def matmul(device: str, side: int) -> str:
    """bfloat16 products of square matrices."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in "ab")
    return f"{2 * side**3 / seconds_of(lambda: a @ b, device) / 1e12:,.1f} Tflop/s"


def kmeans(device: str, rows: np.ndarray[Any, Any], cells: int) -> str:
    """Fitting and assigning, as the search does it."""
    compute = compute_for(device)
    compute.fit(rows[:64], 2, 0)  # libraries load with their first call
    begin = time.monotonic()
    centroids = compute.fit(rows[: PER_CENTROID * cells], cells, 0)
    fitted = time.monotonic()
    compute.assign(rows, centroids)
    return f"{fitted - begin:.1f} s to fit, {time.monotonic() - fitted:.1f} s to assign {len(rows):,}"


def pairs(made: Any, kind: str, floor: float) -> str:
    """The whole search on worker processes; this one gives the GPU back first."""
    if kind == "cuda":
        torch.cuda.empty_cache()
    desk = Desk(made.store, "bench-gpu", print)
    desk.clear()
    stage = SemanticDeduplicationStage(similarity_floor=floor, similarity_threshold=floor)
    with Cluster(ClusterSettings(kind=kind)) as cluster:
        begin = time.monotonic()
        found = stage.find(replace(made.vectors, desk=desk), cluster.each)
        took = time.monotonic() - begin
    desk.clear()
    return f"{took:.1f} s, {Found(found).of_kind(NEAR).num_rows:,} pairs"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--floor", type=float, default=0.95)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curator-vectors")
    given = parser.parse_args()
    if given.device == "cuda" and not gpus()[0]:
        raise SystemExit(f"bench_gpu: {gpus()[1]}. --device cpu measures the same on the processor.")
    name = torch.cuda.get_device_name() if given.device == "cuda" else f"{torch.get_num_threads()} processor threads"
    print(f"| {name} | |\n|---|---|")
    print(f"| matmul, bfloat16 | {matmul(given.device, SIDE if given.device == 'cuda' else 2048)} |", flush=True)
    for count in given.rows:
        made = collection(given.folder, "shared", count)
        rows = np.concatenate([made.vectors.read(a)[0] for a in made.addresses[: 1 + 1_000_000 // 1024]])
        print(f"| k-means, {count:,} rows' cells | {kmeans(given.device, rows, cells_for(count))} |", flush=True)
        told = pairs(made, "cuda" if given.device == "cuda" else "local", given.floor)
        print(f"| pairs, {count:,} x {rows.shape[1]}, floor {given.floor:g} | {told} |", flush=True)


if __name__ == "__main__":
    main()
