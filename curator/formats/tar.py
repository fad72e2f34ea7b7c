"""Tar files as they are found: every member with its place, and every damage with its offset. Nothing is extracted.

Python's `tarfile` and webdataset end silently at a damaged or zeroed header. Here, only zeros may follow the end
marker; if a valid header does, archives were joined and reading goes on; if anything else does, or a header is
damaged, the next valid header is searched for, and what was skipped is told. Formats: POSIX ustar and pax, GNU, v7.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from curator.errors import Cause
from curator.formats.base import Damage, Member
from curator.formats.files import File, OnDisk, opened
from curator.units import readable

BLOCK = 512
EXTENDED_MAX = 1 << 20  # a longer name or pax header is damage
SKIM = 1 << 18  # bytes of zeros that are looked at in one read, at most
SEARCH_FIRST, SEARCH = 1 << 16, 1 << 23  # bytes of a search's first read and of its largest: each doubles the last
ZEROS = bytes(BLOCK)
SHOWN = 8  # damages told one by one
MOST = 1 << 62  # no size is larger; what claims more is shown as this

REGULAR, LINKS = b"\x000 7", b"12"
DIRECTORIES = b"5DV"  # GNU's list of a directory and name of a volume are no files either
WITHOUT_DATA = b"346"  # devices and pipes, whatever size they state
CHECKSUM = re.compile(rb" *[0-7]+[\0 ]")


@dataclass
class TarIndex:
    """What a tar holds. `members` with the notes that belong to them, in order."""

    members: list[tuple[Member, tuple[str, ...]]] = field(default_factory=list)
    faults: list[tuple[Cause, str]] = field(default_factory=list)
    directories: int = 0

    def damage(self, name: str) -> Damage | None:
        """All faults as one, each with its offset."""
        if not self.faults:
            return None
        told = "; ".join(text for _, text in self.faults[:SHOWN])
        more = f"; and {len(self.faults) - SHOWN:,} more" if len(self.faults) > SHOWN else ""
        return Damage(self.faults[0][0], f"{name}: {told}{more}. {len(self.members):,} members read")


@dataclass
class Header:
    """One header block, read."""

    name: bytes
    size: int  # -1 where it is negative
    kind: bytes
    magic: bool  # whether it says `ustar`, as all but v7 do


class Blocks:
    """A file's bytes by place, read in larger windows."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.reaches = file.reaches  # whether it has so many bytes
        self._start, self._bytes = 0, b""

    def at(self, offset: int, count: int = BLOCK) -> bytes:
        """`count` bytes from `offset`, fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + count > len(self._bytes):
            self._bytes = self.file.pread(offset, max(count, self.file.window if self._near(offset) else self.file.few))
            self._start, begin = offset, 0
        return self._bytes[begin : begin + count]

    @property
    def size(self) -> int:
        """All bytes of the file."""
        return self.file.size()

    def data_from(self, offset: int) -> int:
        """The first block from `offset` that does not lie in a hole of the file; its end where there is none."""
        place = self.file.data_from(offset)
        return max(offset, place - place % BLOCK)

    def _near(self, offset: int) -> bool:
        """Whether headers lie close: then a window holds many, else it would read images for nothing."""
        return 0 <= offset - self._start - len(self._bytes) <= self.file.near


def index_tar(path: str, max_bytes: int, growth: float = 0) -> TarIndex:
    """Every member of a tar. Damage is told in the index; raises OSError where the file cannot be read at all.

    `growth`: how many times its size a gzip'd one may unpack to; 0: as far as it goes.
    """
    with opened(path, growth) as file:
        if isinstance(file, OnDisk) and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        index = Walk(Blocks(file), max_bytes).index
        if file.fault is not None:
            index.faults.insert(0, file.fault)
        return index


class Walk:
    """One way through a tar, from header to header."""

    def __init__(self, blocks: Blocks, max_bytes: int) -> None:
        self.blocks, self.max_bytes = blocks, max_bytes
        self.index = TarIndex()
        self.notes: tuple[str, ...] = ()
        self.magic = False  # whether a header with the magic was seen: then headers without are not searched for
        self._forget()
        if (compressed := compression(blocks.at(0))) is not None:
            self._fault(Cause.UNREADABLE, f"is compressed with {compressed}; unpack it to a plain tar first")
        elif not blocks.reaches(1):
            if blocks.file.fault is None:
                self._fault(Cause.EMPTY_FILE, "the file has no bytes")
        else:
            self._walk()

    def _forget(self) -> None:
        """Whatever extended headers said belongs to no later member."""
        self.long_name: bytes | None = None
        self.pax: dict[bytes, bytes] = {}

    def _walk(self) -> None:
        at: int | None = 0
        while at is not None:
            if not self.blocks.reaches(at + BLOCK):
                self._ended(at)
                return
            block = self.blocks.at(at)
            if block == ZEROS:
                at = self._behind_zeros(at)
                continue
            header = parsed(block)
            at = self._damaged(at) if header is None else self._member(at, header)

    def _fault(self, cause: Cause, text: str) -> None:
        self.index.faults.append((cause, text))

    def _ended(self, at: int) -> None:
        """The file ends where a header or the end marker should be."""
        size = self.blocks.size
        if at < size:
            self._fault(Cause.DAMAGED_AT_OFFSET, f"{size - at} stray bytes at byte {at:,}")
        elif at - size >= BLOCK:
            self._fault(Cause.TRUNCATED, f"a member reaches to byte {at:,} and the file ends at byte {size:,}")
        else:
            text = f"ends at byte {size:,} with no end-of-archive blocks; it may be cut short"
            self._fault(Cause.NO_END_MARKER, text)

    def _behind_zeros(self, at: int) -> int | None:
        """What follows zeros: nothing (the end), another archive, or damage."""
        self._forget()
        behind = self._first_nonzero(at)
        if behind is None:
            return None
        if parsed(self.blocks.at(behind)) is not None:
            if behind - at >= 2 * BLOCK:
                self.notes = ("joined_archive",)
            else:
                self._fault(Cause.DAMAGED_AT_OFFSET, f"zeroed header at byte {at:,}")
            return behind
        return self._damaged(at)

    def _first_nonzero(self, at: int) -> int | None:
        """The first block from `at` that is not zeros; None where there is none to the end of the file."""
        step = BLOCK
        while self.blocks.reaches(at + 1):
            at, step = self.blocks.data_from(at), min(2 * step, SKIM)
            part = self.blocks.at(at, step)
            if part != bytes(len(part)):
                place = at + len(part) - len(part.lstrip(b"\0"))
                return place - place % BLOCK
            at += step
        return None

    def _damaged(self, at: int) -> int | None:
        """Search on from a bad header; what is skipped is told."""
        self._forget()
        found = self._next_header(at + BLOCK)
        end = self.blocks.size if found is None else found
        rest = "nothing readable behind it" if found is None else f"reading goes on at byte {found:,}"
        self._fault(Cause.DAMAGED_AT_OFFSET, f"bad header at byte {at:,}: {end - at:,} bytes skipped, {rest}")
        return found

    def _next_header(self, at: int) -> int | None:
        """The next block that is a header. Only in an archive without the magic is one without it looked for."""
        step = SEARCH_FIRST
        while self.blocks.reaches(at + 1):
            at = self.blocks.data_from(at)
            part = self.blocks.file.pread(at, step)
            for start in _with_magic(part) if self.magic else _with_checksum(part):
                if parsed(part[start : start + BLOCK]) is not None:
                    return at + start
            if len(part) < step:
                return None
            at, step = at + step, min(2 * step, SEARCH)
        return None

    def _member(self, at: int, header: Header) -> int | None:
        """Take in what a header announces; where the next one is."""
        data = at + BLOCK
        self.magic = self.magic or header.magic
        if header.kind in b"LKxgX":
            return self._extension(at, header)
        name, size, sparse = self._named(header)
        if size < 0:
            return self._damaged(at)
        if header.kind in DIRECTORIES or (header.kind in REGULAR and name.endswith(b"/")):
            self.index.directories += 1
            return data + rounded(size) if header.kind == b"D" else data
        if header.kind in LINKS:
            return self._unusable(name, data, 0, Cause.LINK_MEMBER, "a link; links are never followed")
        if sparse or header.kind == b"S":
            return self._sparse(at, name, size, header)
        if header.kind not in REGULAR:
            self._unusable(name, data, 0, Cause.SPECIAL_MEMBER, "a device, pipe or other special member")
            return data if header.kind in WITHOUT_DATA else data + rounded(size)
        return self._regular(at, name, data, size)

    def _sparse(self, at: int, name: bytes, size: int, header: Header) -> int:
        """A file with holes, which may claim any size: never read. Behind old GNU headers lie further maps of holes."""
        end = at + BLOCK
        if header.kind == b"S":
            size = max(size, number(self.blocks.at(at + 483, 12)) or 0)
            more = at + 482
            while self.blocks.at(more, 1) == b"\x01" and self.blocks.reaches(end + 1):
                more, end = end + 504, end + BLOCK
        text = f"claims {readable(min(size, MOST))} (sparse); sparse members are not read"
        self._unusable(name, at + BLOCK, 0, Cause.MEMBER_TOO_LARGE, text)
        return end + rounded(header.size)

    def _regular(self, at: int, name: bytes, data: int, size: int) -> int | None:
        if not self.blocks.reaches(data + size):
            self._fault(
                Cause.TRUNCATED,
                f"the member at byte {at:,} has {size:,} bytes and the file ends after {self.blocks.size - data:,}",
            )
            return None
        if size > self.max_bytes:
            text = f"has {readable(size)}, limit {readable(self.max_bytes)} (`read.max_member_bytes`)"
            self._unusable(name, data, size, Cause.MEMBER_TOO_LARGE, text)
        else:
            self.index.members.append((Member(name, data, size), self.notes))
        return data + rounded(size)

    def _unusable(self, name: bytes, data: int, size: int, cause: Cause, text: str) -> int:
        self.index.members.append((Member(name, data, size, cause, text), self.notes))
        return data

    def _named(self, header: Header) -> tuple[bytes, int, bool]:
        """Name, size and whether sparse, with what extended headers before it said."""
        name, size = self.long_name or self.pax.get(b"path", header.name), header.size
        sparse = any(key.startswith(b"GNU.sparse") for key in self.pax)
        if b"size" in self.pax:
            size = decimal(self.pax[b"size"])
        if sparse:
            name = self.pax.get(b"GNU.sparse.name", name)
            size = max(size, *(decimal(self.pax.get(b"GNU.sparse." + key, b"")) for key in (b"realsize", b"size")))
        self._forget()
        return name.split(b"\0", 1)[0].lstrip(b"/") or b"?", size, sparse

    def _extension(self, at: int, header: Header) -> int | None:
        """A header that says something about the next one."""
        data = at + BLOCK
        if not 0 <= header.size <= EXTENDED_MAX or not self.blocks.reaches(data + header.size):
            return self._damaged(at)
        content = self.blocks.at(data, header.size)
        if header.kind == b"L":
            self.long_name = content.split(b"\0", 1)[0]
        elif header.kind in b"xX":
            self.pax |= dict(pax_records(content))
        return data + rounded(header.size)


def _with_magic(part: bytes) -> Iterator[int]:
    """Where blocks begin that have the magic in its place."""
    place = part.find(b"ustar")
    while place >= 0:
        if place >= 257 and (place - 257) % BLOCK == 0:
            yield place - 257
        place = part.find(b"ustar", place + 1)


def _with_checksum(part: bytes) -> Iterator[int]:
    """Where blocks begin that have a number in the checksum's place."""
    return (at for at in range(0, len(part), BLOCK) if CHECKSUM.match(part, at + 148, at + 156))


def parsed(block: bytes) -> Header | None:
    """A header block, None where its checksum or its numbers are wrong."""
    if len(block) < BLOCK:
        return None
    stated, summed = octal(block[148:156]), block[:148] + block[156:]
    total = 8 * ord(" ") + sum(summed)
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in summed):  # old tars add signed bytes
        return None
    size = number(block[124:136])
    if size is None:
        return None
    name = block[:100].split(b"\0", 1)[0]
    magic = block[257:262] == b"ustar"
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return Header(prefix + b"/" + name if prefix else name, size, block[156:157], magic)


def decimal(text: bytes) -> int:
    """A size in a pax record; -1 where it is none that a file can have."""
    return int(text) if text.isdigit() and len(text) < 20 else -1


def octal(field_bytes: bytes) -> int | None:
    """A number in octal digits; None where there are other signs."""
    text = field_bytes.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return None


def number(field_bytes: bytes) -> int | None:
    """A size: octal digits, or GNU's base 256 where the first bit is set. Negative ones come out as -1."""
    if field_bytes[0] in (0x80, 0xFF):
        value = int.from_bytes(field_bytes[1:], "big")
        return -1 if field_bytes[0] == 0xFF else value
    value_or_none = octal(field_bytes)
    return -1 if value_or_none is not None and value_or_none < 0 else value_or_none


def pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """`length key=value` lines; ends at the first that is not one."""
    at = 0
    while at < len(content):
        digits, _, _ = content[at : at + 20].partition(b" ")
        if not digits.isdigit() or int(digits) < len(digits) + 3 or at + int(digits) > len(content):
            return
        key, equals, value = content[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if equals:
            yield key, value
        at += int(digits)


def rounded(size: int) -> int:
    """Bytes that `size` bytes of data take in a tar."""
    return -(-size // BLOCK) * BLOCK


def compression(beginning: bytes) -> str | None:
    """Which compression a file begins with, None for none that tars come in."""
    magic = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    return next((name for start, name in magic.items() if beginning.startswith(start)), None)
