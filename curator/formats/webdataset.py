"""WebDataset: tars whose members belong together by key. The reader; `shards.py` writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from curator import remote
from curator.formats.base import Member, Sample, Shard, ShardIndex
from curator.formats.beside import joined, state_of
from curator.formats.files import opened
from curator.formats.pieces import cut, grouped
from curator.formats.tar import index_tar

AT_ONCE = 8 << 20  # bytes of neighbouring members that come in one read
HELD = 32 << 20  # bytes that are asked for at once where several reads go side by side
GAP = 64 << 10  # bytes between two members that are read along rather than skipped


class TarReader:
    """Reads tars by place."""

    def index(self, shard: Shard, max_bytes: int) -> ShardIndex:
        """The samples of a tar; damage is told, never raised. OSError where it cannot be opened at all."""
        found = index_tar(shard.path, max_bytes, shard.growth)
        samples: Sequence[Sample] = grouped(found.members)
        samples, broken = joined(shard, samples) if shard.beside else (samples, None)
        return ShardIndex(samples, cut(samples), found.damage(shard.given) or broken, found.directories)

    def stamp(self, shard: Shard, members: Iterable[Member] | None = None) -> str:
        """Size and time of last change of the whole tar; of an object what the service says of its content."""
        del members
        if remote.is_url(shard.path):
            return remote.stat(shard.path).stamp
        status = os.stat(shard.path)
        return f"{status.st_size}:{status.st_mtime_ns}{state_of(shard.beside) if shard.beside else ''}"

    def read(self, shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
        """The bytes of each member, in order; neighbours come in one read. OSError where the file ended meanwhile."""
        with opened(shard.path, shard.growth) as file:
            for some in _together(runs(members), file.together):
                ranges = [(run[0].offset, run[-1].offset + run[-1].size - run[0].offset) for run in some]
                for run, read in zip(some, file.preads(ranges), strict=True):
                    start, block = run[0].offset, memoryview(read)
                    for member in run:
                        content = block[member.offset - start : member.offset - start + member.size]
                        if len(content) < member.size:
                            raise OSError(f"{shard.given}: ends before byte {member.offset + member.size:,}")
                        yield bytes(content)


def _together(found: Iterable[list[Member]], count: int) -> Iterator[list[list[Member]]]:
    """Runs that are asked for at once: so many at most, and so large in all that they may be held."""
    some: list[list[Member]] = []
    size = 0
    for run in found:
        length = run[-1].offset + run[-1].size - run[0].offset
        if some and (len(some) >= count or size + length > HELD):
            yield some
            some, size = [], 0
        some.append(run)
        size += length
    if some:
        yield some


def runs(members: Iterable[Member]) -> Iterator[list[Member]]:
    """Members in order, cut into runs of neighbours."""
    run: list[Member] = []
    for member in members:
        if run:
            end = run[-1].offset + run[-1].size
            near = 0 <= member.offset - end <= GAP
            if not near or member.offset + member.size - run[0].offset > AT_ONCE:
                yield run
                run = []
        run.append(member)
    if run:
        yield run
