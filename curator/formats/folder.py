"""A folder of images is one shard: every image below it a sample, with the `.txt` and `.json` of the same stem.

Tars below it are shards of their own; dot-names, and folders that are no input, are passed over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from curator.errors import Cause
from curator.formats.base import Damage, Member, Sample, Shard, ShardIndex
from curator.formats.pieces import cut
from curator.signatures import format_of
from curator.units import readable

IMAGE_SUFFIXES = frozenset(
    b"avif bmp dib gif jfif jpe jpeg jpg png tif tiff webp heic heif jp2 jxl ico psd eps svg pdf".split()
)
SIDECARS = frozenset((b"txt", b"json"))
MAGIC = 32  # bytes that tell an image


class FolderReader:
    """Reads a folder as one shard."""

    def index(self, shard: Shard, max_bytes: int) -> ShardIndex:
        """Every image below the folder, in lexicographic order of its path."""
        lost: list[bytes] = []
        names = dict(walk(shard, lost))
        images = [name for name in names if is_image(shard.path, name)]
        stems: dict[bytes, int] = {}
        for name in images:
            stems[stem_of(name)] = stems.get(stem_of(name), 0) + 1
        samples = []
        used = set(images)
        for name in images:
            stem = stem_of(name)
            beside = [other for other in (stem + b".json", stem + b".txt") if other in names]
            used.update(beside)
            members = tuple(_member(shard, n, names[n], max_bytes) for n in (name, *beside))
            samples.append(Sample(name if stems[stem] > 1 else stem, members))
        return ShardIndex(samples, cut(samples, by_content=True), _damage(shard, lost), len(names) - len(used))

    def stamp(self, shard: Shard, members: Iterable[Member] | None = None) -> str:
        """A hash over path, size, time and readability of every file below, or of some."""
        digest = hashlib.sha256()
        root = os.fsencode(shard.path)
        names = (m.name for m in members) if members is not None else (name for name, _ in walk(shard))
        for name in names:
            path = os.path.join(root, name)
            status = os.stat(path)
            state = (name, status.st_size, status.st_mtime_ns, os.access(path, os.R_OK))
            digest.update(b"%b\0%d\0%d\0%d\0" % state)
        return digest.hexdigest()

    def read(self, shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
        """The bytes of each file, in order; one is open at a time. OSError where one has another size by now."""
        for member in members:
            with open(os.path.join(os.fsencode(shard.path), member.name), "rb") as file:
                content = file.read()
            if len(content) != member.size:
                raise OSError(f"{shard.given}: {os.fsdecode(member.name)} has another size than before")
            yield content


def _member(shard: Shard, name: bytes, size: int, max_bytes: int) -> Member:
    if not os.access(os.path.join(os.fsencode(shard.path), name), os.R_OK):
        return Member(name, 0, size, Cause.UNREADABLE, "cannot be read: permission denied")
    if size <= max_bytes:
        return Member(name, 0, size)
    text = f"has {readable(size)}, limit {readable(max_bytes)} (`read.max_member_bytes`)"
    return Member(name, 0, size, Cause.MEMBER_TOO_LARGE, text)


def _damage(shard: Shard, lost: list[bytes]) -> Damage | None:
    if not lost:
        return None
    names = ", ".join(os.fsdecode(name) for name in lost[:5]) + (" ..." if len(lost) > 5 else "")
    return Damage(Cause.UNREADABLE, f"{shard.given}: folders that cannot be read, permission denied: {names}")


def walk(shard: Shard, lost: list[bytes] | None = None) -> Iterator[tuple[bytes, int]]:
    """Relative path and size of every file of a folder shard, in lexicographic order of the paths.

    Folders that cannot be read are added to `lost`.
    """
    skip = {os.fsencode(s) for s in shard.skip}
    yield from _walk(os.fsencode(shard.path), b"", skip, [] if lost is None else lost)


def _walk(root: bytes, below: bytes, skip: set[bytes], lost: list[bytes]) -> Iterator[tuple[bytes, int]]:
    try:
        with os.scandir(os.path.join(root, below)) as entries:
            # a folder's slash sorts with its files' names, so that the whole is in order of the paths
            found = sorted((e.name + (b"/" if e.is_dir(follow_symlinks=False) else b""), e) for e in entries)
    except PermissionError:
        lost.append(below or b".")
        return
    for name, entry in found:
        if name.startswith(b"."):
            continue
        if name.endswith(b"/"):
            if not skip or os.path.realpath(entry.path) not in skip:
                yield from _walk(root, below + name, skip, lost)
        elif entry.is_file() and not name.lower().endswith(b".tar"):
            yield below + name, entry.stat().st_size


def stem_of(name: bytes) -> bytes:
    """A relative path without its last suffix."""
    folder, slash, base = name.rpartition(b"/")
    dot = base.rfind(b".", 1)
    return folder + slash + (base[:dot] if dot > 0 else base)


def suffix_of(name: bytes) -> bytes:
    """The last suffix, in lower case."""
    base = name.rpartition(b"/")[2]
    return base.rpartition(b".")[2].lower() if b"." in base[1:] else b""


def is_image(folder: str, name: bytes) -> bool:
    """A known suffix, or an image's first bytes under an unknown one."""
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES or suffix in SIDECARS:
        return suffix in IMAGE_SUFFIXES
    try:
        with open(Path(folder) / os.fsdecode(name), "rb") as file:
            return format_of(file.read(MAGIC)) is not None
    except OSError:
        return False
