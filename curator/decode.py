"""Bytes -> pixels: one image file in, what the stages' `prepare` made of it out; each way to be bad is one Fault.

The format is told by content, never by name, and only `formats` are ever tried. The limit on pixels holds before
anything is decoded. Faults depend on the bytes alone, not on which stages run: a JPEG that is decoded small for one
stage and at full size for another fails alike for both.

Runs in a decoder process (`decoders.py`), and as well in any other. Next to read: `upright.py`, what is done to pixels.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from curator.errors import Cause, ConfigError, Fault
from curator.signatures import beginning, ends_early, format_of, frames_of, shrinks, webp_size
from curator.stage import Array, Pixels
from curator.upright import orientation, swaps_sides, upright
from curator.wording import meant

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The default of `read.formats`, by Pillow's names."""

_NEVER = frozenset({"EPS", "WMF", "PDF", "SVG"})  # vector formats run other programs
_CUT = re.compile(r"truncated|incomplete|expecting to read|requires a buffer|no more images|buffer is not large", re.I)
_DETAIL_CHARACTERS = 500
_SILENT_BYTES_PER_PIXEL = {"WEBP": 16, "AVIF": 8}
"""What libraries take that say the same of damage as of a lack of memory (measured: 8 to 12, and 5, at 98 MP)."""

Prepare = tuple[str, Pixels, Callable[[Image.Image], Any]]
"""A stage's name, what it needs, and its `prepare`."""


@cache
def _formats_of_pillow() -> tuple[str, ...]:
    """The names of all formats that this Pillow opens."""
    Image.init()
    return tuple(Image.OPEN)


@dataclass(frozen=True)
class DecodeSettings:
    """How images are decoded and what one may cost. Raises ConfigError for a format that is never or not decoded.

    `exact`: the image as Pillow opens it, which is what open_clip sees: not turned, not converted, not scaled.
    `memory_bytes` counts above what a decoder holds when it is ready.
    """

    formats: tuple[str, ...] = FORMATS
    max_pixels: int = 100_000_000
    exact: bool = False
    timeout_s: float = 20.0
    memory_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if never := sorted(_NEVER.intersection(self.formats)):
            raise ConfigError(f"read.formats: {', '.join(never)} is never decoded: vector formats run other programs.")
        if not self.formats:
            raise ConfigError(f"read.formats: must name one at least, of {', '.join(FORMATS)}.")
        if unknown := [name for name in self.formats if name not in FORMATS and name not in _formats_of_pillow()]:
            near = [f"{name}: no such format.{meant(name.upper(), _formats_of_pillow())}" for name in unknown]
            raise ConfigError(
                [f"read.formats: {line} Formats have Pillow's names: {', '.join(FORMATS)}." for line in near]
            )


@dataclass(frozen=True)
class Facts:
    """What a file's header says. `width` and `height` as seen: after the turn by EXIF, unless `exact`."""

    format: str
    width: int
    height: int
    frames: int
    notes: tuple[str, ...] = ()  # "animated" or "several_pages" where frames > 1


@dataclass(frozen=True)
class Decoded:
    """One image that could be decoded.

    `arrays`: by stage name, what its `prepare` made. `faults`: by stage name, cause and detail where it raised.
    """

    facts: Facts
    arrays: dict[str, Array]
    faults: dict[str, tuple[str, str]]


class DecodeFault(Fault):
    """An image that cannot be decoded; `facts` is what its header said, where that could be read."""

    def __init__(self, cause: Cause, detail: str, facts: Facts | None = None) -> None:
        super().__init__(cause, detail)
        self.facts = facts


def decode(content: bytes | memoryview, settings: DecodeSettings, prepares: Sequence[Prepare]) -> Decoded:
    """Decode one image and call each `prepare` on it. Raises DecodeFault, and nothing else, for a bad image.

    An image is decoded once for each distinct scale that the needs ask for, so that what a stage is given depends
    on the image and its own need only, not on the stages beside it.
    """
    content = bytes(content)
    if not content:
        raise DecodeFault(Cause.EMPTY_FILE, "The file has no bytes.")
    facts: Facts | None = None
    with _own_limits(settings) as said:
        try:
            image = _opened(content, settings)
            header_size = image.size
            facts = _facts(image, content, settings)
            _check_size(facts, settings)
            scales = [_scale(image, content, need, settings) for _, need, _ in prepares]
            smallest = max(scales, default=_scale(image, content, Pixels(max_side=1), settings))
            pictures = {smallest: _picture(image, smallest, settings)}
            sides = _sides(image, header_size, settings)
            facts = replace(facts, width=sides["width"], height=sides["height"])
            for scale in sorted(set(scales) - {smallest}):
                pictures[scale] = _picture(_opened(content, settings), scale, settings)
        except Exception as error:  # the one place: Pillow's plugins raise whatever a hostile file leads them to
            raise _explained(error, content, settings, facts, [str(w.message) for w in said]) from error
        return _prepared(facts, pictures, scales, prepares)


@contextmanager
def _own_limits(settings: DecodeSettings) -> Iterator[list[warnings.WarningMessage]]:
    """Pillow's process-wide switches as they must be here, put back afterwards; gives what it warned of meanwhile.

    Pillow raises above twice its limit and warns above it, so half of ours makes it raise exactly above ours, also
    for sizes that show only later: of a frame, a tile, an icon.
    """
    before = Image.MAX_IMAGE_PIXELS, Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS = settings.max_pixels / 2  # type: ignore[assignment]  # half an odd limit is no int
    Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES = True, False
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield said
    finally:
        Image.MAX_IMAGE_PIXELS, Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _opened(content: bytes, settings: DecodeSettings) -> ImageFile.ImageFile:
    """The image with only its header read. Only WebP allocates its canvas here, so only there Pillow's limit holds."""
    limit = Image.MAX_IMAGE_PIXELS
    if format_of(content) != "WEBP":
        Image.MAX_IMAGE_PIXELS = None  # ours follows, with the size in its words
    try:
        return Image.open(io.BytesIO(content), formats=settings.formats)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _facts(image: ImageFile.ImageFile, content: bytes, settings: DecodeSettings) -> Facts:
    name = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a camera's JPEG with further pictures behind
    claimed = 1 if name in {"GIF", "TIFF"} else int(getattr(image, "n_frames", 1))
    frames = frames_of(content, name, claimed)
    note = "several_pages" if name in {"TIFF", "JPEG"} else "animated"
    sides = _sides(image, image.size, settings)
    return Facts(name, **sides, frames=frames, notes=(note,) if frames > 1 else ())


def _sides(image: ImageFile.ImageFile, size: tuple[int, int], settings: DecodeSettings) -> dict[str, int]:
    """Width and height as seen; told again after decoding, since a PNG may have its EXIF behind its pixels."""
    turned = not settings.exact and swaps_sides(orientation(image))
    return {"width": size[turned], "height": size[not turned]}


def _check_size(facts: Facts, settings: DecodeSettings) -> None:
    if (pixels := facts.width * facts.height) > settings.max_pixels:
        raise DecodeFault(Cause.TOO_MANY_PIXELS, _too_many(pixels, settings), facts)


def _too_many(pixels: int, settings: DecodeSettings) -> str:
    limit = f"{settings.max_pixels / 1e6:,.1f}".removesuffix(".0")
    return f"{pixels / 1e6:,.1f} MP, limit {limit} MP (`read.max_pixels`). Not decoded."


def _scale(image: ImageFile.ImageFile, content: bytes, need: Pixels, settings: DecodeSettings) -> int:
    """By what whole number the decoder may divide the sides for this need: 8, 4 or 2 in JPEGs, else 1."""
    if settings.exact or image.format not in {"JPEG", "MPO"} or not shrinks(content):
        return 1
    short, long = sorted(image.size)
    wanted = [(long, need.max_side), (short, need.min_side)]
    given = [side // least for side, least in wanted if least]
    return next(s for s in (8, 4, 2, 1) if s == 1 or (given and min(given) >= s and short >= s))


def _picture(image: ImageFile.ImageFile, scale: int, settings: DecodeSettings) -> Image.Image:
    """Decode the first frame at 1/scale; a plain `Image` of its own, as seen or, if `exact`, as Pillow opens it."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    return image.copy() if settings.exact else upright(image)


def _prepared(
    facts: Facts, pictures: dict[int, Image.Image], scales: Sequence[int], prepares: Sequence[Prepare]
) -> Decoded:
    """What each stage makes of its picture. One that raises fails alone; one that lacks memory fails the image."""
    arrays: dict[str, Array] = {}
    faults: dict[str, tuple[str, str]] = {}
    for number, ((name, _, prepare), scale) in enumerate(zip(prepares, scales, strict=True)):
        shared = scale in scales[number + 1 :]  # a stage may change its picture in place: no other must see that
        try:
            arrays[name] = _array(prepare(pictures[scale].copy() if shared else pictures[scale]))
        except MemoryError as error:
            raise DecodeFault(Cause.DECODER_OUT_OF_MEMORY, f"`{name}` needed more memory than allowed.") from error
        except Exception as error:  # a stage's code is the user's: whatever it raises belongs to this image and stage
            faults[name] = (Cause.STAGE_ERROR.value, _one_line(f"{type(error).__name__}: {error}"))
    return Decoded(facts, arrays, faults)


def _array(made: Any) -> Array:
    array = np.ascontiguousarray(made) if np.ndim(made) else np.asarray(made)
    if array.dtype.hasobject or array.dtype.fields:
        raise TypeError(f"prepare returned {type(made).__name__}, which is no plain array of numbers")
    return array


def _explained(
    error: Exception, content: bytes, settings: DecodeSettings, facts: Facts | None, said: Sequence[str]
) -> DecodeFault:
    """Any exception on the way from bytes to pixels, as the fault that a person reads."""
    if isinstance(error, DecodeFault):
        return error
    if isinstance(error, Image.DecompressionBombError):
        pixels = int((re.findall(r"\((\d+) pixels\)", str(error)) or ["0"])[0])
        facts = facts or Facts("WEBP", *webp_size(content), frames=1)  # of all formats only this one raises at opening
        return DecodeFault(Cause.TOO_MANY_PIXELS, _too_many(pixels, settings), facts)
    name = facts.format if facts else format_of(content)
    if _lacks_memory(error, content, settings, facts):
        return DecodeFault(Cause.DECODER_OUT_OF_MEMORY, _too_much_memory(settings), facts)
    message = _one_line(str(error))
    if isinstance(error, UnidentifiedImageError):
        if name is None or name not in settings.formats:
            return _unknown(name, content, settings)
        message = _header_message(said)
    if _CUT.search(message) or ends_early(content, name):
        return DecodeFault(
            Cause.TRUNCATED, f"Image data ends at byte {len(content):,}; the decoder needed more.", facts
        )
    return DecodeFault(Cause.CORRUPT, f"Damaged {name}: {message.rstrip('.')}.", facts)


def _lacks_memory(error: Exception, content: bytes, settings: DecodeSettings, facts: Facts | None) -> bool:
    """Whether memory ran out, or may have: a fault of the machine must never be stored as one of the bytes."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return True
    name = facts.format if facts else format_of(content)
    if name not in _SILENT_BYTES_PER_PIXEL or ends_early(content, name):
        return False
    width, height = (facts.width, facts.height) if facts else webp_size(content) if name == "WEBP" else (0, 0)
    return width * height * _SILENT_BYTES_PER_PIXEL[name] > settings.memory_bytes


def _too_much_memory(settings: DecodeSettings) -> str:
    return f"Needed more than {settings.memory_bytes / (1 << 30):.3g} GiB."


def _unknown(name: str | None, content: bytes, settings: DecodeSettings) -> DecodeFault:
    if name is not None:
        return DecodeFault(Cause.FORMAT_OFF, f"{name} is not in `read.formats`.")
    return DecodeFault(
        Cause.NOT_AN_IMAGE, f"Starts with {beginning(content)}; none of {', '.join(settings.formats)} fits."
    )


def _header_message(said: Sequence[str]) -> str:
    """What Pillow warned of when it could open a file in none of the formats; its last words on the matter."""
    reasons = [_one_line(re.sub(r"^\w+ opening failed\. ", "", text)) for text in said]
    return next((reason for reason in reversed(reasons) if re.search("[a-z]", reason)), "its header cannot be read")


def _one_line(text: str) -> str:
    """A library's message as part of a sentence: no addresses of objects, no line breaks, not endless."""
    plain = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "the file", " ".join(text.split()))
    return plain[:_DETAIL_CHARACTERS] or "no message"
