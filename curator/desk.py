"""Where a long computation lays what it has so far, so that a killed one goes on: tables and arrays under one name.

A desk belongs to one result; when that is stored, the desk is cleared. Knows nothing about what is computed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from curator.commit import explained
from curator.errors import StoreError
from curator.stage import Array, Each
from curator.store import Object, Store

FOLDER = "scratch"


def _silent(_: object) -> None:
    """A worker's desk says nothing."""


class Watcher(Protocol):
    """Who is told how far a step is: the runner's `voice.Voice`."""

    def begin(self, total: int, label: str, *, counted: bool) -> Callable[[dict[str, int]], None]:
        """`total` of any unit is to be done; what it returns takes counts of `done`."""

    def end(self) -> None:
        """All of it was."""


@dataclass(frozen=True)
class Desk:
    """One computation's place in the store. Pickles as a description; `say` and `watcher` stay with the runner."""

    store: Store
    name: str
    say: Callable[[str], None] = field(default=_silent, compare=False)
    watcher: Watcher | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "name": self.name, "say": _silent}

    def go(
        self, each: Each, fn: Callable[[Any], None], items: Sequence[Any], doing: str, work: int | None = None
    ) -> None:
        """Do a step's tasks, each of which lays down what it finds; whoever watches sees how far it is.

        `doing` is what a person reads. `work`: how much the tasks will report as done while they are at it; without,
        each counts when it is through.
        """
        advance = self.watcher.begin(work or len(items), doing, counted=False) if self.watcher and items else _silent
        try:
            for _ in each(fn, items):
                if work is None:
                    advance({"done": 1})
        finally:
            if self.watcher:
                self.watcher.end()

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return self.store.root / FOLDER / self.name

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the desk alone; waits, and says so, while another run works on it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say("another run looks for the same; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def put(self, name: str, table: pa.Table, **header: Any) -> None:
        """Lay down a table, whole or not at all."""
        self.store.put(FOLDER, name, table, header, self.name)

    def get(self, name: str) -> Object | None:
        """What was laid down under a name; None where nothing was, or where its bytes are damaged."""
        return self.store.get(FOLDER, name, self.name)

    def take(self, name: str) -> pa.Table:
        """The table that was laid down under a name. Raises StoreError where it is gone."""
        return self._there(name).table

    def put_array(self, name: str, array: Array) -> None:
        """Lay down an array, whole or not at all."""
        self.put(name, pa.table({"value": np.ascontiguousarray(array).reshape(-1)}), shape=list(array.shape))

    def take_array(self, name: str) -> Array:
        """The array that was laid down under a name, mapped from disk. Raises StoreError where it is gone."""
        found = self._there(name)
        array: Array = found.table.column("value").combine_chunks().to_numpy().reshape(found.header["shape"])
        return array

    def _there(self, name: str) -> Object:
        found = self.get(name)
        if found is None:
            raise StoreError(f"{self.folder / name}: went missing or was damaged; run the same command again.")
        return found

    def has(self, name: str) -> bool:
        """Whether something was laid down under a name."""
        return self.store.has(FOLDER, name, self.name)

    def make(self, name: str, shape: tuple[int, ...], kind: Any) -> None:
        """Make room for an array that tasks fill, each its own part; what is in it already stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.array"
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        try:
            with open(path, "ab") as file:
                if file.tell() != size:
                    file.truncate(0)
                    os.posix_fallocate(file.fileno(), 0, max(size, 1))  # a full disk is told here, not as SIGBUS
                    file.truncate(size)
        except OSError as error:
            raise explained(error, path) from error

    def array(self, name: str, shape: tuple[int, ...], kind: Any, writable: bool = False) -> Array:
        """The array that lies in a file of its own."""
        return np.memmap(self.folder / f"{name}.array", kind, "r+" if writable else "r", shape=shape)

    def clear(self) -> None:
        """Take everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)
