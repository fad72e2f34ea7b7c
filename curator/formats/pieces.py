"""Names, keys and pieces: how files become samples and samples become the units that are measured and stored."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence

from curator.formats.base import Member, Sample

PIECE = 1024
"""Samples of a piece at most."""


def split_key(name: bytes) -> tuple[bytes, bytes]:
    """Key and suffix of a member of a tar: the key ends at the first dot of the base name, folders included in it.

    A dot that begins the base name is part of the key.
    """
    folder, slash, base = name.rpartition(b"/")
    dot = base.find(b".", 1)
    if dot < 0:
        return name, b""
    return folder + slash + base[:dot], base[dot + 1 :]


def grouped(members: Iterable[tuple[Member, tuple[str, ...]]]) -> list[Sample]:
    """Members of a tar in index order, each with its notes -> samples, in the order of their first members.

    A member joins the last sample of its key, wherever it lies; one whose suffix that sample has begins another.
    """
    samples: list[tuple[bytes, list[Member], dict[str, None]]] = []
    last: dict[bytes, int] = {}
    suffixes: dict[bytes, set[bytes]] = {}
    for member, notes in members:
        key, suffix = split_key(member.name)
        if key not in last or suffix in suffixes[key]:
            if key in last:
                notes = (*notes, "duplicate_key")
                samples[last[key]][2]["duplicate_key"] = None
            last[key], suffixes[key] = len(samples), set()
            samples.append((key, [], {}))
        suffixes[key].add(suffix)
        samples[last[key]][1].append(member)
        samples[last[key]][2].update(dict.fromkeys(notes))
    return [Sample(key, tuple(found), tuple(notes)) for key, found, notes in samples]


def cut(samples: Sequence[Sample], by_content: bool = False) -> list[int]:
    """Where pieces begin. `by_content`: also before a key whose SHA-256 starts with eight zero bits, so that one new
    file in a folder moves the borders of few pieces."""
    starts: list[int] = []
    for n, sample in enumerate(samples):
        full = not starts or n - starts[-1] >= PIECE
        if full or (by_content and hashlib.sha256(sample.key).digest()[0] == 0):
            starts.append(n)
    return starts


def piece_content(samples: Iterable[Sample], contents: Iterator[bytes]) -> str:
    """SHA-256 (hex) over name, size and bytes of members in index order; `contents` of those that may be read.

    Also over what the index says of each sample: its key, its notes, and where it ends. The same files are other
    samples in a tar than in a folder (`a.x.jpg` and `a.y.jpg`: one and two), and what is stored is stored by sample.
    What a table carries along with a sample is stored with it, so it counts as well.
    """
    digest = hashlib.sha256(b"curator:piece:2\n")
    for sample in samples:
        notes = " ".join(sample.notes).encode()
        digest.update(struct.pack("<QQQ", len(sample.key), len(notes), len(sample.members)) + sample.key + notes)
        for member in sample.members:
            kind = (member.fault or "file").encode()
            digest.update(struct.pack("<QQQ", len(member.name), member.size, len(kind)) + member.name + kind)
            if member.fault is None:
                digest.update(next(contents))
        if sample.carried:
            carried = sample.carried.encode()
            digest.update(struct.pack("<Q", len(carried)) + carried)
    return digest.hexdigest()
