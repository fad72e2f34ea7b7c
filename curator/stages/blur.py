"""blur: how sharp a picture is, by the variance of its Laplacian at one size; keeps what is sharp enough."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from PIL import Image

from curator.stage import Array, Columns, ImageBatch, Mask, Need, Pixels, ProcessingStage, decides, speeds

SIDE = 256
"""Pixels of the shorter side at which sharpness is measured."""


class ImageBlurFilterStage(ProcessingStage):
    """Keep pictures whose `sharpness` is at or above `score_threshold`.

    A picture is made grey, its shorter side scaled down to 256 pixels (Lanczos), and the Laplacian of its levels
    (0 to 255) taken with the four neighbours: `sharpness` is its variance, so the same picture has the same number at
    500 and at 4,000 pixels, whatever a camera's pixels are worth. Smaller pictures are not enlarged, and look as sharp
    as they are for their size: `resolution` is for those. `contrast` is the deviation of the levels. One below
    `flat_below` has no edges that could be blurred: it is kept here, and `exposure` drops it for its low information.
    """

    called: ClassVar[str] = "blur"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Pixels(min_side=3 * SIDE),)  # three times: what a JPEG shrinks by stays unseen
    gives: ClassVar[tuple[str, ...]] = ("sharpness", "contrast")

    score_threshold: float = decides(40.0, ge=0)
    flat_below: float = decides(4.0, ge=0)
    model_inference_batch_size: int = speeds(32, ge=1)

    def prepare(self, image: Image.Image) -> Array:
        """Sharpness and contrast: (2,) float32."""
        grey = image.convert("L")
        shorter = min(grey.size)
        if shorter > SIDE:
            width, height = (max(1, round(side * SIDE / shorter)) for side in grey.size)
            grey = grey.resize((width, height), Image.Resampling.LANCZOS)
        levels = np.asarray(grey, np.float32)
        return np.array([laplacian(levels).var(dtype=np.float64), levels.std(dtype=np.float64)], np.float32)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, 2) -> sharpness and contrast, (B,) float32."""
        assert batch.pixels is not None
        return {"sharpness": batch.pixels[:, 0], "contrast": batch.pixels[:, 1]}

    def keep(self, rows: Columns) -> Mask:
        """Sharp enough, or flat."""
        mask: Mask = (rows["sharpness"] >= self.score_threshold) | (rows["contrast"] < self.flat_below)
        return mask


def laplacian(levels_HW: Array) -> Any:
    """The sum of the four neighbours less four times the middle (H, W); what is at the border goes on beyond it."""
    wide = np.pad(levels_HW, 1, mode="edge")
    return wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * levels_HW
