"""The bytes of a shard by place, wherever they lie: a file on disk, an object behind a URL, either of them gzip'd.

A file on disk is read as it is. Of an object, ranges are fetched, several at once; what was fetched a moment ago is
kept in one temporary file, since a piece is read twice. Gzip is unpacked as it is read (`gzipped.py`).
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from curator import remote
from curator.errors import Cause
from curator.formats.gzipped import MAGIC, GzipFile

GZIPPED = (".tar.gz", ".tgz")
OPEN_AT_ONCE = 4  # gzip'd files that a process keeps open, each where it was read last
SPOOL_BLOCK = 16 << 10
SPOOL_BYTES = 1 << 30  # of what was fetched: when so much is kept, it goes as a whole


class File(Protocol):
    """Bytes by place."""

    window: int  # bytes worth reading at once while headers lie close together
    near: int  # how far behind what was read the next one then is at most
    few: int  # bytes worth reading at once where they lie far apart
    together: int  # ranges that are worth asking for at once

    @property
    def fault(self) -> tuple[Cause, str] | None:
        """Why its bytes end early, where they do."""

    def pread(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end."""

    def preads(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of several ranges, each (offset, count)."""

    def reaches(self, end: int) -> bool:
        """Whether there are so many bytes."""

    def size(self) -> int:
        """All bytes."""

    def data_from(self, offset: int) -> int:
        """The first place from `offset` that does not lie in a hole; the end where there is none."""


@contextmanager
def opened(path: str, growth: float = 0) -> Iterator[File]:
    """A file for reading. OSError where it cannot be opened.

    `growth`: how many times its size a gzip'd one may unpack to; 0: as far as it goes.
    """
    file = _raw(path)
    try:
        if path.lower().endswith(GZIPPED) and file.pread(0, 2) == MAGIC:
            yield _unpacked(path, growth)
        else:
            yield file
    finally:
        file.close()


def stamp_of(path: str) -> str:
    """Size and time of last change of a file on disk."""
    status = os.stat(path)
    return f"{status.st_size}:{status.st_mtime_ns}"


def _raw(path: str) -> OnDisk | Object:
    return Object(path) if remote.is_url(path) else OnDisk(path)


class OnDisk:
    """An open file of this machine."""

    window, near, few, together, fault = 1 << 18, 1 << 18, 4096, 1, None

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by whoever opened it
        self.descriptor = self._file.fileno()
        status = os.fstat(self.descriptor)
        self._size, self.stamp = status.st_size, f"{status.st_size}:{status.st_mtime_ns}"

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def pread(self, offset: int, count: int) -> bytes:
        """One call of the system gives 2 GiB at most."""
        block = os.pread(self.descriptor, count, offset)
        while 0 < len(block) < count:
            more = os.pread(self.descriptor, count - len(block), offset + len(block))
            if not more:
                break
            block += more
        return block

    def preads(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """One after the other."""
        return (self.pread(*one) for one in ranges)

    def reaches(self, end: int) -> bool:
        """By its size when it was opened."""
        return end <= self._size

    def size(self) -> int:
        """As when it was opened."""
        return self._size

    def data_from(self, offset: int) -> int:
        """As the file system says; `offset` where it does not."""
        try:
            return os.lseek(self.descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            return self._size if error.errno == errno.ENXIO else offset


class Object:
    """An object behind a URL. A request takes as long as some hundred KiB: so windows are larger than on disk."""

    window, near, few, together, fault = 4 << 20, 1 << 20, 1 << 16, remote.SIDE_BY_SIDE, None

    def __init__(self, url: str) -> None:
        self.url = url
        self.entry = remote.stat(url)
        self.stamp = self.entry.stamp

    def close(self) -> None:
        """Nothing is held open."""

    def pread(self, offset: int, count: int) -> bytes:
        """One range, cut at the object's end."""
        return next(self.preads([(offset, count)]))

    def preads(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """All of them side by side, what is still at hand excepted. OSError where the object is shorter by now."""
        cut = [(offset, min(offset + count, self.entry.size)) for offset, count in ranges]
        blocks = dict.fromkeys(b for begin, end in cut for b in range(begin // SPOOL_BLOCK, -(-end // SPOOL_BLOCK)))
        held = SPOOL.take([(self.entry, block) for block in blocks])
        gaps = list(_runs([block for block, content in zip(blocks, held, strict=True) if content is None]))
        have = {block: content for block, content in zip(blocks, held, strict=True) if content is not None}
        asked = [(self.url, a * SPOOL_BLOCK, min(b * SPOOL_BLOCK, self.entry.size)) for a, b in gaps]
        for (_, begin, end), content in zip(asked, remote.ranges(asked), strict=True):
            if len(content) != end - begin:
                raise OSError(errno.EINVAL, "shorter than before", self.url)
            for start in range(0, len(content), SPOOL_BLOCK):
                have[(begin + start) // SPOOL_BLOCK] = content[start : start + SPOOL_BLOCK]
            SPOOL.lay([((self.entry, b), have[b]) for b in range(begin // SPOOL_BLOCK, -(-end // SPOOL_BLOCK))])
        for begin, end in cut:
            first = begin // SPOOL_BLOCK
            whole = b"".join(have[block] for block in range(first, -(-end // SPOOL_BLOCK)))
            yield whole[begin - first * SPOOL_BLOCK : max(begin, end) - first * SPOOL_BLOCK]

    def reaches(self, end: int) -> bool:
        """By its size as listed."""
        return end <= self.entry.size

    def size(self) -> int:
        """As listed."""
        return self.entry.size

    def data_from(self, offset: int) -> int:
        """An object has no holes."""
        return offset


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First block and the one behind the last of each run of neighbours."""
    first = last = None
    for block in blocks:
        if last is not None and block == last + 1:
            last = block
            continue
        if first is not None and last is not None:
            yield first, last + 1
        first = last = block
    if first is not None and last is not None:
        yield first, last + 1


class Spool:
    """What this process fetched a moment ago, in a temporary file that has no name; forgotten as a whole when full."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.places: dict[object, tuple[int, int]] = {}
        self.file: int | None = None
        self.end = 0

    def take(self, keys: Sequence[object]) -> list[bytes | None]:
        """What lies under each key; None where nothing does."""
        with self.lock:
            found = [self.places.get(key) for key in keys]
            return [None if p is None or self.file is None else os.pread(self.file, p[1], p[0]) for p in found]

    def lay(self, contents: Sequence[tuple[object, bytes]]) -> None:
        """Keep some bytes for a while; where the disk has no room for them, they are fetched again."""
        with self.lock:
            if self.file is None or self.end > SPOOL_BYTES:
                self._anew()
            for key, content in contents:
                try:
                    written = os.pwrite(self.file or 0, content, self.end)
                except OSError:
                    self._anew()
                    return
                if written == len(content):
                    self.places[key] = (self.end, written)
                self.end += written

    def _anew(self) -> None:
        self.places.clear()
        self.end = 0
        if self.file is None:
            with tempfile.TemporaryFile(prefix="curator-") as file:
                self.file = os.dup(file.fileno())
        os.ftruncate(self.file, 0)


SPOOL = Spool()

_unpacking: OrderedDict[tuple[str, str, float], GzipFile] = OrderedDict()
_lock = threading.Lock()


def _unpacked(path: str, growth: float) -> GzipFile:
    """A gzip'd file: as it was left the last time, or opened. Who reads one that is no longer kept still holds it."""
    file = _raw(path)
    key = (path, file.stamp, growth)
    with _lock:
        if key in _unpacking:
            file.close()
            _unpacking.move_to_end(key)
        else:
            _unpacking[key] = GzipFile(file.pread, file.size(), file.window, growth)
            if len(_unpacking) > OPEN_AT_ONCE:
                _unpacking.popitem(last=False)
        return _unpacking[key]
