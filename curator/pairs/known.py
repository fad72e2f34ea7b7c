"""What an earlier search of a part of the collection found: its pairs are taken over, and not looked for again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from curator.pairs.fold import Folded
from curator.pairs.found import CROWDED, NEAR, Found, Searched, place
from curator.stage import Array


@dataclass(frozen=True)
class Known:
    """The table of an earlier search, and the addresses of its pieces, sorted as its numbers count them."""

    table: pa.Table
    addresses: Sequence[str]

    def pieces_of(self, addresses: Sequence[str]) -> Array:
        """(pieces,) True where a piece of the collection was searched then."""
        return np.isin(np.array(addresses), np.array(self.addresses))

    def added_to(self, searched: Searched, addresses: Sequence[str]) -> Searched:
        """What was found now with what was found then; rows by the numbers of now."""
        there = {address: number for number, address in enumerate(addresses)}
        number = np.array([there[address] for address in self.addresses], np.int64)
        found = Found(self.table)
        near, crowd = found.of_kind(NEAR), found.of_kind(CROWDED)
        a, b = (_distinct(searched.folded, _moved(near, side, number)) for side in "ab")
        crowded = _distinct(searched.folded, _moved(crowd, "a", number))
        dims = searched.crowded_ND.shape[1]
        vectors = np.frombuffer(b"".join(crowd.column("vector").to_pylist()), np.float16)
        vectors = vectors.reshape(len(crowded), -1) if len(crowded) else np.zeros((0, dims), np.float16)
        both = np.concatenate([searched.crowded, crowded])
        once = np.unique(both, return_index=True)[1]
        together = vectors if not len(searched.crowded) else np.concatenate([searched.crowded_ND, vectors[:, :dims]])
        return replace(
            searched, a=np.concatenate([searched.a, a]), b=np.concatenate([searched.b, b]),
            similarity=np.concatenate([searched.similarity, near.column("similarity").to_numpy()]),
            crowded=both[once], crowded_ND=together[once],
        )  # fmt: skip


def _moved(rows: pa.Table, side: str, number: Array) -> Array:
    """Places of then as places of now."""
    places = place(rows, side)
    moved: Array = number[places >> 32] << 32 | (places & 0xFFFFFFFF)
    return moved


def _distinct(folded: Folded, places: Array) -> Array:
    """The distinct row that stands for each place: itself, or the one that it is a copy of."""
    distinct = folded.piece.astype(np.int64) << 32 | folded.row
    copies = folded.copy_piece.astype(np.int64) << 32 | folded.copy_row
    at = np.minimum(np.searchsorted(distinct, places), len(distinct) - 1)
    rows = np.where(distinct[at] == places, at, -1)
    left = rows < 0
    rows[left] = folded.copy_of[np.searchsorted(copies, places[left])]
    return rows
