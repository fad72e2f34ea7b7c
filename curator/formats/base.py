"""What a format is to the rest of Curator: a reader that indexes a shard and gives bytes, a writer of shards.

Knows nothing about pixels, scores or verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from curator.errors import Cause


@dataclass(frozen=True)
class Shard:
    """One file of samples, or one folder of images. `given` is the path as the user gave it: the ledger's `shard`."""

    given: str
    path: str  # absolute
    format: str  # the reader's name, as in formats.READERS
    bytes: int = 0  # size on disk where it is known without reading, for `blocksize`
    skip: tuple[str, ...] = ()  # of a folder: absolute folders below it that are no input (output, store)
    roles: tuple[tuple[str, str], ...] = ()  # of a table: which column is what, as (role, column)
    ignored: int = 0  # of a folder of tables: files in it that are none, told with the first of them
    beside: str = ""  # of a tar: the table beside it that knows more of its samples
    root: str = ""  # of a list: where its relative paths begin; of a list of URLs: where what was fetched lies
    growth: float = 0  # of a gzip'd tar: how many times its size it may unpack to; 0: as far as it goes

    def role(self, name: str) -> str | None:
        """The column of a table that has a role: image, url, caption, embedding, key."""
        return dict(self.roles).get(name)


@dataclass(frozen=True)
class Member:
    """One file of a sample: where its bytes lie. `fault` is set where its bytes must never be read (links ...)."""

    name: bytes  # as stored, folders included
    offset: int  # of its first data byte in the shard or in `place`; 0 for a file of its own
    size: int
    fault: Cause | None = None
    detail: str = ""
    place: str = ""  # the file that holds it, where that is not the shard
    content: bytes | None = None  # its bytes, where they lie in no file: a caption out of a table


@dataclass(frozen=True)
class Sample:
    """One key and its members, in index order (the image is chosen later)."""

    key: bytes
    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()  # codes such as "duplicate_key", "joined_archive"
    carried: str = ""  # what a table says of it besides, as a JSON object: the ledger's `in_` columns

    def suffix_of(self, member: Member) -> bytes:
        """What of a member's name stands behind the key and its dot: `jpg`, `left.jpg`; else behind the last dot."""
        if member.name.startswith(self.key + b"."):
            return member.name[len(self.key) + 1 :]
        base = member.name.rpartition(b"/")[2]
        return base.rpartition(b".")[2] if b"." in base else b""


@dataclass(frozen=True)
class Damage:
    """What could not be read of a shard: becomes one failed row for the whole shard, every offset in its reason."""

    cause: Cause
    detail: str


@dataclass(frozen=True)
class ShardIndex:
    """Every sample of a shard in order, where its pieces begin, and what of it is damaged."""

    samples: Sequence[Sample]
    pieces: Sequence[int]  # index of the first sample of each piece, ascending, beginning with 0 (empty if no sample)
    damage: Damage | None = None
    passed_over: int = 0  # of a folder: files that belong to no image, dot-names, linked folders, pipes


class Reader(Protocol):
    """Finds the samples of a shard and reads their members by place."""

    def index(self, shard: Shard, max_bytes: int) -> ShardIndex:
        """The samples of a shard; damage is told, never raised. Members above `max_bytes` are marked as faults.

        OSError where the shard cannot be opened at all.
        """

    def stamp(self, shard: Shard, members: Iterable[Member] | None = None) -> str:
        """A cheap fingerprint that changes when the shard does: size and mtime (of every file of a folder).

        With `members`, it need feel no more than a change of these. OSError where something is gone.
        """

    def read(self, shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
        """The bytes of each member, in order; neighbouring members come in one read."""
