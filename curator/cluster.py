"""The only file that knows Dask: workers on this machine, on its GPUs or at a scheduler's address; one verb, `each`.

Tasks carry descriptions, never pixels or vectors, and a bounded number of them is in flight. What a task knows of its
worker is in `here.py`, what is started where in `machine.py`.
"""

from __future__ import annotations

import ast
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from signal import SIG_BLOCK, SIG_SETMASK, SIGINT, SIGKILL, pthread_sigmask
from typing import Any
from uuid import uuid4

import cloudpickle

from curator import here, machine, remote
from curator.errors import ClusterError, ConfigError
from curator.machine import ClusterSettings, Shape, shape_of

LARGEST_TASK = 4 << 20  # bytes of a pickled task: more than a description is a mistake of ours
LOST_WORKERS_ALLOWED = 2  # a task may lose so many; the third ends the run
LOOK_EVERY_S = 5.0  # between two counts of the workers, while tasks are in flight
NO_WORKER_S = 60.0  # so long the run waits for a worker to come back when there is none


class Cluster:
    """Workers, started when the context is entered and gone when it is left."""

    def __init__(self, settings: ClusterSettings, *, model_bytes: int = 0, in_flight_per_gpu: int = 4) -> None:
        self.settings = settings
        self.shape = shape_of(settings, model_bytes, in_flight_per_gpu)
        self._stack = ExitStack()
        self._cluster: Any = None
        self._client: Any = None
        self._listener: Callable[[dict[str, int]], None] | None = None
        self._topic = f"curator-{uuid4().hex}"  # runs that share a scheduler do not hear each other
        self._workers, self._counted, self._peopled = 0, 0.0, 0.0  # how many, when looked at, when there was one

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
        import dask
        import distributed  # before the settings: they are undone at the end, and what it sets itself with them

        for name in [n for n in logging.root.manager.loggerDict if n.startswith(distributed.__name__)]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is told by us
        logging.getLogger("asyncio").addFilter(_is_not_dasks)
        self._stack.enter_context(dask.config.set(_dask_config(self.settings, self.shape)))
        if self.shape.kind == "scheduler":
            self._client = _client(self.settings)
        else:
            self._start_workers()
        self._client.subscribe_topic(self._topic, self._heard)

    def _start_workers(self) -> None:
        from distributed import Client

        folder = self.settings.local_directory or tempfile.mkdtemp(prefix="curator-dask-")
        if not self.settings.local_directory:
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        start = _cuda_cluster if self.shape.kind == "cuda" else _local_cluster
        try:
            with _ctrl_c_for_us_alone():
                self._cluster = start(self.settings, self.shape, folder)
                self._client = Client(self._cluster)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"cluster: the workers did not start: {error}. Look at cluster.local_directory, "
                "cluster.dashboard and cluster.memory_limit."
            ) from error

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
        source, running = iter(items), dict[Any, Any]()
        self._listener, self._peopled = on_progress, time.monotonic()
        try:
            while True:
                for item in islice(source, max(0, self._window() - len(running))):
                    running[self._submit(fn, item)] = item
                if not running:
                    return
                for future in self._finished(running):
                    yield self._result(future, running.pop(future))
        finally:
            self._listener = None
            if running and self._client is not None:
                with suppress(Exception):
                    self._client.cancel(list(running))

    def _window(self) -> int:
        """Tasks in flight: what all workers take at once, and one more each so that none waits."""
        if time.monotonic() - self._counted >= LOOK_EVERY_S:
            self._count_workers()
        return (self.shape.in_flight + 1) * max(1, self._workers)

    def _count_workers(self) -> int:
        self._workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        self._counted = time.monotonic()
        if self._workers:
            self._peopled = self._counted
        return self._workers

    def _finished(self, running: Mapping[Any, Any]) -> Iterable[Any]:
        """The tasks that are done, at least one. Raises ClusterError where nobody is left to do them."""
        from distributed import CancelledError, wait

        while True:
            try:
                return list(wait(list(running), timeout=LOOK_EVERY_S, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                self._check_peopled(next(iter(running.values())))
            except CancelledError as error:
                raise _lost(error) from error

    def _check_peopled(self, item: Any) -> None:
        try:
            workers = self._count_workers()
        except (OSError, RuntimeError) as error:
            raise _lost(error) from error
        if not workers and time.monotonic() - self._peopled >= NO_WORKER_S:
            raise ClusterError(
                f"no worker has been there for {NO_WORKER_S:.0f} s, and this waits for one: {_named(item)}. What was "
                "measured is kept: start workers (`dask worker`, with the memory that the model takes) and run again."
            )

    def _submit(self, fn: Callable[[Any], Any], item: Any) -> Any:
        task = partial(_run, fn, self.shape, self._topic)
        assert len(cloudpickle.dumps((fn, item))) < LARGEST_TASK, "a task carries a description, not data"
        return self._client.submit(task, item, pure=False)

    def _result(self, future: Any, item: Any) -> Any:
        from distributed import CancelledError, KilledWorker
        from distributed.comm.core import CommClosedError

        try:
            return self._fetched(future, item)
        except KilledWorker as error:
            raise ClusterError(
                f"{error.allowed_failures + 1} workers died of the same task, the last was "
                f"{error.last_worker.address}: {_named(item)}. "
                "Is memory short? What was measured is kept: try cluster.n_workers=1 or a smaller batch."
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise _lost(error) from error

    def _fetched(self, future: Any, item: Any) -> Any:
        """Its result; a worker that dies before it is fetched takes it along, and the task waits for another."""
        while True:
            try:
                return future.result(timeout=LOOK_EVERY_S)
            except TimeoutError:
                if future.status == "error":  # the task's own
                    raise
                self._check_peopled(item)

    def probe(self, paths: Sequence[str]) -> None:
        """Raise ClusterError unless scheduler and workers run this Curator and the workers reach these paths."""
        if self.shape.kind != "scheduler":
            return
        try:
            told = {
                "the scheduler": self._client.run_on_scheduler(_look_around, []),  # it unpickles tasks as well
                **{f"worker {w}": t for w, t in self._client.run(_look_around, list(paths)).items()},
            }
        except Exception as error:  # whatever their Python says: they cannot even ask
            raise ClusterError(
                f"the machines at {self.settings.address} cannot run Curator: {error}. Install the same Curator on "
                "every machine of the cluster."
            ) from error
        mine = version("curator")
        problems = []
        for where, (theirs, missing) in told.items():
            if theirs != mine:
                problems.append(f"{where} has Curator {theirs}, this is {mine}: install the same everywhere")
            if missing:
                what_to_do = "use a path that all machines share, or a URL that each has the credentials for"
                problems.append(f"{where} does not see {', '.join(missing)}: {what_to_do}")
        if problems:
            raise ClusterError("\n".join(problems))

    def describe(self) -> dict[str, Any]:
        """What was detected and is used, for run.json; `line` says it in one sentence."""
        shape = self.shape
        workers = self._count_workers() if self._client else shape.n_workers
        return {
            "kind": shape.kind, "device": shape.device, "workers": workers, "threads": shape.threads,
            "in_flight": shape.in_flight, "cores": machine.cores(), "memory_bytes": machine.memory_bytes(),
            "line": shape.told(workers, self.settings.address),
        }  # fmt: skip


def _dask_config(settings: ClusterSettings, shape: Shape) -> dict[str, Any]:
    threads = str(shape.threads or machine.cores())
    numeric = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {
        "distributed.scheduler.allowed-failures": LOST_WORKERS_ALLOWED,
        "distributed.nanny.pre-spawn-environ": {**numeric, "MALLOC_TRIM_THRESHOLD_": "65536"},
        # our memory is bounded by settings; Dask's own limits would pause or kill work that is not to blame
        **{f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")},
        "distributed.worker.memory.terminate": 0.95 if settings.memory_limit else False,
        "distributed.comm.timeouts.connect": "10s",
        "distributed.admin.log-format": "%(message)s",
    }


def _local_cluster(settings: ClusterSettings, shape: Shape, folder: str) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=shape.n_workers, processes=True, threads_per_worker=shape.in_flight,
        memory_limit=settings.memory_limit or 0, local_directory=folder, **_on_loopback(settings),
    )  # fmt: skip


def _cuda_cluster(settings: ClusterSettings, shape: Shape, folder: str) -> Any:
    from dask_cuda import LocalCUDACluster

    names, _ = machine.gpus()
    return LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=names[: shape.n_workers], threads_per_worker=shape.in_flight,
        rmm_pool_size=_pool(settings.rmm_pool_size), enable_cudf_spill=settings.cudf_spill,
        memory_limit=settings.memory_limit or 0, local_directory=folder, **_on_loopback(settings),
    )  # fmt: skip


@contextmanager
def _ctrl_c_for_us_alone() -> Iterator[None]:
    """A terminal sends Ctrl-C to every process: those started in here never feel it, we do when this is left.

    A blocked signal stays blocked in the threads and processes that are made meanwhile, and in those that they make.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # starting it later would unblock the signal in whichever thread did
    before = pthread_sigmask(SIG_BLOCK, {SIGINT})
    try:
        yield
    finally:
        pthread_sigmask(SIG_SETMASK, before)


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
    shown = settings.dashboard
    if shown and shown.removeprefix(":").isdigit():  # a port alone, which Dask would open to the world
        shown = f"127.0.0.1:{shown.removeprefix(':')}"
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
    client = None
    try:
        client = distributed.Client(settings.address, security=security, timeout=10)
        client.wait_for_workers(1, timeout=10)
    except Exception as error:  # what answers there may be anything; its bytes are then read as Dask's
        if client is not None:
            client.close(timeout=1)
        raise ClusterError(
            f"cluster.address: no scheduler with workers answers at {settings.address} within 10 s. Is "
            "`dask scheduler` running there, and `dask worker` with it, of the same Dask version?"
        ) from error
    return client


def _lost(error: Exception) -> ClusterError:
    lines = str(error).splitlines() or [type(error).__name__]
    why = (
        "its scheduler no longer answers" if isinstance(error, OSError) or "connection-lost" in str(error) else lines[0]
    )
    return ClusterError(f"the cluster was lost: {why}. What was measured is kept; run the same command again to go on.")


def _is_not_dasks(record: logging.LogRecord) -> bool:
    """Whether asyncio tells of somebody else's task: those of Dask that nobody waited for are no news."""
    return not (record.exc_info and type(record.exc_info[1]).__module__.startswith("distributed"))


def _named(item: Any) -> str:
    """What a task was about, short enough for one line."""
    about = item[1] if isinstance(item, tuple) and len(item) > 1 else item
    parts = about if isinstance(about, tuple) else (about,)
    text = "; ".join(str(part) for part in parts[:3]) + (" ..." if len(parts) > 3 else "")
    return text if len(text) < 300 else text[:300] + "..."


def _look_around(paths: Sequence[str]) -> tuple[str, list[str]]:
    return version("curator"), [path for path in paths if not remote.is_there(path)]


def _run(fn: Callable[[Any], Any], shape: Shape, topic: str, item: Any) -> Any:
    """A task, in a worker: say what this worker is, do the work, send the last counts."""
    from distributed import get_worker

    device = ("cuda" if machine.gpus()[0] else "cpu") if shape.device == "auto" else shape.device
    here.settle(device, shape.threads, shape.decoders, partial(get_worker().log_event, topic))
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


__all__ = ["Cluster", "ClusterSettings", "inline", "shape_of"]
