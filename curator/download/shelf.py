"""What was fetched and where it lies: tars of bodies as they came, and beside each a table of what was asked for.

    00000.tar        bodies, named by the SHA-256 of their URLs, in the order in which they came
    00000.parquet    one row per URL that was settled meanwhile, fetched or failed; written behind its tar
    damaged/         tables that cannot be read, and their tars

The table is what makes a tar count: a tar without one is of a killed run, and its URLs are fetched again. Where
tables differ about a URL, the later one holds. Knows nothing about how anything is fetched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.commit import TEMPORARY, commit, explained, sync_folder
from curator.errors import Cause, Fault, StoreError
from curator.signatures import format_of, usual_suffix
from curator.stage import Array

BLOCK = 512
RECORD = 20 * BLOCK  # tars end on a multiple of this, as other programs write them

SCHEMA = pa.schema(
    [
        ("url", pa.string()),  # as given
        ("url_hash", pa.uint64()),  # the first eight bytes of its SHA-256, to look it up by
        ("tar", pa.string()),  # null where nothing was fetched
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("content_type", pa.string()),
        ("final_url", pa.string()),  # the last one asked, redirects followed
        ("status", pa.int16()),  # 0: there was no answer
        ("cause", pa.string()),  # null where it was fetched
        ("detail", pa.string()),
        ("attempts", pa.int32()),  # requests, in all runs, redirects not counted
        ("opt_out", pa.string()),  # what the server asks for, where that was not obeyed
    ]
)


class Content(Protocol):
    """A body: its size, its first bytes, all its bytes in order."""

    size: int
    head: bytes

    def blocks(self) -> Iterator[bytes]:
        """All bytes."""

    def close(self) -> None:
        """They are not needed any more."""


@dataclass
class Settled:
    """One URL of which it is known what became of it: it has a body, or a cause."""

    url: str
    body: Content | None = None
    cause: Cause | None = None
    detail: str = ""
    status: int = 0
    content_type: str = ""
    final_url: str = ""
    attempts: int = 0
    opt_out: str = ""


@dataclass(frozen=True)
class Place:
    """Where the bytes of a URL lie: `size` bytes from `offset` of a tar."""

    tar: Path
    offset: int
    size: int
    sha256: str
    content_type: str
    final_url: str
    opt_out: str


class Shelf:
    """What lies in one folder, as it is when this is made. Raises StoreError where it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[int] = []
        tables = [table for number in numbers(folder, ".parquet") if (table := self._table(number)) is not None]
        self._rows = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        hashes: Array = self._rows.column("url_hash").to_numpy()
        self._order = np.argsort(hashes, kind="stable")  # of equal ones the latest is the last
        self._hashes = hashes[self._order]
        self._sizes: dict[str | None, int] = {}

    def _table(self, number: int) -> pa.Table | None:
        path = self.folder / f"{number:05d}.parquet"
        try:
            return pq.read_table(path, schema=SCHEMA, page_checksum_verification=True, memory_map=False)
        except PermissionError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}.") from error
        except (pa.ArrowException, OSError, ValueError, KeyError):
            self.damaged.append(number)
            return None

    def look(self, urls: Sequence[str]) -> list[Place | Fault]:
        """For each URL where its bytes lie, or why they do not: a cause and a sentence."""
        rows = self._find(urls)
        names = ("tar", "offset", "size", "sha256", "content_type", "final_url", "opt_out", "cause", "detail")
        return [self._told(*facts) for facts in self._taken(names, rows)]

    def state(self, urls: Sequence[str]) -> bytes:
        """A SHA-256 that is another as soon as anything else became of one of these URLs."""
        digest = hashlib.sha256()
        for told in self._taken(("tar", "offset", "sha256", "cause"), self._find(urls)):
            digest.update(repr(told).encode())
        return digest.digest()

    def attempts(self, urls: Sequence[str]) -> list[int]:
        """How often each URL was asked for so far."""
        return [attempts or 0 for (attempts,) in self._taken(("attempts",), self._find(urls))]

    def _told(
        self, tar: str | None, offset: int, size: int, sha256: str, content_type: str, final_url: str, opt_out: str,
        cause: str | None, detail: str,
    ) -> Place | Fault:  # fmt: skip
        if cause is not None:
            return Fault(Cause(cause), detail)
        if tar is None or offset + size > self._size(tar):  # a tar that is gone or cut has lost its URLs
            return Fault(Cause.NOT_FETCHED, "This URL has not been fetched yet; run the same command again.")
        return Place(self.folder / tar, offset, size, sha256, content_type, final_url, opt_out)

    def _size(self, tar: str) -> int:
        if tar not in self._sizes:
            try:
                self._sizes[tar] = (self.folder / tar).stat().st_size
            except OSError:
                self._sizes[tar] = -1
        return self._sizes[tar]

    def _find(self, urls: Sequence[str]) -> Array:
        """The row of each URL; -1 where there is none."""
        wanted: Array = np.array([_hash(url) for url in urls], np.uint64)
        last = np.searchsorted(self._hashes, wanted, side="right") - 1
        rows = np.full(len(urls), -1, np.int64)
        hit = last >= 0
        hit[hit] = self._hashes[last[hit]] == wanted[hit]
        rows[hit] = self._order[last[hit]]
        for n, (found,) in enumerate(self._taken(("url",), rows)):
            if found is not None and found != _text(urls[n]):  # another URL with the same hash
                rows[n] = self._other(urls[n], int(last[n]), int(wanted[n]))
        return rows

    def _other(self, url: str, last: int, wanted: int) -> int:
        while last >= 0 and int(self._hashes[last]) == wanted:
            row = int(self._order[last])
            if self._rows.column("url")[row].as_py() == _text(url):
                return row
            last -= 1
        return -1

    def _taken(self, names: Sequence[str], rows: Array) -> Iterator[tuple[Any, ...]]:
        """Some columns of some rows, nulls where a row is -1."""
        wanted = pa.array(rows, mask=rows < 0)
        return zip(*(self._rows.column(name).take(wanted).to_pylist() for name in names), strict=True)


class Batch:
    """What is being written: one tar and its table, neither of which is there before `seal`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.count = self.bytes = 0
        self.rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._open = ExitStack()
        self._file: IO[bytes] | None = None

    def add(self, settled: Settled) -> None:
        """Take one URL; its body is closed. Raises OutsideError where the disk cannot take it."""
        row = {
            "url": _text(settled.url), "url_hash": _hash(settled.url), "content_type": settled.content_type,
            "final_url": settled.final_url, "status": settled.status, "attempts": settled.attempts,
            "cause": settled.cause and str(settled.cause), "detail": settled.detail, "opt_out": settled.opt_out,
            "tar": None, "offset": None, "size": None, "sha256": None,
        }  # fmt: skip
        if settled.body is not None:
            row |= {"tar": self._tar.name, "size": settled.body.size}
            try:
                row["offset"], row["sha256"] = self._write(settled.url, settled.body)
            except OSError as error:
                raise explained(error, self._tar) from error
            finally:
                settled.body.close()
            self.count += 1
        for name, value in row.items():
            self.rows[name].append(value)

    @property
    def _tar(self) -> Path:
        return self.folder / f"{self.number:05d}.tar"

    def _write(self, url: str, body: Content) -> tuple[int, str]:
        """Write a member; gives its data's offset and SHA-256."""
        if self._file is None:
            self._file = self._open.enter_context(commit(self._tar))
        info = tarfile.TarInfo(f"{url_digest(url).hex()}.{suffix(body.head)}")
        info.size = body.size
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        digest = hashlib.sha256()
        for block in body.blocks():
            digest.update(block)
            self._file.write(block)
        self._file.write(bytes(-body.size % BLOCK))
        offset = self.bytes + BLOCK
        self.bytes = self.with_member(body.size)
        return offset, digest.hexdigest()

    def with_member(self, size: int) -> int:
        """The bytes of the tar with one more member of this size, its end not counted."""
        return self.bytes + BLOCK + size + -size % BLOCK

    def seal(self) -> None:
        """Make both files appear, the tar first. Raises OutsideError where the disk cannot take them."""
        if self._file is not None:
            try:
                self._file.write(bytes(2 * BLOCK + -(self.bytes + 2 * BLOCK) % RECORD))
            except OSError as error:
                self.drop()
                raise explained(error, self._tar) from error
            self._open.close()
        if self.rows["url"]:
            with commit(self.folder / f"{self.number:05d}.parquet") as file:
                pq.write_table(pa.table(self.rows, SCHEMA), file, write_page_checksum=True, compression="zstd")

    def drop(self) -> None:
        """Give up what was not sealed."""
        self._open.__exit__(RuntimeError, RuntimeError("given up"), None)


def numbers(folder: Path, suffix: str) -> list[int]:
    """The numbers of the tars or tables in a folder, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read: {error.strerror}.") from error
    return sorted(int(n.removesuffix(suffix)) for n in names if n.endswith(suffix) and n.removesuffix(suffix).isdigit())


def next_number(folder: Path) -> int:
    """The first number that nothing in a folder has or had."""
    taken = [*numbers(folder, ".parquet"), *numbers(folder, ".tar"), *numbers(folder / "damaged", ".parquet")]
    return max(taken, default=-1) + 1


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, hold it alone, and clear away what a killed run left unfinished.

    Raises StoreError where another run fetches into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise explained(error, folder) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"{folder}: another run fetches into it; run again when that is done.") from error
        _clear(folder)
        yield
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    damaged = Shelf(folder).damaged
    try:
        for path in folder.glob(f"{TEMPORARY}*"):
            path.unlink()
        for number in damaged:
            (folder / "damaged").mkdir(exist_ok=True)
            for path in (folder / f"{number:05d}.parquet", folder / f"{number:05d}.tar"):
                if path.exists():
                    path.rename(folder / "damaged" / path.name)
        told = set(numbers(folder, ".parquet"))
        for number in numbers(folder, ".tar"):
            if number not in told:
                (folder / f"{number:05d}.tar").unlink()
        sync_folder(folder)
    except OSError as error:
        raise explained(error, folder) from error


def suffix(head: bytes) -> str:
    """The suffix that fits a body's first bytes; `bin` where none does."""
    form = format_of(head)
    return usual_suffix(form) if form else "bin"


def url_digest(url: str) -> bytes:
    """The SHA-256 of a URL as it was given."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()


def _hash(url: str) -> int:
    return int.from_bytes(url_digest(url)[:8], "big")


def _text(url: str) -> str:
    """A URL as Arrow can hold it."""
    return url.encode("utf-8", "backslashreplace").decode()
