"""exact: of images that are the same, byte by byte or pixel by pixel, one stays; every other names the one that stays.

Needs no vectors: the hash of the bytes comes with reading, and that of the pixels is made where images are decoded.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from curator.pairs.ranking import Policies, check_policies, columns_for, ranks
from curator.stage import (
    Array,
    Choice,
    Column,
    Columns,
    ImageBatch,
    Mask,
    Need,
    Pixels,
    ProcessingStage,
    decides,
    measures,
)
from curator.units import counted

HASH = {"content": "content_hash", "pixels": "pixel_hash"}
SAYS = {"content": "same bytes as", "pixels": "same pixels as"}
STRIP_ROWS = 256  # hashed at once, so that a large image is never copied as a whole


class ExactDeduplicationStage(ProcessingStage):
    """Of each group of equal images keep the best-ranked by `keep`, and drop the others.

    `by=content`: the same bytes, nothing is measured. `by=pixels`: the same size and the same pixels as the decoder
    hands them, whatever the file format, its compression and its metadata (`pixel_hash`, 64 hex digits).
    """

    called: ClassVar[str] = "exact"
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("pixel_hash",)

    by: Literal["content", "pixels"] = measures("content")
    keep: Policies = decides(None)

    @model_validator(mode="after")
    def _possible(self) -> ExactDeduplicationStage:
        check_policies(self.keep)
        for policy in self.keep or ():
            if policy in ("hard", "easy"):
                raise ValueError(f"keep: {policy} ranks by distance to other images, which is the same for equal ones")
        return self

    def has(self, verb: str) -> bool:
        """Where the bytes decide nothing is measured: their hash comes with reading."""
        return super().has(verb) and (self.by == "pixels" or verb not in ("prepare", "measure"))

    def needed(self) -> tuple[Need, ...]:
        """What is equal, and the columns that an explicit `keep` ranks by."""
        what: Need = Pixels() if self.by == "pixels" else Column("content_hash")
        return (what, *columns_for(self.keep))

    def prepare(self, image: Any) -> Array:
        """One Pillow image -> (32,) uint8: SHA-256 over its mode, its size and its pixels, row by row from the top."""
        if image.mode in ("P", "PA"):  # under `read.exact`: the same numbers are other colours in another palette
            image = image.convert("RGBA")
        transparent = None if image.mode == "RGBA" else image.info.get("transparency")
        digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} {transparent}\n".encode())
        for top in range(0, image.height, STRIP_ROWS):
            strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
            digest.update(strip.tobytes())
        return np.frombuffer(digest.digest(), np.uint8)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, 32) uint8 -> pixel_hash (B,), each 64 hex digits."""
        assert batch.pixels is not None
        return {"pixel_hash": np.array([row.tobytes().hex() for row in batch.pixels], object)}

    def choose(self, rows: Columns, found: Any, alive: Mask) -> Choice:
        """Of the living rows (N,) with one hash the best-ranked stays; the others are dropped for it, at 1.0."""
        dropped_by = np.full(len(alive), -1, np.int64)
        similarity = np.full(len(alive), np.nan)
        living, group = _groups(rows[HASH[self.by]], alive)
        rank = ranks(rows, self.keep, len(alive))
        order = np.lexsort((rank[living], group))
        _, first, of = np.unique(group[order], return_index=True, return_inverse=True)
        ordered = living[order]
        best = ordered[first][of]
        copy = ordered != best
        dropped_by[ordered[copy]], similarity[ordered[copy]] = best[copy], 1.0
        return Choice(dropped_by, similarity, "exact_duplicate", SAYS[self.by], remarks=self._remarks(living, alive))

    def _remarks(self, hashed: Array, alive: Mask) -> tuple[str, ...]:
        """That nobody has a hash, as vectors without a table have none."""
        images = counted(int(alive.sum()), "image")
        nobody = f"{self.name}: none of {images} has a {HASH[self.by]}, so none was dropped for it"
        return (nobody,) if alive.any() and not len(hashed) else ()


def _groups(hashes: Array, alive: Mask) -> tuple[Array, Array]:
    """The living rows (L,) that have a hash, and a number (L,) for each: the same for the same hash."""
    living = np.flatnonzero(alive)
    codes = pa.array(hashes[living], from_pandas=True).dictionary_encode().indices
    has = codes.is_valid().to_numpy(zero_copy_only=False)
    return living[has], codes.drop_null().to_numpy()
