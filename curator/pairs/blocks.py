"""Every pair of stored vectors at or above a floor, found exactly by comparing blocks of rows.

float32 products only propose, with a margin that cannot miss; what decides is the cosine in float64 on the stored
float16 numbers, where sums of products are exact in any order: the same bits on every device and for any blocks.
One torch code for every device; torch is imported where the products are made, so that deciding never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curator.errors import ConfigError
from curator.stage import Array, Each, Vectors

UNIT_TOLERANCE = 1e-2  # how far from 1 the length of a stored vector may be


@dataclass(frozen=True)
class Block:
    """Distinct rows of a collection: numbers of pieces and rows in them, in order."""

    piece: Array  # (n,) int32
    row: Array  # (n,) int32


@dataclass(frozen=True)
class Pair:
    """Two blocks to compare (the same twice: each pair in it once), as a task carries them."""

    vectors: Vectors  # of these pieces only
    pieces: tuple[int, ...]  # their numbers in the collection, ascending
    a: Block
    b: Block
    floor: float
    same: bool


@dataclass(frozen=True)
class Near:
    """Near pairs: piece and row of both, and their cosine."""

    piece_a: Array
    row_a: Array
    piece_b: Array
    row_b: Array
    similarity: Array


def near_pairs(vectors: Vectors, distinct: Block, floor: float, block_rows: int, each: Each) -> Iterator[Near]:
    """All pairs of distinct rows with cosine >= floor, block by block, in no particular order."""
    starts = range(0, len(distinct.piece), block_rows)
    blocks = [Block(distinct.piece[s : s + block_rows], distinct.row[s : s + block_rows]) for s in starts]
    tasks = (
        _task(vectors, a, b, floor, i == j) for i, a in enumerate(blocks) for j, b in enumerate(blocks[: i + 1])
    )  # fmt: skip
    yield from each(compare, tasks)


def _task(vectors: Vectors, a: Block, b: Block, floor: float, same: bool) -> Pair:
    """Two blocks with the addresses of their own pieces: a task must not grow with the collection."""
    pieces = np.union1d(a.piece, b.piece)
    addresses = [vectors.addresses[piece] for piece in pieces]
    return Pair(vectors.only(addresses), tuple(pieces.tolist()), a, b, floor, same)


def compare(pair: Pair) -> Near:
    """The near pairs between two blocks."""
    a_ND = load(pair, pair.a)
    b_MD = a_ND if pair.same else load(pair, pair.b)
    i, j = candidates(a_ND, b_MD, pair.floor)
    if pair.same:
        i, j = i[i < j], j[i < j]
    similarity = cosines(a_ND, i, b_MD, j)
    near = similarity >= pair.floor
    i, j, similarity = i[near], j[near], similarity[near]
    return Near(pair.a.piece[i], pair.a.row[i], pair.b.piece[j], pair.b.row[j], similarity)


def candidates(a_ND: Array, b_MD: Array, floor: float, device: str = "cpu") -> tuple[Array, Array]:
    """Rows (i of a, j of b) whose float32 product does not rule out a cosine of `floor`.

    The margin: a float32 dot product of D terms is off by at most D u sum|x_i y_i| / (1 - D u), u = 2^-24, whatever
    the order of its sums (Higham, Accuracy and Stability, 3.1); that is D u |x||y| by Cauchy-Schwarz. Rows are scaled
    to unit length in float32 first, which adds at most 4 u; twice the sum leaves room for a matmul that fuses or
    splits its terms.
    """
    import torch

    margin = 2 * (a_ND.shape[1] + 4) * 2.0**-24
    with torch.inference_mode():
        a, b = (_unit(torch.from_numpy(m.astype(np.float32)).to(device)) for m in (a_ND, b_MD))
        hits = torch.nonzero(a @ b.T >= floor - margin).cpu().numpy()
    return hits[:, 0], hits[:, 1]


def _unit(rows: Any) -> Any:
    return rows / rows.norm(dim=1, keepdim=True)


def cosines(a_ND: Array, i: Array, b_MD: Array, j: Array, at_once: int = 65_536) -> Array:
    """(P,) float64 cosine of rows i of a with rows j of b: dot / sqrt(|x|^2 |y|^2), the same bits everywhere."""
    result = np.empty(len(i), np.float64)
    for start in range(0, len(i), at_once):
        part = slice(start, start + at_once)
        x, y = a_ND[i[part]].astype(np.float64), b_MD[j[part]].astype(np.float64)
        dot, xx, yy = (np.einsum("pd,pd->p", *two) for two in ((x, y), (x, x), (y, y)))
        result[part] = dot / np.sqrt(xx * yy)
    return result


def load(pair: Pair, block: Block) -> Array:
    """(n, D) float16 rows of a block, in its order."""
    parts = []
    for piece in dict.fromkeys(block.piece.tolist()):
        emb_ND, _ = pair.vectors.read(pair.vectors.addresses[pair.pieces.index(piece)])
        parts.append(emb_ND[block.row[block.piece == piece]])
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float16)


def folded(vectors: Vectors) -> tuple[Block, Block, Block]:
    """Rows with a vector: the distinct ones; and of each further copy, the one it equals and the copy itself.

    Distinct means another sequence of bits (0 and -0 apart, which only costs a pair at 1.0). Raises ConfigError where
    rows are not of unit length: a cosine of such rows would still be right, but they are not what embed stores.
    """
    first: dict[bytes, tuple[int, int]] = {}
    copies: list[tuple[int, int, int, int]] = []
    for number, address in enumerate(vectors.addresses):
        emb_ND, has = vectors.read(address)
        rows = np.flatnonzero(has)
        lengths = np.sqrt((emb_ND[rows].astype(np.float64) ** 2).sum(axis=1))
        if len(rows) and np.abs(lengths - 1).max() > UNIT_TOLERANCE:
            wrong = int(np.abs(lengths - 1).argmax())
            raise ConfigError(
                f"dedup: vectors must have unit length; row {rows[wrong]} of {address[:12]} has {lengths[wrong]:.3f}. "
                "Divide each by its length before they are given to Curator."
            )
        for row in rows.tolist():
            found = first.setdefault(emb_ND[row].tobytes(), (number, row))
            if found != (number, row):
                copies.append((*found, number, row))
    distinct = np.array(list(first.values()), np.int32).reshape(-1, 2)
    again = np.array(copies, np.int32).reshape(-1, 4)
    return _block(distinct), _block(again[:, :2]), _block(again[:, 2:])


def _block(places: Array | Sequence[Sequence[int]]) -> Block:
    array = np.asarray(places, np.int32)
    return Block(array[:, 0], array[:, 1])
