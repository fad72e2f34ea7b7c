"""Gzip as bytes by place: unpacked as it is read, the place kept, with marks to go back to. Nothing is written to disk.

Forward costs what lies between; backward, what lies behind the last mark. Where the stream is damaged, cut short, or
grows beyond a limit, its bytes end and `fault` says why. Format: RFC 1952, several members as one, zeros behind them.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from curator.errors import Cause
from curator.units import readable

MAGIC = b"\x1f\x8b"
STEP = 1 << 18  # unpacked bytes of one step; places and results do not hang on how a file is read
CHUNK = 1 << 16  # packed bytes that are handed over at once
EVERY = 32 << 20  # unpacked bytes between two marks, while there are few
MARKS = 256
SMALLEST_LIMIT = 1 << 20  # zeros at the end of a tiny tar shrink a thousandfold


@dataclass
class Mark:
    """A place to go on from: so many bytes unpacked, so many packed ones taken, and the state in between."""

    unpacked: int
    packed: int
    inflater: Any


class GzipFile:
    """One gzip'd file. May be read by several threads. `read(offset, count)` gives the packed bytes."""

    window, few, near, together = STEP, STEP, STEP, 1

    def __init__(self, read: Callable[[int, int], bytes], packed_bytes: int, window: int, growth: float = 0) -> None:
        self.fault: tuple[Cause, str] | None = None
        self._read, self._packed_bytes, self._packed_window = read, packed_bytes, window
        self._most = max(SMALLEST_LIMIT, int(growth * packed_bytes)) if growth else None
        self._lock = threading.RLock()
        self._marks, self._every = [Mark(0, 0, _inflater())], EVERY
        self._end: int | None = None  # unpacked bytes, once they are known
        self._known = 0  # unpacked bytes that were seen
        self._ahead, self._ahead_at = b"", 0  # packed bytes that were read along
        self._back_to(0)

    def pread(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end."""
        parts = []
        with self._lock:
            if offset < self._at or self._mark_at(offset).unpacked > self._at:
                self._back_to(offset)
            while count > 0:
                inside = offset - self._at
                part = self._held[inside : inside + count]
                parts.append(part)
                offset, count = offset + len(part), count - len(part)
                if count > 0 and not self._advance():
                    break
        return b"".join(parts)

    def preads(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """One after the other."""
        return (self.pread(*one) for one in ranges)

    def reaches(self, end: int) -> bool:
        """Whether there are so many bytes; unpacks up to there where that is not known."""
        with self._lock:
            if self._end is None and self._known < end and self._mark_at(self._known).unpacked > self._at:
                self._back_to(self._known)
            while self._end is None and self._known < end:
                self._advance()
            return end <= (self._known if self._end is None else self._end)

    def size(self) -> int:
        """All bytes; unpacks to the end where that is not known."""
        self.reaches(1 << 62)
        return self._end or 0

    def data_from(self, offset: int) -> int:
        """There are no holes."""
        return offset

    def _mark_at(self, offset: int) -> Mark:
        return next(m for m in reversed(self._marks) if m.unpacked <= offset)

    def _back_to(self, offset: int) -> None:
        mark = self._mark_at(offset)
        self._at, self._held = mark.unpacked, b""
        self._packed, self._inflater = mark.packed, mark.inflater.copy()

    def _advance(self) -> bool:
        """Take the next step; False at the end."""
        self._at += len(self._held)
        self._held = b""
        if self._end is not None and self._at >= self._end:
            return False
        if self._at >= self._marks[-1].unpacked + self._every:
            self._mark()
        held = self._step()
        if self._most is not None and self._at + len(held) > self._most:
            held = held[: self._most - self._at]
            self._end_here(
                held,
                Cause.EXPANDS_TOO_FAR,
                f"{readable(self._packed_bytes)} grew past {readable(self._most)} when unpacked; stopped there "
                "(`read.max_growth`)",
            )
        elif not held and self._end is None:
            self._end = self._at
        self._held = held
        self._known = max(self._known, self._at + len(held))
        return bool(held)

    def _mark(self) -> None:
        self._marks.append(Mark(self._at, self._packed, self._inflater.copy()))
        if len(self._marks) > MARKS:
            del self._marks[1::2]
            self._every *= 2

    def _end_here(self, last: bytes, cause: Cause, text: str) -> None:
        self._end = self._at + len(last)
        self.fault = self.fault or (cause, text)

    def _step(self) -> bytes:
        """The next STEP bytes at most; none at the end."""
        while True:
            if self._inflater.eof and not self._next_member():
                return b""
            feed = self._inflater.unconsumed_tail
            if not feed:
                feed = self._packed_from(self._packed)
                self._packed += len(feed)
            before = self._inflater.copy()
            try:
                out: bytes = self._inflater.decompress(feed, STEP)
            except zlib.error as error:
                out = _salvaged(before, feed)
                why = str(error).rpartition(": ")[2]
                text = f"the gzip stream is damaged before byte {self._packed:,} of the packed file ({why})"
                self._end_here(out, Cause.CORRUPT, f"{text}, {self._at + len(out):,} bytes were unpacked")
                return out
            if out:
                return out
            if not feed:
                text = f"the gzip stream breaks off at byte {self._packed_bytes:,} of the packed file"
                self._end_here(b"", Cause.TRUNCATED, f"{text}, {self._at:,} bytes were unpacked")
                return b""

    def _next_member(self) -> bool:
        """Whether another member follows; anything else than zeros that does is told."""
        rest = self._inflater.unused_data
        self._packed -= len(rest)
        while (rest := self._packed_from(self._packed)) and not rest.strip(b"\0"):
            self._packed += len(rest)
        self._packed += len(rest) - len(rest.lstrip(b"\0"))
        head = self._read(self._packed, len(MAGIC))
        if head == MAGIC:
            self._inflater = _inflater()
            return True
        if head:
            text = f"{self._packed_bytes - self._packed:,} bytes behind the gzip stream are no gzip"
            self._end_here(b"", Cause.DAMAGED_AT_OFFSET, text)
        return False

    def _packed_from(self, offset: int) -> bytes:
        """CHUNK packed bytes, out of a larger window; always cut at the same places, as results hang on that."""
        count = CHUNK - offset % CHUNK
        begin = offset - self._ahead_at
        if begin < 0 or begin + count > len(self._ahead):
            self._ahead_at, self._ahead = offset, self._read(offset, max(count, self._packed_window))
            begin = 0
        return self._ahead[begin : begin + count]


def _inflater() -> Any:
    return zlib.decompressobj(wbits=31)


def _salvaged(inflater: Any, feed: bytes) -> bytes:
    """What can be unpacked of `feed` before the place where it is damaged."""
    out, size = [], STEP
    while size:
        before = inflater.copy()
        try:
            part = inflater.decompress(feed, size)
        except zlib.error:
            inflater, size = before, size // 2
            continue
        if not part:
            break
        out.append(part)
        feed = inflater.unconsumed_tail
    return b"".join(out)
