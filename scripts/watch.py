"""What a piece of work costs: seconds, memory and written bytes of this process and all that it started."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import psutil

from curator.stage import Each

EVERY_S = 0.2
MIB = 1 << 20


class Watch:
    """A context: samples the process tree from a thread while it is entered.

    Memory is PSS, in which a page shared by n processes counts 1/n in each: a sum counts nothing twice. Mapped files
    are in it as far as their pages were touched.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak = self.driver = self.workers = 0  # bytes: of the sum; of this process; of all others together
        self._written: dict[int, tuple[float, float]] = {}  # by process: first and last count
        self._cpu: dict[int, tuple[float, float]] = {}
        self._done = threading.Event()

    def __enter__(self) -> Watch:
        self._sample()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        self._done.set()
        self._thread.join()
        self._sample()

    @property
    def written(self) -> float:
        """Bytes that were sent to the disk, or will be (pages made dirty), by files and maps alike."""
        return sum(last - first for first, last in self._written.values())

    @property
    def cpu(self) -> float:
        """Seconds of processor, which a busy machine stretches less than those on the clock."""
        return sum(last - first for first, last in self._cpu.values())

    def _run(self) -> None:
        while not self._done.wait(EVERY_S):
            self._sample()

    def _sample(self) -> None:
        us = psutil.Process()
        driver = workers = 0
        for process in (us, *us.children(recursive=True)):
            with suppress(psutil.Error):  # it may end while it is looked at
                pss = process.memory_full_info().pss
                driver, workers = (driver + pss, workers) if process == us else (driver, workers + pss)
                _note(self._written, process.pid, process.io_counters().write_bytes)
                _note(self._cpu, process.pid, sum(process.cpu_times()[:2]))
        self.peak = max(self.peak, driver + workers)
        self.driver, self.workers = max(self.driver, driver), max(self.workers, workers)


def _note(counts: dict[int, tuple[float, float]], pid: int, count: float) -> None:
    """Keep the first count and the last; a process that ends is missed by at most one interval."""
    counts[pid] = (counts.get(pid, (count, count))[0], count)


class Steps:
    """`each`, with the tasks and seconds of every call noted by the name of its function: an engine's steps."""

    def __init__(self, each: Each) -> None:
        self._each = each
        self.taken: dict[str, tuple[int, float]] = {}

    def __call__(self, fn: Callable[[Any], Any], items: Iterable[Any], **settings: Any) -> Iterator[Any]:
        begin, tasks = time.perf_counter(), 0
        name = getattr(fn, "__name__", None) or getattr(getattr(fn, "func", fn), "__name__", type(fn).__name__)
        try:
            for result in self._each(fn, items, **settings):
                tasks += 1
                yield result
        finally:
            had = self.taken.get(name, (0, 0.0))
            self.taken[name] = (had[0] + tasks, had[1] + time.perf_counter() - begin)
