"""WebDataset: tars whose members belong together by key. The reader; `shards.py` writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from curator.formats.base import Member, Sample, Shard, ShardIndex
from curator.formats.beside import joined, state_of
from curator.formats.pieces import cut, grouped
from curator.formats.tar import index_tar

AT_ONCE = 8 << 20  # bytes of neighbouring members that come in one read
GAP = 64 << 10  # bytes between two members that are read along rather than skipped


class TarReader:
    """Reads tars by place."""

    def index(self, shard: Shard, max_bytes: int) -> ShardIndex:
        """The samples of a tar; damage is told, never raised. OSError where it cannot be opened at all."""
        found = index_tar(shard.path, max_bytes)
        samples: Sequence[Sample] = grouped(found.members)
        samples, broken = joined(shard, samples) if shard.beside else (samples, None)
        return ShardIndex(samples, cut(samples), found.damage(shard.given) or broken, found.directories)

    def stamp(self, shard: Shard, members: Iterable[Member] | None = None) -> str:
        """Size and time of last change of the whole tar."""
        del members
        status = os.stat(shard.path)
        return f"{status.st_size}:{status.st_mtime_ns}{state_of(shard.beside) if shard.beside else ''}"

    def read(self, shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
        """The bytes of each member, in order; neighbours come in one read. OSError where the file ended meanwhile."""
        with open(shard.path, "rb", buffering=0) as file:
            for run in runs(members):
                start = run[0].offset
                block = memoryview(read_at(file.fileno(), start, run[-1].offset + run[-1].size - start))
                for member in run:
                    content = block[member.offset - start : member.offset - start + member.size]
                    if len(content) < member.size:
                        raise OSError(f"{shard.given}: ends before byte {member.offset + member.size:,}")
                    yield bytes(content)


def read_at(descriptor: int, offset: int, count: int) -> bytes:
    """`count` bytes from `offset`, fewer at the end of the file; one call of the system gives 2 GiB at most."""
    block = os.pread(descriptor, count, offset)
    while 0 < len(block) < count:
        more = os.pread(descriptor, count - len(block), offset + len(block))
        if not more:
            break
        block += more
    return block


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
