"""What isolation costs: one JPEG decoded and prepared in this process, in a decoder process, and over two of them.

    python scripts/bench_decode.py

The three ways take turns, so that a busy machine slows all of them alike; a figure is the median of the rounds, and
the last columns are ratios to this process. The pictures are noise of photo-like size on disk, shrunk as `embed` asks.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import cloudpickle
import numpy as np
from PIL import Image

from curator.decode import DecodeSettings, decode
from curator.decoders import Decoders
from curator.stage import Array, Pixels

SIDES = (64, 256, 640, 1600)
NEED = Pixels(min_side=448)
IMAGES, ROUNDS = 60, 7


class Square:
    """What an embedding stage prepares: the middle, 224 x 224."""

    def prepare(self, image: Image.Image) -> Array:
        """(224, 224, 3) uint8."""
        scale = 224 / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224)))


def jpeg(side: int) -> bytes:
    """A picture with detail in every block."""
    coarse = np.random.default_rng(side).integers(0, 256, (max(4, side // 4), max(4, side // 3), 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def milliseconds(run: Callable[[], object]) -> float:
    """Per image, of one round."""
    begin = time.monotonic()
    run()
    return (time.monotonic() - begin) * 1000 / IMAGES


def main() -> None:
    """Print the table."""
    settings = DecodeSettings()
    stages = [("square", NEED, cloudpickle.dumps(Square))]
    pools = [Decoders(count, settings, stages) for count in (1, 2)]
    print(f"{'JPEG':>14} {'bytes':>8} {'here, ms':>9} {'one, ms':>8} {'two, ms':>8} {'one':>6} {'two':>6}")
    for side in SIDES:
        content = jpeg(side)
        ways: list[Callable[[], object]] = [
            lambda: [decode(content, settings, [("square", NEED, Square().prepare)]) for _ in range(IMAGES)],  # noqa: B023
            *(lambda pool=pool: list(pool.decode_all((n, content) for n in range(IMAGES))) for pool in pools),  # noqa: B023
        ]
        for way in ways:
            way()
        rounds = [[milliseconds(way) for way in ways] for _ in range(ROUNDS)]
        here, one, two = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = f"{one / here:>6.2f} {two / here:>6.2f}"
        print(f"{side * 4 // 3:>7} x {side:<4} {len(content):>8,} {here:>9.2f} {one:>8.2f} {two:>8.2f} {ratios}")
    for pool in pools:
        pool.close()


if __name__ == "__main__":
    main()
