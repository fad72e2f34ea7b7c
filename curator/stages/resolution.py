"""resolution: drops pictures that are too small, or too long for a model that looks at a square of them.

Measures nothing: width and height, upright as a person sees them, come with reading.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from curator.stage import Array, Column, Columns, Mask, Need, ProcessingStage, decides


class ImageResolutionFilterStage(ProcessingStage):
    """Keep what has at least `min_side` pixels on its shorter side, and on its longer at most `max_aspect` times those.

    The usual crop scales the shorter side to what a model takes and cuts the middle square out, so that of a picture
    of 4000 x 40 it is shown one hundredth. A size that is not known is not held against a picture. The defaults are
    those of DataComp's basic filter (Gadre and others, 2023).
    """

    called: ClassVar[str] = "resolution"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Column("width"), Column("height"))

    min_side: int = decides(200, ge=0)
    max_aspect: float = decides(3.0, ge=1)

    def keep(self, rows: Columns) -> Mask:
        """Large enough, and not too long."""
        shorter, longer = _sides(rows)
        mask: Mask = ~((shorter < self.min_side) | (longer > self.max_aspect * shorter))
        return mask

    def why(self, rows: Columns) -> list[tuple[str, str]]:
        """The size, and what a model would be shown of it."""
        return [self._told(*sizes) for sizes in zip(rows["width"], rows["height"], *_sides(rows), strict=True)]

    def _told(self, width: Any, height: Any, shorter: Any, longer: Any) -> tuple[str, str]:
        size = f"{width:.0f} x {height:.0f}"
        if shorter < self.min_side:
            return "too_small", f"{size}: the shorter side has {shorter:.0f} pixels, {self.min_side} are wanted"
        return "too_long", (
            f"{size}: {longer / shorter:.4g} times as long as wide, {self.max_aspect:g} are allowed; the usual crop "
            f"shows a model the middle {shorter / longer:.2g} of it"
        )


def _sides(rows: Columns) -> tuple[Array, Array]:
    """The shorter and the longer side (N,) float64, NaN where not known."""
    sides = np.stack([rows["width"], rows["height"]]).astype(np.float64)
    return sides.min(axis=0), sides.max(axis=0)
