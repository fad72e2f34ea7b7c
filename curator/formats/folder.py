"""A folder of images is one shard: every image below it a sample, with all files of the same stem that are no images.

Tars below it are shards of their own; dot-names, and folders that are no input, are passed over.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from curator import remote
from curator.errors import Cause
from curator.formats import bucket
from curator.formats.base import Damage, Member, Sample, Shard, ShardIndex
from curator.formats.files import GZIPPED
from curator.formats.pieces import cut
from curator.ledger import shown
from curator.signatures import format_of
from curator.units import readable

IMAGE_SUFFIXES = frozenset(
    b"avif bmp dib gif jfif jpe jpeg jpg png tif tiff webp heic heif jp2 jxl ico psd eps svg pdf".split()
)
TEXTS = frozenset((b"txt", b"json"))  # never looked into for an image
MAGIC = 32  # bytes that tell an image
TARS = (b".tar", *map(str.encode, GZIPPED))  # shards of their own
GONE = -1  # the size of a link to nothing


@dataclass
class Passed:
    """What a walk passed over: folders that cannot be read, and how many dot-names, linked folders, pipes and such."""

    lost: list[bytes] = field(default_factory=list)
    others: int = 0


class FolderReader:
    """Reads a folder as one shard."""

    def index(self, shard: Shard, max_bytes: int) -> ShardIndex:
        """Every image below the folder, in lexicographic order of its path."""
        passed = Passed()
        names = dict(walk(shard, passed))
        images = [name for name in names if is_image(shard.path, name)]
        stems = Counter(map(stem_of, images))
        beside: dict[bytes, list[bytes]] = defaultdict(list)
        for name in names.keys() - set(images):
            if stem_of(name) in stems:
                beside[stem_of(name)].append(name)
        samples = []
        for name in images:
            stem = stem_of(name)
            members = tuple(_member(shard, n, names[n], max_bytes) for n in (name, *sorted(beside[stem])))
            samples.append(Sample(name if stems[stem] > 1 else stem, members))
        unused = len(names) - len(images) - sum(map(len, beside.values()))
        damage = _damage(shard, passed.lost)
        return ShardIndex(samples, cut(samples, by_content=True), damage, unused + passed.others)

    def stamp(self, shard: Shard, members: Iterable[Member] | None = None) -> str:
        """A hash over path, size, time and readability of every file below, or of some."""
        if remote.is_url(shard.path):
            return bucket.stamp(shard, members)
        digest = hashlib.sha256()
        root = os.fsencode(shard.path)
        names = (m.name for m in members) if members is not None else (name for name, _ in walk(shard))
        for name in names:
            path = os.path.join(root, name)
            status = os.stat(path) if os.path.exists(path) else os.lstat(path)
            state = (name, status.st_size, status.st_mtime_ns, os.access(path, os.R_OK))
            digest.update(b"%b\0%d\0%d\0%d\0" % state)
        return digest.hexdigest()

    def read(self, shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
        """The bytes of each file, in order; one is open at a time. OSError where one has another size by now."""
        if remote.is_url(shard.path):
            yield from bucket.read(shard, members)
            return
        for member in members:
            with open(os.path.join(os.fsencode(shard.path), member.name), "rb") as file:
                content = file.read()
            if len(content) != member.size:
                raise OSError(f"{shard.given}: {os.fsdecode(member.name)} has another size than before")
            yield content


def _member(shard: Shard, name: bytes, size: int, max_bytes: int) -> Member:
    path = os.path.join(os.fsencode(shard.path), name)
    if remote.is_url(shard.path):
        pass
    elif size == GONE:
        what = f'a link to "{shown(os.readlink(path))}", which is not there' if os.path.islink(path) else "it is gone"
        return Member(name, 0, 0, Cause.UNREADABLE, f"cannot be read: {what}")
    elif not os.access(path, os.R_OK):
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


def walk(shard: Shard, passed: Passed | None = None) -> Iterator[tuple[bytes, int]]:
    """Relative path and size of every file of a folder shard, in lexicographic order of the paths.

    A link to a file is that file; one to nothing has the size GONE; linked folders are not entered. What is passed
    over is noted in `passed`.
    """
    if remote.is_url(shard.path):
        yield from _listed(shard, Passed() if passed is None else passed)
        return
    skip = {os.fsencode(s) for s in shard.skip}
    yield from _walk(os.fsencode(shard.path), b"", skip, Passed() if passed is None else passed)


def _listed(shard: Shard, passed: Passed) -> Iterator[tuple[bytes, int]]:
    """The same of a folder behind a URL, in one listing."""
    for name, size in bucket.names(shard):
        if name.startswith(b".") or b"/." in name:
            passed.others += 1
        elif not name.lower().endswith(TARS):
            yield name, size


def _walk(root: bytes, below: bytes, skip: set[bytes], passed: Passed) -> Iterator[tuple[bytes, int]]:
    try:
        with os.scandir(os.path.join(root, below)) as entries:
            # a folder's slash sorts with its files' names, so that the whole is in order of the paths
            found = sorted((e.name + (b"/" if e.is_dir(follow_symlinks=False) else b""), e) for e in entries)
    except PermissionError:
        passed.lost.append(below or b".")
        return
    for name, entry in found:
        if name.startswith(b"."):
            passed.others += 1
            continue
        if name.endswith(b"/"):
            if not skip or os.path.realpath(entry.path) not in skip:
                yield from _walk(root, below + name, skip, passed)
        elif (size := _size(entry)) is None:
            passed.others += 1
        elif not name.lower().endswith(TARS):
            yield below + name, size


def _size(entry: os.DirEntry[bytes]) -> int | None:
    """Bytes of a file; GONE for a link to nothing; None for what is no file (a linked folder, a pipe)."""
    try:
        if entry.is_file():
            return entry.stat().st_size
        return GONE if entry.is_symlink() and not os.path.exists(entry.path) else None
    except OSError:  # a link in a circle
        return GONE


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
    if suffix in IMAGE_SUFFIXES or suffix in TEXTS:
        return suffix in IMAGE_SUFFIXES
    if remote.is_url(folder):
        return format_of(bucket.beginning(folder, name, MAGIC)) is not None
    try:
        with open(Path(folder) / os.fsdecode(name), "rb") as file:
            return format_of(file.read(MAGIC)) is not None
    except OSError:
        return False
