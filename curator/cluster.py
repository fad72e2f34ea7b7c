"""The only file that knows Dask: workers on this machine, on its GPUs or at a scheduler's address; one verb, `each`.

Tasks carry descriptions, never pixels or vectors, and a bounded number of them is in flight. What a task knows of its
worker is in `here.py`.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from signal import SIGKILL
from typing import Any, Literal

import cloudpickle
from pydantic import BaseModel, ConfigDict, Field

from curator import here, machine
from curator.errors import ClusterError, ConfigError

TOPIC = "curator-progress"
LARGEST_TASK = 4 << 20  # bytes of a pickled task: more than a description is a mistake of ours
WORKER_BASE = 1_500_000_000  # bytes that a worker takes beside its model: torch, batches, decoders
CORES_PER_WORKER = 4
LOST_WORKERS_ALLOWED = 2  # a task may lose so many; the third ends the run
IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


class ClusterSettings(BaseModel):
    """Where the work is done, each key as `conf/cluster/*.yaml` explains it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "local", "cuda", "scheduler"] = "auto"
    n_workers: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    in_flight: int | None = Field(None, ge=1)
    decoders: int | None = Field(None, ge=1)
    memory_limit: str | None = None
    dashboard: str | None = None
    local_directory: str | None = None
    address: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    rmm_pool_size: str | None = "50%"
    cudf_spill: bool = True


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of."""

    kind: str
    device: str
    n_workers: int
    threads: int | None  # torch threads per worker; None: all the cores that the worker finds
    in_flight: int
    decoders: int | None


class Cluster:
    """Workers, started when the context is entered and gone when it is left."""

    def __init__(self, settings: ClusterSettings, *, model_bytes: int = 0, in_flight_per_gpu: int = 4) -> None:
        self.settings = settings
        self.shape = shape_of(settings, model_bytes, in_flight_per_gpu)
        self._stack = ExitStack()
        self._cluster: Any = None
        self._client: Any = None
        self._listener: Callable[[dict[str, int]], None] | None = None

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__(KeyboardInterrupt, None, None)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None and self._cluster is not None:
            for worker in list(self._cluster.workers.values()):  # a worker deep in a product does not hear a plea
                with suppress(Exception):
                    os.kill(worker.process.pid, SIGKILL)
        for thing in (self._client, self._cluster):
            if thing is not None:
                with suppress(Exception):
                    thing.close(timeout=5)
        self._client = self._cluster = None
        self._stack.close()

    def _start(self) -> None:
        if self.shape.kind != "scheduler":
            _check_guard()
        import logging

        import dask
        import distributed

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told by us
        self._stack.enter_context(dask.config.set(_dask_config(self.shape)))
        if self.shape.kind == "scheduler":
            self._client = _client(self.settings)
        else:
            folder = self.settings.local_directory or tempfile.mkdtemp(prefix="curator-dask-")
            if not self.settings.local_directory:
                self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            start = _cuda_cluster if self.shape.kind == "cuda" else _local_cluster
            self._cluster = start(self.settings, self.shape, folder)
            self._client = distributed.Client(self._cluster)
        self._client.subscribe_topic(TOPIC, self._heard)

    def _heard(self, event: tuple[float, dict[str, int]]) -> None:
        if self._listener is not None:
            self._listener({name: n for name, n in event[1].items() if isinstance(n, int)})

    def each(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        on_progress: Callable[[dict[str, int]], None] | None = None,
    ) -> Iterator[Any]:
        """fn of every item, in order of completion. A lost worker's tasks run again; three lost workers end it."""
        from distributed import as_completed

        source = iter(items)
        described: dict[str, Any] = {}
        running = as_completed(raise_errors=False)
        self._listener = on_progress

        def submit() -> bool:
            for item in source:
                future = self._submit(fn, item)
                described[future.key] = item
                running.add(future)
                return True
            return False

        try:
            for _ in range(self._window()):
                if not submit():
                    break
            for future in running:
                item = described.pop(future.key)
                yield self._result(future, item)
                submit()
        finally:
            self._listener = None
            if described and self._client is not None:
                with suppress(Exception):
                    self._client.cancel(list(running.futures))

    def _window(self) -> int:
        """Tasks in flight: what all workers take at once, and one more each so that none waits."""
        return (self.shape.in_flight + 1) * max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    def _submit(self, fn: Callable[[Any], Any], item: Any) -> Any:
        shape = self.shape
        task = partial(_run, fn, shape.device, shape.threads, shape.decoders)
        assert len(cloudpickle.dumps((fn, item))) < LARGEST_TASK, "a task carries a description, not data"
        return self._client.submit(task, item, pure=False)

    def _result(self, future: Any, item: Any) -> Any:
        from distributed import CancelledError, KilledWorker
        from distributed.comm.core import CommClosedError

        try:
            return future.result()
        except KilledWorker as error:
            raise ClusterError(
                f"three workers died of the same task, the last was {error.last_worker.address}: {_named(item)}. "
                "Is memory short? What was measured is kept: try cluster.n_workers=1 or a smaller batch."
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise ClusterError(
                f"the cluster was lost ({error}). What was measured is kept; run the same command again to go on."
            ) from error

    def probe(self, paths: Sequence[str]) -> None:
        """Raise ClusterError unless every worker runs this Curator and reaches these paths."""
        if self.shape.kind != "scheduler":
            return
        told = self._client.run(_look_around, list(paths))
        mine = version("curator")
        problems = []
        for worker, (theirs, missing) in told.items():
            if theirs != mine:
                problems.append(f"worker {worker} has Curator {theirs}, this is {mine}: install the same everywhere")
            if missing:
                problems.append(
                    f"worker {worker} does not see {', '.join(missing)}: use a path that all machines share"
                )
        if problems:
            raise ClusterError("\n".join(problems))

    def describe(self) -> dict[str, Any]:
        """What was detected and is used, for run.json; `line` says it in one sentence."""
        shape = self.shape
        workers = len(self._client.scheduler_info(n_workers=-1)["workers"]) if self._client else shape.n_workers
        threads = shape.threads or "all"
        line = f"{workers} {shape.kind} worker{'s' if workers != 1 else ''} on {shape.device}, {threads} threads each"
        return {
            "kind": shape.kind, "device": shape.device, "workers": workers, "threads": shape.threads,
            "in_flight": shape.in_flight, "cores": machine.cores(), "memory_bytes": machine.memory_bytes(),
            "line": line,
        }  # fmt: skip


def shape_of(settings: ClusterSettings, model_bytes: int, in_flight_per_gpu: int) -> Shape:
    """What to start: asked for, or found out. Raises ConfigError where what was asked for cannot be."""
    kind = settings.kind
    if kind == "scheduler":
        if not settings.address:
            raise ConfigError("cluster.address: must be given with cluster=scheduler, such as tcp://10.0.0.1:8786.")
        return Shape(kind, "auto", 0, settings.threads, settings.in_flight or 2, settings.decoders)
    found, why_not = machine.gpus() if kind in ("auto", "cuda") else ([], "")
    if kind == "cuda" and not found:
        raise ConfigError(f"cluster: cuda was asked for, but {why_not}. cluster=local runs on the processor.")
    if found:
        in_flight = settings.in_flight or in_flight_per_gpu
        n_workers = min(settings.n_workers or len(found), len(found))
        share = max(1, machine.cores() // n_workers)
        return Shape("cuda", "cuda", n_workers, settings.threads or share, in_flight, settings.decoders or share)
    n_workers = settings.n_workers or _workers_that_fit(model_bytes)
    share = max(1, machine.cores() // n_workers)
    return Shape(
        "local", "cpu", n_workers, settings.threads or share, settings.in_flight or 2, settings.decoders or share
    )


def _workers_that_fit(model_bytes: int) -> int:
    """A worker for every few cores, since torch uses them all at once; fewer where memory holds no more models."""
    by_memory = int(machine.memory_bytes() * 0.8 / (WORKER_BASE + 2 * model_bytes))
    return max(1, min(machine.cores() // CORES_PER_WORKER, by_memory))


def _dask_config(shape: Shape) -> dict[str, Any]:
    threads = str(shape.threads or machine.cores())
    numeric = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {
        "distributed.scheduler.allowed-failures": LOST_WORKERS_ALLOWED,
        "distributed.nanny.pre-spawn-environ": {**numeric, "MALLOC_TRIM_THRESHOLD_": "65536"},
        # our memory is bounded by settings; Dask's own limits would pause or kill work that is not to blame
        **{f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause", "terminate")},
        "distributed.comm.timeouts.connect": "10s",
        "distributed.admin.log-format": "%(message)s",
    }


def _local_cluster(settings: ClusterSettings, shape: Shape, folder: str) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=shape.n_workers, processes=True, threads_per_worker=shape.in_flight, preload=[IGNORE_CTRL_C],
        memory_limit=settings.memory_limit or 0, local_directory=folder, **_on_loopback(settings),
    )  # fmt: skip


def _cuda_cluster(settings: ClusterSettings, shape: Shape, folder: str) -> Any:
    from dask_cuda import LocalCUDACluster

    names, _ = machine.gpus()
    return LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=names[: shape.n_workers], threads_per_worker=shape.in_flight, preload=[IGNORE_CTRL_C],
        rmm_pool_size=_pool(settings.rmm_pool_size), enable_cudf_spill=settings.cudf_spill,
        memory_limit=settings.memory_limit or 0, local_directory=folder, **_on_loopback(settings),
    )  # fmt: skip


def _check_guard() -> None:
    """Worker processes import the script that started them: without a guard, each would start the run again."""
    frame: Any = sys._getframe()
    while frame is not None and not (
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"
    ):
        frame = frame.f_back
    file = frame and frame.f_globals.get("__file__")
    if not file or not os.path.isfile(file) or frame.f_globals.get("__spec__") is not None:
        return  # a notebook, `python -c` or `python -m`: nothing is imported again, or it is guarded
    guards = [
        n for n in ast.parse(Path(file).read_bytes()).body if isinstance(n, ast.If) and "__name__" in ast.dump(n.test)
    ]
    if not any(n.lineno <= frame.f_lineno <= (n.end_lineno or 0) for n in guards):
        raise ConfigError(
            f"{file}, line {frame.f_lineno}: starts worker processes, which import this file again. Put what runs "
            'under `if __name__ == "__main__":`.'
        )


def _pool(given: str | None) -> str | float | None:
    """RMM's pool as dask-cuda takes it: a share of the GPU (`50%`) is a float, a size (`20GB`) stays text."""
    return float(given.rstrip("%")) / 100 if given and given.endswith("%") else given


def _on_loopback(settings: ClusterSettings) -> dict[str, Any]:
    """Nothing listens beyond this machine unless the dashboard was asked to."""
    import logging

    shown = settings.dashboard
    quiet = {} if shown else {"scheduler_kwargs": {"dashboard": False}}
    return {"host": "127.0.0.1", "dashboard_address": shown or "127.0.0.1:0", "silence_logs": logging.CRITICAL, **quiet}


def _client(settings: ClusterSettings) -> Any:
    import distributed
    from distributed.security import Security

    security = None
    if settings.tls_ca:
        security = Security(
            tls_ca_file=settings.tls_ca, tls_client_cert=settings.tls_cert, tls_client_key=settings.tls_key,
            require_encryption=True,
        )  # fmt: skip
    try:
        client = distributed.Client(settings.address, security=security, timeout=10)
        client.wait_for_workers(1, timeout=10)
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"cluster.address: no scheduler with workers answers at {settings.address} within 10 s. Is "
            "`dask scheduler` running there, and `dask worker` with it?"
        ) from error
    return client


def _named(item: Any) -> str:
    """What a task was about, short enough for one line."""
    text = repr(item[1] if isinstance(item, tuple) and len(item) > 1 else item)
    return text if len(text) < 300 else text[:300] + "..."


def _look_around(paths: Sequence[str]) -> tuple[str, list[str]]:
    return version("curator"), [path for path in paths if not Path(path).exists()]


def _run(fn: Callable[[Any], Any], device: str, threads: int | None, decoders: int | None, item: Any) -> Any:
    """A task, in a worker: say what this worker is, do the work, send the last counts."""
    from distributed import get_worker

    found = ("cuda" if machine.gpus()[0] else "cpu") if device == "auto" else device
    here.settle(found, threads, decoders, partial(get_worker().log_event, TOPIC))
    try:
        return fn(item)
    finally:
        here.flush()


def inline(
    fn: Callable[[Any], Any], items: Iterable[Any], *, threads: int = 1, on_progress: Any = None
) -> Iterator[Any]:
    """The same as `Cluster.each` in this process: nothing is started, and nothing reported."""
    del on_progress
    if threads == 1:
        yield from map(fn, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(fn, item) for item in islice(source, 2 * threads)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= {pool.submit(fn, item) for item in islice(source, 1)}
