"""What a task knows of the process that it runs in: its device and threads, heavy things kept, progress told.

Knows nothing about Dask: the cluster tells each task who listens. Where work is done inline, the runner is the worker.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from curator import machine
from curator.stage import Worker

T = TypeVar("T")

REPORT_EVERY_S = 0.2
KEPT_AT_MOST = 16


class _Here:
    """What this process is; a driver that works inline is one worker with all cores."""

    def __init__(self) -> None:
        self.device = "cpu"
        self.threads: int | None = None
        self.decoders: int | None = None
        self.counts: Counter[str] = Counter()
        self.sent = 0.0
        self.listener: Callable[[dict[str, int]], None] | None = None


_here = _Here()
_lock = threading.Lock()
_kept: OrderedDict[Hashable, Any] = OrderedDict()
_making: dict[Hashable, threading.Lock] = {}
_keeper: ThreadPoolExecutor | None = None


def settle(device: str, threads: int | None, decoders: int | None, listener: Callable[[dict[str, int]], None]) -> None:
    """What this process is, told by each task as it begins."""
    _here.device, _here.threads, _here.decoders, _here.listener = device, threads, decoders, listener


def this_worker() -> Worker:
    """Device and torch threads of this process."""
    return Worker(_here.device, _here.threads or machine.cores())


def decoder_count() -> int:
    """Decoder children that this process keeps busy."""
    return _here.decoders or _here.threads or machine.cores()


def keep(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` makes, made once per process; the things used longest ago are closed and go.

    A thread that lives as long as the process makes it: a child process dies with the thread that started it.
    """
    global _keeper
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]  # type: ignore[no-any-return]
        making = _making.setdefault(key, threading.Lock())
        _keeper = _keeper or ThreadPoolExecutor(1, thread_name_prefix="curator-keeper")
    with making:
        with _lock:
            if key in _kept:
                return _kept[key]  # type: ignore[no-any-return]
        made = _keeper.submit(make).result()
        with _lock:
            _kept[key] = made
            gone = [_kept.popitem(last=False)[1] for _ in range(len(_kept) - KEPT_AT_MOST)]
    for thing in gone:
        _close(thing)
    return made


def keep_one(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """As `keep`, of a kind of which there is room for one: what is kept of it under other keys goes first."""
    with _lock:
        others = [k for k in _kept if isinstance(k, tuple) and k[0] == kind and k[1] != key]
        gone = [_kept.pop(k) for k in others]
    for thing in gone:
        _close(thing)
    return keep((kind, key), make)


def _close(thing: Any) -> None:
    if hasattr(thing, "close"):
        with suppress(Exception):
            thing.close()


@atexit.register
def release() -> None:
    """Close everything that `keep` made."""
    with _lock:
        things = list(_kept.values())
        _kept.clear()
    for thing in things:
        _close(thing)


def report(**counts: int) -> None:
    """From inside a task: so many more images are `done`, or have `failed`. Sent a few times a second."""
    with _lock:
        _here.counts.update(counts)
    if time.monotonic() - _here.sent >= REPORT_EVERY_S:
        flush()


def flush() -> None:
    """Send what was counted since the last time; where nobody listens, the work is done inline."""
    with _lock:
        counts = {name: n for name, n in _here.counts.items() if n}
        _here.counts.clear()
        _here.sent = time.monotonic()
    if counts and _here.listener is not None:
        _here.listener(counts)
