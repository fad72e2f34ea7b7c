"""exposure: drops pictures that are dark, bright or nearly empty, by the histogram of their luminance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from curator.stage import Array, Columns, ImageBatch, Mask, Need, Pixels, ProcessingStage, decides, speeds


class ImageExposureFilterStage(ProcessingStage):
    """Drop pictures of which even the brightest part is dark, even the darkest is bright, or that show next to nothing.

    Luminance is 0.299 R + 0.587 G + 0.114 B as stored (Pillow's L), 0 black to 1 white, of the picture as a person
    sees it: on white where it is transparent, 16 bits scaled. A lamp at night and a thing on white are no mistakes of
    the exposure, so the mean decides nothing: `luminance_p95` and `luminance_p5` are what 95 % and 5 % of the pixels
    do not exceed. `luminance_mean`, `luminance_entropy` (bits, 0 one colour, 8 at most) and `clipped` (the share of
    pixels at the two ends) stand beside them.
    """

    called: ClassVar[str] = "exposure"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Pixels(min_side=768),)
    gives: ClassVar[tuple[str, ...]] = (
        "luminance_mean", "luminance_p5", "luminance_p95", "luminance_entropy", "clipped",
    )  # fmt: skip

    dark_below: float = decides(0.15, ge=0, le=1)
    bright_above: float = decides(0.9, ge=0, le=1)
    min_entropy: float = decides(1.0, ge=0, le=8)
    max_clipped: float = decides(1.0, ge=0, le=1)
    model_inference_batch_size: int = speeds(32, ge=1)

    def prepare(self, image: Image.Image) -> Array:
        """The histogram of its luminance: (256,) int64."""
        return np.array(image.convert("L").histogram(), np.int64)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, 256) -> five columns (B,) float32."""
        assert batch.pixels is not None
        share = batch.pixels / np.maximum(batch.pixels.sum(axis=1, keepdims=True), 1)
        below = np.cumsum(share, axis=1)
        bits = np.log2(share, out=np.zeros_like(share), where=share > 0)
        columns = {
            "luminance_mean": share @ np.arange(256) / 255,
            "luminance_p5": _level(below, 0.05),
            "luminance_p95": _level(below, 0.95),
            "luminance_entropy": np.abs((share * bits).sum(axis=1)),
            "clipped": share[:, 0] + share[:, -1],
        }
        return {name: column.astype(np.float32) for name, column in columns.items()}

    def keep(self, rows: Columns) -> Mask:
        """Nothing against it."""
        mask: Mask = ~np.any([found for _, found in self._faults(rows)], axis=0)
        return mask

    def why(self, rows: Columns) -> list[tuple[str, str]]:
        """The first that is against it."""
        faults = self._faults(rows)
        first = [next(name for name, found in faults if found[row]) for row in range(len(rows["clipped"]))]
        return [self._told(fault, rows, row) for row, fault in enumerate(first)]

    def _faults(self, rows: Columns) -> Sequence[tuple[str, Mask]]:
        return (
            ("dark", rows["luminance_p95"] < self.dark_below),
            ("bright", rows["luminance_p5"] > self.bright_above),
            ("low_information", rows["luminance_entropy"] < self.min_entropy),
            ("clipped", rows["clipped"] > self.max_clipped),
        )

    def _told(self, fault: str, rows: Columns, row: int) -> tuple[str, str]:
        low, high = rows["luminance_p5"][row], rows["luminance_p95"][row]
        bits, clipped = rows["luminance_entropy"][row], rows["clipped"][row]
        return fault, {
            "dark": f"dark: 95 % of it at or below {high:.3f} of white, limit {self.dark_below:g}",
            "bright": f"bright: 95 % of it at or above {low:.3f} of white, limit {self.bright_above:g}",
            "low_information": f"low information: {bits:.3f} bits, {self.min_entropy:g} are wanted",
            "clipped": f"clipped: {clipped:.1%} of it black or white, limit {self.max_clipped:.1%}",
        }[fault]


def _level(below: Array, share: float) -> Any:
    """The level (B,), 0..1, that this share of the pixels does not exceed."""
    return (below >= share - 1e-9).argmax(axis=1) / 255
