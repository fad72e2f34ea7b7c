"""Generated vectors with planted near duplicates, written out of core as a store's embedding objects.

Each row is drawn from a seed of its own, so that any row, and any block of 1,024, can be made again alone; a planted
row's source may therefore be any earlier row, and pairs lie scattered over all pieces as in a real collection.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from curator.phases.columns import fault_columns, unit_float16
from curator.stage import Array
from curator.store import Store, StoredVectors, vectors_column

BLOCK, WIDTH, SEED = 1024, 768, 20
VERSION = 1  # of what is drawn: another one is another folder
CONCEPTS, PARETO, FALL = 3000, 1.2, 0.35
PLANTED, COSINE, SPREAD = 0.15, 0.97, 0.012
NEAREST = 0.9995  # above it float16 makes some rows equal bit for bit, which is another case than near


@dataclass(frozen=True)
class Mixture:
    """Weights of three unit vectors whose sum is made unit length, and whether the noise's spectrum falls."""

    shared: float
    concept: float
    noise: float
    falls: bool


SETS = {
    "shared": Mixture(0.62, 0.52, 0.58, True),
    "flat": Mixture(0.62, 0.52, 0.75, False),
    "isotropic": Mixture(0, 0, 1, False),
}


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


class Maker:
    """Makes the rows of one set."""

    def __init__(self, mixture: Mixture, seed: int = SEED) -> None:
        self.mixture, self.seed = mixture, seed
        rng = np.random.default_rng(seed)
        fall = ((1.0 + np.arange(WIDTH)) ** -FALL).astype(np.float32)  # standard deviations of the coordinates
        self.spectrum = fall if mixture.falls else np.ones(WIDTH, np.float32)
        # the axes of a model's vectors are not those along which they vary: nothing may gain from looking at a few
        self.axes = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
        shared = _unit(rng.standard_normal(WIDTH, np.float32))
        concepts = _unit(rng.standard_normal((CONCEPTS, WIDTH), np.float32) * fall)
        self.centres = mixture.shared * shared + mixture.concept * concepts
        weights = 1 + rng.pareto(PARETO, CONCEPTS)
        self.shares = np.cumsum(weights / weights.sum())

    def _rng(self, row: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, row))

    def _is_planted(self, row: int) -> bool:
        return row > 0 and self._rng(row).random() < PLANTED

    def _drawn(self, rows: Array) -> tuple[Array, Array, Array, Array]:
        """Concept, noise before the turn, source (-1: none) and cosine of rows."""
        concept, noise = np.empty(len(rows), np.int64), np.empty((len(rows), WIDTH), np.float32)
        source, cosine = np.full(len(rows), -1), np.ones(len(rows))
        for n, row in enumerate(rows.tolist()):
            rng = self._rng(row)
            planted = rng.random() < PLANTED and row > 0
            concept[n] = np.searchsorted(self.shares, rng.random())
            rng.standard_normal(dtype=np.float32, out=noise[n])
            if planted:
                cosine[n] = min(rng.normal(COSINE, SPREAD), NEAREST)
                source[n] = rng.integers(row)
                while self._is_planted(int(source[n])):  # of originals only: no chains
                    source[n] = rng.integers(row)
        return np.minimum(concept, CONCEPTS - 1), _unit(noise * self.spectrum), source, cosine

    def rows(self, numbers: Array) -> tuple[Array, Array, Array]:
        """(n, D) float32 rows of unit length, the source of each (-1: an original), the cosine drawn for it."""
        concept, noise, source, cosine = self._drawn(numbers)
        made = _unit((self.centres[concept] + self.mixture.noise * noise) @ self.axes)
        at = np.flatnonzero(source >= 0)
        if len(at):
            of = self.rows(source[at])[0]
            away = noise[at] @ self.axes
            away = _unit(away - (away * of).sum(axis=1, keepdims=True) * of)
            near = cosine[at, None].astype(np.float32)
            made[at] = near * of + np.sqrt(1 - near**2) * away
        return made, source, cosine


@dataclass(frozen=True)
class Collection:
    """A stored set: piece p of the sorted addresses is block `block[p]`; row r of block b is number b * 1024 + r."""

    store: Store
    addresses: tuple[str, ...]
    block: Array
    count: int
    copy: Array  # (P,) planted rows
    source: Array  # (P,) the row that each was planted beside
    seconds: float  # that making it took

    @property
    def vectors(self) -> StoredVectors:
        """As collection stages see it."""
        return StoredVectors(self.store, "embed", self.addresses)

    def number(self, piece: Array, row: Array) -> Array:
        """Row numbers of places."""
        numbers: Array = self.block[piece] * BLOCK + row
        return numbers

    def size(self, block: int) -> int:
        """Rows of a block: the last one may be short."""
        return min(BLOCK, self.count - int(block) * BLOCK)

    @cached_property
    def _pieces(self) -> list[Array]:
        """(n, D) float16 of each block, mapped."""
        address = dict(zip(self.block.tolist(), self.addresses, strict=True))
        return [self.vectors.read(address[n])[0] for n in range(len(address))]

    def take(self, rows: Array) -> Array:
        """(n, D) float16 of any rows."""
        places = zip((rows // BLOCK).tolist(), (rows % BLOCK).tolist(), strict=True)
        return np.stack([self._pieces[b][r] for b, r in places]) if len(rows) else np.zeros((0, WIDTH), np.float16)

    def load(self) -> Array:
        """All rows as float32 of unit length, as the peers want them."""
        whole = np.empty((self.count, WIDTH), np.float32)
        for n, address in zip(self.block.tolist(), self.addresses, strict=True):
            piece = self.vectors.read(address)[0]  # not kept mapped: it would count as the peers' memory
            whole[n * BLOCK : n * BLOCK + len(piece)] = _unit(piece.astype(np.float32))
        return whole

    def cosines(self, a: Array, b: Array) -> Array:
        """(P,) float64 cosine of pairs of stored rows; products of float16 numbers add up exactly in float64."""
        found = np.empty(len(a))
        for start in range(0, len(a), 16_384):
            part = slice(start, start + 16_384)
            x, y = (self.take(rows[part]).astype(np.float64) for rows in (a, b))
            dot, xx, yy = (np.einsum("pd,pd->p", *two) for two in ((x, y), (x, x), (y, y)))
            found[part] = dot / np.sqrt(xx * yy)
        return found


def collection(folder: Path, name: str, count: int) -> Collection:
    """The set of so many rows under a folder, made where it is not there yet."""
    place = folder / f"{name}-{count}-{WIDTH}-{SEED}-{VERSION}"
    store = Store(place / "store")
    blocks = range(-(-count // BLOCK))
    addresses = [hashlib.sha256(f"{place.name} {n}".encode()).hexdigest() for n in blocks]
    truth = place / "truth.npz"  # written last: where it is, all is
    if not truth.exists():
        begin = time.monotonic()
        maker, copies, sources, cosines = Maker(SETS[name]), [], [], []
        with store.opened():
            for n in blocks:
                rows = np.arange(n * BLOCK, min((n + 1) * BLOCK, count))
                made, source, cosine = maker.rows(rows)
                columns = {"embedding": vectors_column(unit_float16(made), np.ones(len(rows), bool))}
                header = {"stage": "embed", "open": 0, "measured_with": {"generated": name}}
                store.put("embed", addresses[n], pa.table({**columns, **fault_columns(len(rows), {})}), header)
                at = source >= 0
                copies.append(rows[at]), sources.append(source[at]), cosines.append(cosine[at])
        copy, source, cosine = (np.concatenate(parts) for parts in (copies, sources, cosines))
        np.savez(truth, copy=copy, source=source, cosine=cosine, seconds=time.monotonic() - begin)
    order = np.argsort(addresses)
    with np.load(truth) as kept:
        return Collection(
            store, tuple(np.array(addresses)[order].tolist()), order, count,
            kept["copy"], kept["source"], float(kept["seconds"]),
        )  # fmt: skip
