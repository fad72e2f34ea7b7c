"""Any image that Pillow opens -> the picture a person sees: 8-bit RGB, upright, on white.

    transparent (RGBA, LA, PA, a palette with alpha, one transparent colour)   composited on white
    16-bit grey                                                                divided by 257, never clamped
    32-bit whole numbers                  0..255 as they are, 0..65,535 divided by 257, else darkest..lightest
    floating point                        0..1 times 255, else as whole numbers are; NaN is black, infinities the ends
    CMYK, YCCK (inverted as Adobe does)   Pillow's plain formula: profiles are not applied
    LAB                                   by LittleCMS, to sRGB
    HSV, YCbCr, grey, 1 bit, palette      Pillow's own conversion
    EXIF or XMP orientation               turned and mirrored; a broken EXIF block counts as none

Knows nothing about bytes, faults or stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageCms
from PIL.Image import Transpose

from curator.stage import Array

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_STRIP_PIXELS = 1 << 20  # wide numbers are scaled strip by strip, so that 100 million of them fit in memory
Levels = Callable[[Array], Array]
"""Numbers of any width (H, W) -> grey levels (H, W) uint8."""


def orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF numbers them; 1 where there is none, where it is broken, or where Pillow turns by itself (TIFF).

    Decodes nothing: of a PNG that is not loaded yet, EXIF behind the pixels is not seen (Pillow would load it here,
    before any limit, and leave it half decoded where that fails).
    """
    unloaded_png = image.format == "PNG" and getattr(image, "tile", None) and "exif" not in image.info
    if image.format == "TIFF" or unloaded_png:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if value in _TURNS else 1
    except Exception:  # a broken EXIF block raises whatever its numbers lead to; the picture is good all the same
        return 1


def swaps_sides(turn: int) -> bool:
    """Whether an orientation makes rows of columns: width and height change places."""
    return turn >= 5


def upright(image: Image.Image) -> Image.Image:
    """A loaded image as seen: mode RGB, a plain `Image` of its own. Raises ValueError on a mode without a rule."""
    turn = orientation(image)
    seen = _rgb(image)
    return seen.transpose(_TURNS[turn]) if turn in _TURNS else seen


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image).convert("RGB")
    if image.mode == "LAB":
        return _from_lab(image)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _from_lab(image: Image.Image) -> Image.Image:
    seen = ImageCms.applyTransform(image, _lab_to_srgb())
    if seen is None:
        raise ValueError("LAB colours could not be converted")
    return seen


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _grey(image: Image.Image) -> Image.Image:
    """A grey image of wide numbers in 8 bits, white where its one transparent number stands."""
    levels = _divided if image.mode.startswith("I;16") else _levels_between(*_extent(image), image.mode == "F")
    transparent = image.info.get("transparency")
    grey = Image.new("L", image.size)
    for top, strip in _strips(image):
        shown = levels(strip)
        if isinstance(transparent, int):
            shown = np.where(strip == transparent, np.uint8(255), shown)
        grey.paste(Image.fromarray(shown), (0, top))
    return grey


def _strips(image: Image.Image) -> Iterator[tuple[int, Array]]:
    """Whole rows from the top: the first row's number, and (h, W) numbers."""
    height = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        yield top, np.asarray(image.crop((0, top, image.width, min(top + height, image.height))))


def _divided(numbers: Array) -> Array:
    """16 bits to 8, rounded: 65,535 is 255 and 257 is 1."""
    return ((numbers.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _extent(image: Image.Image) -> tuple[float, float]:
    """The smallest and largest finite number of an image; 0, 0 where none is finite."""
    ends = [(s.min(), s.max()) for _, strip in _strips(image) if (s := strip[np.isfinite(strip)]).size]
    return (float(min(low for low, _ in ends)), float(max(high for _, high in ends))) if ends else (0.0, 0.0)


def _levels_between(low: float, high: float, floating: bool) -> Levels:
    """Which numbers are black and white, told from the smallest and largest: the first usual range that holds both."""
    usual = [(0.0, 1.0)] if floating else []
    ranges = [*usual, (0.0, 255.0), (0.0, 65535.0), (low, high)]
    black, white = next((b, w) for b, w in ranges if b <= low and high <= w)

    def levels(numbers: Array) -> Array:
        known = np.nan_to_num(numbers.astype(np.float64), nan=black, posinf=white, neginf=black)
        return np.rint((known - black) * (255.0 / ((white - black) or 1.0))).astype(np.uint8)

    return levels
