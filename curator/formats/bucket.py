"""A folder behind a URL: its objects by listing, their bytes many at once.

What is an image in it, and what belongs together, `folder.py` says for it as for a folder on disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile

from curator import remote
from curator.formats.base import Member, Shard
from curator.formats.files import SPOOL

HELD = 32 << 20  # bytes of objects that are fetched at once


def names(shard: Shard) -> Iterator[tuple[bytes, int]]:
    """Name below the folder and size of every object, in the order of the names."""
    for entry in below(shard.path, shard.skip):
        yield _name(shard.path, entry), entry.size


def stamp(shard: Shard, members: Iterable[Member] | None = None) -> str:
    """A hash over what the service says of every object below, or of some; FileNotFoundError where one is gone."""
    digest = hashlib.sha256()
    if members is None:
        found = {_name(shard.path, entry): entry.stamp for entry in below(shard.path, shard.skip)}
        wanted = sorted(found)
    else:
        wanted = [member.name for member in members]
        ends = zip(os.fsdecode(min(wanted)), os.fsdecode(max(wanted)), strict=False) if wanted else ()
        common = "".join(sign for sign, other in takewhile(lambda pair: pair[0] == pair[1], ends))
        folder, _, prefix = common.rpartition("/")  # lists little more than these
        place = remote.joined(shard.path, folder) if folder else shard.path
        found = {_name(shard.path, entry): entry.stamp for entry in remote.entries(place, prefix)}
    for name in wanted:
        if name not in found:
            raise FileNotFoundError(f"{os.fsdecode(name)} is gone")
        digest.update(b"%b\0%b\0" % (name, found[name].encode()))
    return digest.hexdigest()


def read(shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
    """The bytes of each object of a folder, in order, many at once. OSError where one has another size by now."""
    return objects(shard.given, ((_url(shard.path, member.name), member.size) for member in members))


def objects(given: str, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """The bytes of each object, by URL and size, in order, many at once; `given`: the shard that they belong to.

    OSError where one has another size by now.
    """
    for some in _together(wanted):
        keys = [remote.seen(url) for url, _ in some]
        held = SPOOL.take(keys)
        lacking = [n for n, content in enumerate(held) if content is None]
        fetched = remote.ranges([(some[n][0], 0, some[n][1] and some[n][1] + 1) for n in lacking])  # one more tells
        for n, content in zip(lacking, fetched, strict=True):
            if len(content) != some[n][1]:
                raise OSError(f"{given}: {some[n][0]} has another size than before")
            held[n] = content
        SPOOL.lay([(keys[n], held[n] or b"") for n in lacking if keys[n] is not None])
        yield from (content or b"" for content in held)


def beginning(folder: str, name: bytes, count: int) -> bytes:
    """The first bytes of an object."""
    return remote.ranges([(_url(folder, name), 0, count)])[0]


def _together(wanted: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    some: list[tuple[str, int]] = []
    held = 0
    for url, size in wanted:
        if some and (len(some) >= 4 * remote.SIDE_BY_SIDE or held + size > HELD):
            yield some
            some, held = [], 0
        some.append((url, size))
        held += size
    if some:
        yield some


def below(folder: str, skip: Collection[str]) -> Iterator[remote.Entry]:
    """Every object below a folder that lies in none of `skip`, by name."""
    return (e for e in remote.entries(folder) if not any(remote.within(e.url, one) for one in skip))


def _name(folder: str, entry: remote.Entry) -> bytes:
    return os.fsencode(entry.url[len(folder.rstrip("/")) + 1 :])


def _url(folder: str, name: bytes) -> str:
    return remote.joined(folder, os.fsdecode(name))
