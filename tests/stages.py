"""Small stages without torch, for tests of everything around stages."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from PIL import Image

from curator import (
    Array,
    Choice,
    Column,
    Columns,
    Embedding,
    ImageBatch,
    Mask,
    Pixels,
    ProcessingStage,
    decides,
    measures,
    speeds,
)


class Brightness(ProcessingStage):
    """Keep pictures whose mean is at or above a threshold."""

    version: ClassVar[int] = 1
    needs = (Pixels(),)
    gives = ("brightness",)

    scale: float = measures(1.0)
    score_threshold: float = decides(0.0)
    model_inference_batch_size: int = speeds(8)

    def prepare(self, image: Image.Image) -> Array:
        """The mean of all channels, 0..1."""
        return np.float32(np.asarray(image.convert("RGB")).mean() / 255)  # type: ignore[return-value]

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """As it came."""
        return {"brightness": batch.pixels * np.float32(self.scale)}

    def keep(self, rows: Columns) -> Mask:
        """At or above."""
        return rows["brightness"] >= self.score_threshold


class Tiny(ProcessingStage):
    """An embedding: the picture at 8 x 8, its mean taken away."""

    version: ClassVar[int] = 1
    needs = (Pixels(),)
    gives = ("embedding",)

    model_inference_batch_size: int = speeds(8)

    def prepare(self, image: Image.Image) -> Array:
        """(8, 8, 3) uint8."""
        return np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX))

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, 192) float32."""
        flat = batch.pixels.reshape(len(batch.pixels), -1).astype(np.float32)
        return {"embedding": flat - flat.mean(axis=1, keepdims=True) + 1e-3}


class First(ProcessingStage):
    """A score from vectors alone: the first number of the embedding; `poison` makes some of them NaN."""

    version: ClassVar[int] = 1
    needs = (Embedding(),)
    gives = ("first",)

    poison: bool = measures(False)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B,) float32."""
        first = batch.embedding[:, 0].astype(np.float32)
        return {"first": np.where(first > 0, np.nan, first) if self.poison else first}


class Poison(ProcessingStage):
    """Breaks its decoder, in the way that the colour of the first pixel says."""

    version: ClassVar[int] = 1
    needs = (Pixels(),)
    gives = ("poison",)

    def prepare(self, image: Image.Image) -> Array:
        """Red kills, green hangs, blue eats memory, yellow leaves, white raises."""
        import os
        import signal

        def near(*colour: int) -> bool:
            return max(abs(a - b) for a, b in zip(image.convert("RGB").getpixel((0, 0)), colour, strict=True)) < 12

        if near(255, 0, 0):
            os.kill(os.getpid(), signal.SIGSEGV)
        if near(0, 255, 0):
            os.kill(os.getpid(), signal.SIGSTOP)
        if near(0, 0, 255):
            bytearray(8 << 30)
        if near(255, 255, 0):
            os._exit(0)
        if near(255, 255, 255):
            raise ValueError("white is not for me")
        return np.float32(0)  # type: ignore[return-value]

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """Zeros."""
        return {"poison": batch.pixels}


class Words(ProcessingStage):
    """Keep pictures whose caption has enough words: a score that copies of one picture may differ in."""

    version: ClassVar[int] = 1
    needs = (Column("caption"),)
    gives = ("words",)

    score_threshold: float = decides(0.0)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B,) float32."""
        return {"words": np.array([len(caption.split()) for caption in batch.columns["caption"]], np.float32)}

    def keep(self, rows: Columns) -> Mask:
        """At or above."""
        return rows["words"] >= self.score_threshold


class OneOfEachFormat(ProcessingStage):
    """A collection without `find`: chooses by a text column that it asks for; the first of each stays."""

    version: ClassVar[int] = 1
    needs = (Column("format"),)

    def choose(self, rows: Columns, found: None, alive: Mask) -> Choice:
        """The first of each format."""
        dropped_by = np.full(len(alive), -1, np.int64)
        first: dict[str, int] = {}
        for row in np.flatnonzero(alive):
            here = first.setdefault(rows["format"][row], row)
            dropped_by[row] = -1 if here == row else here
        return Choice(dropped_by, np.where(dropped_by < 0, np.nan, 0.5), "same_format", "as {similarity:.1f} as")
