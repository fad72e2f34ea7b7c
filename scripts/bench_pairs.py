"""Near pairs and cells at scale, on generated vectors, beside the published rules and faiss in the same run.

    python scripts/bench_pairs.py 100000 --peers --kmeans --brute      # everything, at a size that all of them manage
    python scripts/bench_pairs.py 100000 1000000 3000000               # ours alone, and how its time grows
    python scripts/bench_pairs.py 1000000 --peers --set flat           # faiss is asked for a sample of rows only

Peers need `pip install faiss-cpu scikit-learn`. Made vectors stay in `--folder` (1.6 GB for a million rows). All
sides run with the same threads, and where there is AVX-512 with OPENBLAS_CORETYPE=SkylakeX: on processors younger
than their OpenBLAS, NumPy and faiss would run at half speed or less. Prints a table a question. CPU seconds are of
all processes: a busy machine stretches them less, `--rounds 3` takes the quickest of each. With peers and several
sizes, memory of ours is clean at the first alone: later, the peers' libraries are loaded as well.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from pair_truth import Result, Truth, brute, pairs_of
from vectors import SETS, WIDTH, Collection, collection
from watch import MIB, Steps, Watch

from curator.cluster import Cluster
from curator.compute.cpu import CpuCompute
from curator.desk import Desk
from curator.machine import ClusterSettings, cores
from curator.pairs.found import NEAR, Found
from curator.pairs.plan import PER_CENTROID
from curator.stage import Array, Each
from curator.stages.dedup import SemanticDeduplicationStage

QUERIES_OF_FAISS = 20_000_000_000  # rows compared by faiss at most: beyond, a sample of the rows is asked for
ITERATIONS = 10
SAMPLE = 100_000  # rows by which the quality of centroids is judged


def find_pairs(made: Collection, floor: float, each: Each, **settings: Any) -> pa.Table:
    """The engine under test: the only place that knows how it is called."""
    stage = SemanticDeduplicationStage(similarity_floor=floor, similarity_threshold=max(floor, 0.95), **settings)
    desk = Desk(made.store, f"bench-{floor:g}", print)
    desk.clear()  # of an earlier round
    try:
        return stage.find(replace(made.vectors, desk=desk), each)
    finally:
        desk.clear()


def find_centroids(rows: Array, k: int, sampled: bool) -> Array:
    """The engine's k-means, (K, D) float32; `sampled`: as its cells are made, from some rows for each centroid."""
    if sampled and len(rows) > PER_CENTROID * k:
        rows = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[: PER_CENTROID * k])]
    return CpuCompute().fit(rows, k, 0)


def ours(made: Collection, floor: float, **settings: Any) -> Result:
    """The engine on worker processes that start before the clock does; what it found is stored, as in a run."""
    start, find, choose = Watch(), Watch(), Watch()
    with start:
        cluster = Cluster(ClusterSettings(kind="local")).__enter__()
    try:
        steps = Steps(cluster.each)
        with find:
            found = find_pairs(made, floor, steps, **settings)
            made.store.put("dedup", "0" * 64, found, {"open": False})
    finally:
        cluster.__exit__(None, None, None)
    near = Found(found).of_kind(NEAR)
    a, b = (made.number(*(near.column(f"{part}_{s}").to_numpy() for part in ("piece", "row"))) for s in "ab")
    piece = np.repeat(np.arange(len(made.addresses)), [made.size(n) for n in made.block])
    row = np.concatenate([np.arange(made.size(n)) for n in made.block])
    stage = SemanticDeduplicationStage(similarity_floor=floor, similarity_threshold=max(floor, 0.95), keep=("first",))
    with choose:
        stage.choose({"piece": piece, "row": row}, found, np.ones(made.count, bool))
    rest = find.seconds - sum(seconds for _, seconds in steps.taken.values())
    taken = {
        "vectors made (once)": (0, made.seconds),
        "workers started": (0, start.seconds),
        **{f"find: {name}": step for name, step in steps.taken.items()},
        "find: what the driver does beside": (0, rest),
        "choose": (0, choose.seconds),
    }
    similarity = near.column("similarity").to_numpy()
    return Result("Curator", find, pairs_of(made.count), a, b, steps=taken, similarity=similarity)


def peers(made: Collection, floor: float, cells_wanted: int) -> list[Result]:
    """Each published way on the same rows, in turn."""
    import pair_peers as peer

    peer.settle(cores())
    rows, results = made.load(), list[Result]()
    with Watch() as watch:
        cells = peer.assigned(rows, peer.faiss_centroids(rows, cells_wanted, 20, True))
    results.append(Result(f"cells of (a) and (b): faiss k-means, {cells_wanted:,}", watch, 0))
    for label, rule in (("(a) SemDeDup's rule", peer.semdedup), ("(b) NeMo Curator's loop", peer.nemo)):
        with Watch() as watch:
            dropped = rule(rows, cells, floor)
        results.append(Result(label, watch, cells.pairs, dropped=dropped))
    asked = np.arange(made.count)
    if made.count**2 > QUERIES_OF_FAISS:
        asked = np.sort(np.random.default_rng(0).choice(made.count, QUERIES_OF_FAISS // made.count, replace=False))
    with Watch() as watch:
        a, b = peer.faiss_pairs(rows, asked, floor)
    few = len(asked) < made.count
    label = "(c) faiss range_search" + (f", for {len(asked):,} rows" if few else "")
    # a search of all rows meets each pair twice, and is given it once; of a part of them, the same share
    results.append(Result(label, watch, len(asked) * (made.count - 1) // 2, a, b, asked=asked if few else None))
    if not few:
        with Watch() as watch:
            a, b = peer.faiss_halves(rows, floor)
        results.append(Result("(c) the same, each pair compared once", watch, pairs_of(made.count), a, b))
    return results


def kmeans(made: Collection, k: int) -> list[str]:
    """Centroids at equal work and as cells need them, judged by the mean cosine of a sample of rows to the nearest."""
    import pair_peers as peer

    peer.settle(cores())
    rows = made.load()
    lines: list[tuple[str, Watch, Any]] = []
    for sampled in (False, True):
        with Watch() as watch:
            centroids = find_centroids(rows, k, sampled)
        lines.append((f"Curator, {f'{PER_CENTROID} rows for each' if sampled else 'all rows'}", watch, centroids))
    ways: list[tuple[str, Callable[[], Array]]] = [
        ("faiss, all rows", lambda: peer.faiss_centroids(rows, k, ITERATIONS, False)),
        (
            f"faiss, {min(256 * k, made.count):,} rows (its default)",
            lambda: peer.faiss_centroids(rows, k, ITERATIONS, True),
        ),
        ("MiniBatchKMeans, all rows", lambda: peer.minibatch_centroids(rows, k, ITERATIONS)),
        ("MiniBatchKMeans, 1 pass", lambda: peer.minibatch_centroids(rows, k, 1)),
    ]
    for label, way in ways:
        with Watch() as watch:
            centroids = way()
        lines.append((label, watch, centroids))
    sample = rows[np.sort(np.random.default_rng(2).choice(made.count, min(SAMPLE, made.count), replace=False))]
    whole = next(watch for label, watch, _ in lines if label == "faiss, all rows")
    shown = [
        f"| k-means, {made.count:,} rows, {k:,} cells, {ITERATIONS} passes | seconds | CPU s "
        "| faiss, all rows, takes x | and by CPU s | mean cosine | pairs in cells | largest cell | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, watch, centroids in lines:
        unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)  # ours are means, faiss's of length 1
        cells = peer.assigned(sample, np.ascontiguousarray(unit, np.float32))
        share, largest = cells.pairs / pairs_of(len(sample)), np.bincount(cells.cell).max() / len(sample)
        shown.append(
            f"| {label} | {watch.seconds:.1f} | {watch.cpu:.1f} | {whole.seconds / watch.seconds:.1f} "
            f"| {whole.cpu / watch.cpu:.1f} | {cells.cosine.mean():.4f} | {share:.2%} | {largest:.2%} "
            f"| {watch.peak / MIB:,.0f} |"
        )
    return shown


def rate_of(result: Result) -> float:
    """Pairs per second."""
    return result.compared / result.watch.seconds


def step_table(made: Collection, name: str, floor: float, result: Result) -> list[str]:
    """Seconds of each step, and what the engine took in all."""
    watch = result.watch
    lines = [f"| {made.count:,} rows, {name}, floor {floor:g} | seconds | tasks |", "|---|---|---|"]
    lines += [f"| {label} | {s:.1f} | {tasks or ''} |" for label, (tasks, s) in result.steps.items()]
    found = 0 if result.a is None else len(result.a)
    return [
        *lines,
        "",
        f"| {made.count:,} rows, {name} | seconds | pairs found | peak of all, MiB | driver | workers | MB written |",
        "|---|---|---|---|---|---|---|",
        f"| find | {watch.seconds:.1f} | {found:,} | {watch.peak / MIB:,.0f} | {watch.driver / MIB:,.0f} "
        f"| {watch.workers / MIB:,.0f} | {watch.written / 1e6:,.1f} |",
    ]


def pair_table(made: Collection, name: str, floor: float, results: Sequence[Result]) -> list[str]:
    """All methods side by side."""
    truth = Truth.of(made, floor)
    known = truth.known(results)
    mine, by_cpu = next(((rate_of(r), r.compared / r.watch.cpu) for r in results if r.steps), (math.nan, math.nan))
    lines = [
        f"| {made.count:,} rows, {name}, floor {floor:g} | pairs compared | seconds | CPU s | million pairs/s "
        "| ours is x | and by CPU s | recall | precision | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        peak = f"{r.watch.peak / MIB:,.0f}"
        if not r.compared:
            lines.append(f"| {r.label} | | {r.watch.seconds:.1f} | {r.watch.cpu:.1f} | | | | | | {peak} |")
            continue
        recall, precision = (math.floor(share * 1e4) / 1e4 for share in truth.score(r, known))  # 1 means all
        lines.append(
            f"| {r.label} | {r.compared:,} | {r.watch.seconds:.1f} | {r.watch.cpu:.1f} | {rate_of(r) / 1e6:,.0f} "
            f"| {mine / rate_of(r):.1f} | {by_cpu / r.compared * r.watch.cpu:.1f} | {recall:.4f} | {precision:.4f} "
            f"| {peak} |"
        )
    return lines


def growth_table(name: str, seconds: dict[int, float]) -> list[str]:
    """How time grows with rows: the exponent between each size and the one before it, and over all."""
    sizes = sorted(seconds)
    lines = [f"| rows, {name} | seconds | N^x since the size before | N^x since {sizes[0]:,} |", "|---|---|---|---|"]
    for n, size in enumerate(sizes):
        powers = [
            f"{math.log(seconds[size] / seconds[since]) / math.log(size / since):.2f}" if n else ""
            for since in (sizes[n - 1], sizes[0])
        ]
        lines.append(f"| {size:,} | {seconds[size]:.1f} | {' | '.join(powers)} |")
    return lines


def show(lines: Sequence[str]) -> None:
    """A table, and the line that ends it."""
    print("\n".join(lines), end="\n\n", flush=True)


def best_of(rounds: Sequence[list[Result]]) -> list[Result]:
    """Of each method the quickest run; memory of the first, in which nothing of the peers was loaded before ours."""
    best = []
    for same in zip(*rounds, strict=True):
        quickest = min(same, key=lambda r: r.watch.seconds)
        quickest.watch.peak, quickest.watch.driver = same[0].watch.peak, same[0].watch.driver
        quickest.watch.workers = same[0].watch.workers
        best.append(quickest)
    return best


def measure(given: argparse.Namespace, count: int) -> float | None:
    """Everything that was asked for about one size; the seconds that ours took."""
    made = collection(given.folder, given.set, count)
    fits = count * WIDTH * 4 * 2.5 < psutil.virtual_memory().available  # the rows, faiss's copy, and room
    if (given.peers or given.kmeans) and not fits:
        print(f"{count:,} rows as float32 do not fit into memory: no peers\n", file=sys.stderr)
    rounds = []
    for _ in range(given.rounds):
        settings = {"recall": given.recall, "n_clusters": given.our_cells}
        results = [] if given.no_ours else [ours(made, given.floor, **settings)]
        results += peers(made, given.floor, given.cells or max(1, count // 1000)) if given.peers and fits else []
        rounds.append(results)
    results = best_of(rounds)
    if not given.no_ours:
        show(step_table(made, given.set, given.floor, results[0]))
    if results:
        show(pair_table(made, given.set, given.floor, results))
    if given.brute is not None and not given.no_ours:
        show(brute(made, given.floor, results[0], given.brute))
    if given.kmeans and fits:
        show(kmeans(made, given.cells or 1000))
    return None if given.no_ours else results[0].watch.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=int)
    parser.add_argument("--set", choices=list(SETS), default="shared")
    parser.add_argument("--floor", type=float, default=0.95)
    parser.add_argument("--peers", action="store_true", help="the published rules and faiss")
    parser.add_argument("--kmeans", action="store_true", help="cells: ours, faiss, scikit-learn")
    parser.add_argument("--brute", nargs="?", type=int, const=0, metavar="ROWS", help="float64; so many sampled rows")
    parser.add_argument("--cells", type=int, help="of the peers: one per 1,000 rows; of --kmeans: 1,000")
    parser.add_argument(
        "--recall", type=float, default=1.0, help="of ours: below 1 the border between cells is narrowed"
    )
    parser.add_argument("--our-cells", type=int, help="of ours: as many as pay where none are named")
    parser.add_argument("--rounds", type=int, default=1, help="all methods in turn so often, the quickest of each")
    parser.add_argument("--no-ours", action="store_true", help="peers alone")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curator-bench-pairs")
    given = parser.parse_args()
    seconds = {count: measure(given, count) for count in given.rows}
    grown = {count: s for count, s in seconds.items() if s is not None}
    if len(grown) > 1:
        show(growth_table(given.set, grown))


def with_libraries_settled() -> None:
    """Start again where the environment does not say yet how BLAS is to run: it is read when a library loads."""
    wanted = {name: str(cores()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    flags = Path("/proc/cpuinfo")
    if flags.exists() and "avx512bw" in flags.read_text():
        wanted["OPENBLAS_CORETYPE"] = "SkylakeX"
    if lacking := {name: value for name, value in wanted.items() if name not in os.environ}:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **lacking})


if __name__ == "__main__":
    with_libraries_settled()
    main()
