"""What each input file holds: its samples and where their bytes lie, so that an unchanged file is not read again.

The record of a shard is a cache in the store, found by the file's absolute path and trusted while the file's stamp
(size, mtime) and the reader's settings are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from curator.errors import Cause
from curator.formats import reader_of
from curator.formats.base import Damage, Member, Sample, Shard, ShardIndex
from curator.ledger import shown
from curator.store import Object, Store

FOLDER = "inputs"
COLUMNS = ("sample", "key", "notes", "carried", "name", "offset", "size", "fault", "detail", "place", "content")
TYPES = (
    pa.int32(), pa.binary(), pa.string(), pa.string(), pa.binary(), pa.int64(), pa.int64(), pa.string(), pa.string(),
    pa.string(), pa.binary(),
)  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What is known about one shard. `contents` has a SHA-256 per piece, None where it was not hashed yet."""

    shard: Shard
    stamp: str
    samples: int
    starts: tuple[int, ...]
    contents: tuple[str | None, ...]
    damage: Damage | None = None
    passed_over: int = 0
    reader: str = ""  # the key of the read stage that found them

    def bounds(self, piece: int) -> tuple[int, int]:
        """First sample of a piece, and the one behind its last."""
        ends = (*self.starts[1:], self.samples)
        return self.starts[piece], ends[piece]

    @property
    def hashed(self) -> bool:
        """Whether the content of every piece is known."""
        return None not in self.contents


def record_name(shard: Shard) -> str:
    """The name of a shard's record: a hash of its format and absolute path."""
    return hashlib.sha256(f"{shard.format}:{shard.path}".encode(errors="surrogateescape")).hexdigest()


def recall(store: Store, shard: Shard, reader: str, fingerprint: str) -> Known | None:
    """What was found in this shard before, if the file's stamp says that it still holds; `content` never trusts it."""
    if fingerprint == "content":
        return None
    stored = store.get(FOLDER, record_name(shard))
    if stored is None or stored.header.get("reader") != reader or stored.header.get("roles") != _roles(shard):
        return None
    try:
        stamp = reader_of(shard).stamp(shard)
    except OSError:
        return None
    return _known(stored, shard) if stored.header["stamp"] == stamp else None


def _known(stored: Object, shard: Shard) -> Known:
    header = stored.header
    damage = header["damage"] and Damage(Cause(header["damage"][0]), header["damage"][1])
    return Known(
        shard=shard,
        stamp=header["stamp"],
        samples=header["samples"],
        starts=tuple(header["starts"]),
        contents=tuple(header["contents"]),
        damage=damage or None,
        passed_over=header["passed_over"],
        reader=header["reader"],
    )


@dataclass(frozen=True)
class Listed:
    """What a store remembers of one input file, whoever asks: its path, the contents of its pieces, its keys."""

    path: str
    samples: int
    starts: Sequence[int]
    contents: Sequence[str | None]
    keys: dict[int, str]  # by sample

    def bounds(self, piece: int) -> tuple[int, int]:
        """First sample of a piece, and the one behind its last."""
        return self.starts[piece], [*self.starts[1:], self.samples][piece]


def all_known(store: Store) -> Iterator[Listed]:
    """Everything that a store on disk remembers of input files, in the order of their paths."""
    found = []
    for shelf in sorted(os.listdir(store.root / FOLDER)) if (store.root / FOLDER).is_dir() else ():
        for name in store.shelf(FOLDER, shelf):
            stored = store.get(FOLDER, name)
            if stored is not None:
                samples, keys = (stored.table.column(name).to_pylist() for name in ("sample", "key"))
                named = {sample: shown(key) for sample, key in zip(samples, keys, strict=True)}
                h = stored.header
                found.append(Listed(h["path"], h["samples"], h["starts"], h["contents"], named))
    yield from sorted(found, key=lambda listed: listed.path)


def look(store: Store, read: Any, shard: Shard, reader: str) -> Known:
    """Index a shard and remember it. What cannot be opened at all is damage, and is not remembered."""
    try:
        stamp = reader_of(shard).stamp(shard)
        index: ShardIndex = read.index(shard)
    except OSError as error:
        damage = Damage(Cause.UNREADABLE, f"{shard.given}: {error.strerror or error}")
        return Known(shard, "", 0, (), (), damage, reader=reader)
    known = Known(
        shard,
        stamp,
        len(index.samples),
        tuple(index.pieces),
        (None,) * len(index.pieces),
        index.damage,
        index.passed_over,
        reader,
    )
    samples = () if shard.format == "vectors" else index.samples  # of a vector nothing is known but its place
    store.put(FOLDER, record_name(shard), members_table(samples), _header(known))
    return known


def remember(store: Store, known: Known, contents: Sequence[str | None]) -> Known:
    """Note the contents of a shard's pieces beside its index."""
    known = replace(known, contents=tuple(contents))
    stored = store.get(FOLDER, record_name(known.shard))
    if stored is not None and stored.header["stamp"] == known.stamp:
        store.put(FOLDER, record_name(known.shard), stored.table, _header(known))
    return known


def forget(store: Store, shard: Shard) -> None:
    """What was remembered of a file that turned out to be another: the next run looks again."""
    store.forget(FOLDER, record_name(shard))


def _header(known: Known) -> dict[str, Any]:
    return {
        "reader": known.reader,
        "stamp": known.stamp,
        "samples": known.samples,
        "starts": list(known.starts),
        "contents": list(known.contents),
        "damage": known.damage and [known.damage.cause.value, known.damage.detail],
        "passed_over": known.passed_over,
        "roles": _roles(known.shard),
        "path": known.shard.path.encode(errors="backslashreplace").decode(),
    }


def _roles(shard: Shard) -> list[Any]:
    """What else decides which samples a shard holds: the meaning of columns, where paths begin, what lies beside, how
    far a gzip'd one may grow."""
    return [list(map(list, shard.roles)), shard.root, shard.beside, shard.growth]


def members_table(samples: Sequence[Sample]) -> pa.Table:
    """One row per member, in index order."""
    rows = [
        (
            i, s.key, " ".join(s.notes), "" if n else s.carried, m.name, m.offset, m.size, m.fault and m.fault.value,
            m.detail, m.place, m.content,
        )
        for i, s in enumerate(samples)
        for n, m in enumerate(s.members)
    ]  # fmt: skip
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, TYPES, strict=True)]
    return pa.table(dict(zip(COLUMNS, arrays, strict=True)))


class Members:
    """The samples of one shard, from its record; reads only the rows that are asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._sample = table.column("sample").to_numpy()

    def samples(self, first: int, last: int) -> list[Sample]:
        """Samples first..last-1, in index order."""
        begin, end = np.searchsorted(self._sample, [first, last])
        columns = [self.table.column(name).slice(begin, end - begin).to_pylist() for name in COLUMNS]
        samples: list[Sample] = []
        for _, rows in groupby(zip(*columns, strict=True), lambda row: row[0]):
            mine = list(rows)
            _, key, notes, carried, *_ = mine[0]
            members = (
                Member(name, offset, size, Cause(fault) if fault else None, *more)
                for _, _, _, _, name, offset, size, fault, *more in mine
            )
            samples.append(Sample(key, tuple(members), tuple(notes.split()), carried))
        return samples


def members_of(store: Store, shard: Shard) -> Members | None:
    """The remembered samples of a shard, None where nothing is remembered."""
    stored = store.get(FOLDER, record_name(shard))
    return None if stored is None else Members(stored.table)
