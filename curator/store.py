"""The store: address -> columns. An object, once there, is never changed, so runs can share it.

    store/FORMAT                          version of this layout; an unknown one is refused
    store/<stage>/<ad>/<address>          an Arrow stream, then 8 bytes of mark and 32 of SHA-256 over all before
    store/<stage>/<ad>/<address>.open     the same, with rows that a fault of the machine left open
    store/inputs/<path hash>              a cache: what an input file held when it was last looked at
    store/damaged/                        objects whose bytes were not those that were written

Arrow readers stop at the end of the stream, so that other tools can map an object as it lies. A store on a URL is the
same, with copies on this machine (`behind.py`). Knows nothing about images, stages or thresholds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from curator.behind import Behind
from curator.commit import commit, commit_bytes, explained
from curator.errors import StoreError
from curator.remote import is_url
from curator.stage import Array, Mask

FORMAT = 1
MARK = b"CURSHA2\n"
TRAILER = len(MARK) + 32
OPEN = ".open"
CACHE = "inputs"  # the one folder whose objects are written again under the same name
HEADER = b"curator"  # the key of an object's header in the schema's metadata


@dataclass(frozen=True)
class Object:
    """One stored table and its header: provenance and whatever else is not a column."""

    table: pa.Table
    header: dict[str, Any]


class Store:
    """Content-addressed columns under one folder or URL. Pickles as its place; only `opened` holds the lock."""

    def __init__(self, place: Path | str) -> None:
        self.behind = Behind(str(place)) if is_url(place) else None
        self.root = self.behind.root if self.behind else Path(os.path.realpath(place))
        self.damaged: list[str] = []
        self._checked: set[tuple[str, int, int]] = set()

    def __reduce__(self) -> tuple[type[Store], tuple[Path | str]]:
        return Store, (self.place,)

    @property
    def place(self) -> Path | str:
        """The folder, or the URL."""
        return self.behind.url if self.behind else self.root

    def on_disk(self) -> Store:
        """A store on this machine, for what no other needs to see: itself, or that of the copies."""
        return Store(self.root) if self.behind else self

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Make the folder where it is new, refuse a layout that is not ours, hold the shared lock (of a URL: none)."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._check_format()
            lock = open(self.root / ".lock", "ab")  # noqa: SIM115 - closed below, held for the whole run
        except OSError as error:
            raise StoreError(
                f"{self.root}: the store cannot be used: {error.strerror}. store=PATH moves it."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(f"{self.root}: the store is being pruned; run again when that is done.") from error
            yield self

    def _check_format(self) -> None:
        written = self.behind.format(str(FORMAT)) if self.behind else self._format()
        if written is None:
            raise StoreError(f"{self.place}: holds something else than a store. store=PATH names another folder.")
        if written != str(FORMAT):
            raise StoreError(
                f"{self.place}: written by store format {written}; this Curator reads {FORMAT}. "
                "Use the Curator that wrote it, or name another folder with store=PATH."
            )

    def _format(self) -> str | None:
        """The version of the layout on disk, ours where nothing lies yet; None where it is something else."""
        path = self.root / "FORMAT"
        if not path.exists():
            if any(p for p in self.root.iterdir() if not p.name.startswith(".")):
                return None
            commit_bytes(self.root / ".gitignore", b"*\n")
            commit_bytes(path, f"{FORMAT}\n".encode())
        return path.read_text().strip()

    def path(self, folder: str, address: str, shelf: str | None = None) -> Path:
        """Where an object lies; `shelf` overrides the two first digits of the address."""
        return self.root / folder / (shelf or address[:2]) / address

    def has(self, folder: str, address: str, shelf: str | None = None) -> bool:
        """Whether an object is there, with no row left open; its bytes are checked when it is read."""
        path = self.path(folder, address, shelf)
        return self.behind.has(self._name(path)) if self.behind else path.exists()

    def look_again(self) -> None:
        """Others have put objects since `has` was asked."""
        if self.behind:
            self.behind.look_again()

    def check_copy(self, folder: str, address: str) -> None:
        """Let go of a copy whose object is no longer at the URL: who measures would else take it for stored."""
        if self.behind:
            self.behind.check_copy(self._name(self.path(folder, address)))

    def _name(self, path: Path) -> str:
        """What an object is called below the store."""
        return path.relative_to(self.root).as_posix()

    def get(self, folder: str, address: str, shelf: str | None = None) -> Object | None:
        """The object, memory-mapped; None where there is none, or where its bytes are damaged (then set aside).

        Where rows of it are open, its header says so.
        """
        path = self.path(folder, address, shelf)
        return self._read(path, folder) or self._read(path.with_name(path.name + OPEN), folder)

    def _read(self, path: Path, folder: str) -> Object | None:
        buffer = self._sound_bytes(path, folder)
        if buffer is None:
            return None
        table = pa.ipc.open_stream(pa.BufferReader(buffer.slice(0, buffer.size - TRAILER))).read_all()
        return Object(table, json.loads((table.schema.metadata or {}).get(HEADER, b"{}")))

    def _sound_bytes(self, path: Path, folder: str) -> pa.Buffer | None:
        """An object's bytes; None where there is none, or where they are damaged: then it is set aside."""
        for fetched in (False, True):
            copy = self.behind.brought(self._name(path), _is_fixed(path)) if self.behind else path
            try:
                buffer = None if copy is None else pa.memory_map(str(copy)).read_buffer()
            except FileNotFoundError:
                return None
            except OSError as error:
                raise StoreError(f"{copy}: cannot be read: {error}.") from error
            if copy is None or self._sound(copy, buffer):
                return buffer
            if self.behind is None or fetched:
                self._set_aside(path, copy, folder)
                return None
            copy.unlink(missing_ok=True)  # a damaged copy says nothing about the object
        return None

    def put(self, folder: str, address: str, table: pa.Table, header: dict[str, Any], shelf: str | None = None) -> None:
        """Store a table under its address, whole or not at all; with `open` in its header, to be replaced."""
        final = self.path(folder, address, shelf)
        left_open = final.with_name(final.name + OPEN)
        path = left_open if header.get("open") else final
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, path) from error
        schema = table.schema.with_metadata({HEADER: json.dumps(header, sort_keys=True)})
        with commit(path) as file:
            hashing = Hashing(file)
            with pa.ipc.new_stream(pa.PythonFile(hashing, "w"), schema) as stream:
                stream.write_table(table.replace_schema_metadata(schema.metadata))
            file.write(MARK + hashing.digest.digest())
        if self.behind:
            self.behind.put(self._name(path), _is_fixed(path))
        if path is final:
            self._drop(left_open)

    def shelf(self, folder: str, shelf: str) -> list[str]:
        """The addresses on one shelf, sorted; none that is open."""
        names: list[str] = []
        if self.behind:
            names = self.behind.shelf(f"{folder}/{shelf}")
        else:
            with suppress(FileNotFoundError):
                names = os.listdir(self.root / folder / shelf)
        return sorted(n for n in names if not n.startswith(".") and not n.endswith(OPEN))

    def forget(self, folder: str, address: str) -> None:
        """Drop what is only a cache (or was computed from rows that stayed open)."""
        self._drop(self.path(folder, address))

    def _drop(self, path: Path) -> None:
        if self.behind is None:
            path.unlink(missing_ok=True)
        elif self.behind.has(self._name(path)):
            self.behind.delete(self._name(path))

    def _sound(self, path: Path, buffer: pa.Buffer) -> bool:
        """Whether the trailer fits the bytes; looked at once per process and state of the file."""
        status = path.stat()
        seen = (str(path), status.st_ino, status.st_mtime_ns)
        if seen in self._checked:
            return True
        view = memoryview(buffer)
        if len(view) < TRAILER or bytes(view[-TRAILER:-32]) != MARK:
            return False
        if hashlib.sha256(view[:-TRAILER]).digest() != bytes(view[-32:]):
            return False
        self._checked.add(seen)
        return True

    def taken_aside(self) -> list[str]:
        """The objects that this process found damaged since it was last asked."""
        found, self.damaged = self.damaged, []
        return found

    def _set_aside(self, path: Path, copy: Path, folder: str) -> None:
        place = self.root / "damaged"
        place.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process was quicker
            os.replace(copy, place / f"{folder}-{path.name}")
            self.damaged.append(str(path))
            if self.behind:
                self.behind.set_aside(self._name(path), place / f"{folder}-{path.name}")


def _is_fixed(path: Path) -> bool:
    """Whether an object never changes, once it is there: all do not but open ones and what is only a cache."""
    return not path.name.endswith(OPEN) and path.parent.parent.name != CACHE


class Hashing:
    """A file to write to that hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


@dataclass(frozen=True)
class StoredVectors:
    """The embeddings of a set of pieces, as collection stages see them. Pickles as a description."""

    store: Store
    folder: str
    addresses: Sequence[str]
    desk: Any = None  # where a long computation on them lays what it has so far
    known: Any = None  # what was found among some of them before

    def read(self, address: str) -> tuple[Array, Mask]:
        """One piece: (N, D) float16, mapped from disk, and (N,) True where a row has a vector."""
        stored = self.store.get(self.folder, address)
        if stored is None:
            raise StoreError(f"{self.store.path(self.folder, address)}: went missing; run the same command again.")
        return vectors_of(stored.table)

    def only(self, addresses: Sequence[str]) -> StoredVectors:
        """The same with fewer pieces."""
        return replace(self, addresses=tuple(addresses))


def vectors_of(table: pa.Table) -> tuple[Array, Mask]:
    """(N, D) float16 and (N,) mask of an object's `embedding` column; zeros where a row has none."""
    column = table.column("embedding").combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    has = array.is_valid().to_numpy(zero_copy_only=False)
    flat = array.flatten() if array.null_count == 0 else array.values
    width = array.type.list_size
    offset = 0 if array.null_count == 0 else array.offset
    emb_ND = flat.to_numpy(zero_copy_only=False).reshape(-1, width)[offset : offset + len(array)]
    return emb_ND, has


def vectors_column(emb_ND: Array, has: Mask) -> pa.Array:
    """An `embedding` column of (N, D) float16 rows, null where `has` is False."""
    flat = pa.array(np.ascontiguousarray(emb_ND, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, emb_ND.shape[1], mask=pa.array(~has))
