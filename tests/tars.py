"""Tars as they are not supposed to be, made byte by byte."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

BLOCK = 512


def tar_of(members: Sequence[tuple[str, bytes]], end: bool = True, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A plain tar by tarfile; `end` False leaves the end marker out."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        size = tar.offset
    return file.getvalue() if end else file.getvalue()[:size]


def special(name: str, kind: bytes, target: str = "") -> bytes:
    """The header of a link, device or pipe."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info.tobuf(tarfile.GNU_FORMAT)


def offset_of(tar: bytes, name: str) -> int:
    """Where the header of a member begins."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmember(name).offset


def sparse(name: str, real_size: int) -> bytes:
    """An old GNU sparse header that claims `real_size` bytes and holds none."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:BLOCK])
    block[483:495] = b"%011o\0" % real_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def with_checksum(block: bytes, signed: bool = False) -> bytes:
    """A header block with the checksum that its other bytes add up to; `signed`, as some old tars added them."""
    blank = block[:148] + b" " * 8 + block[156:BLOCK]
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in blank)
    return blank[:148] + b"%06o\0 " % total + blank[156:]


def pax(**records: bytes) -> bytes:
    """A pax header for the next member; `__` in a name stands for a dot."""
    content = b""
    for name, value in records.items():
        rest = len(name.replace("__", ".")) + len(value) + 3
        length = next(n for n in range(rest, rest + 9) if n == rest + len(str(n)))
        content += b"%d %b=%b\n" % (length, name.replace("__", ".").encode(), value)
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)
