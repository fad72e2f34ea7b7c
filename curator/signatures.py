"""What an image file says about itself before anything is decoded: its format, its length, its number of frames.

Every function takes the file's bytes, believes none of them, never raises, and does bounded work: a hostile file
costs at most a walk of `MAX_STEPS` steps. Knows nothing about Pillow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

MAX_STEPS = 1_000_000
"""Chunks, boxes, directories or blocks looked at in one file; what lies behind them is not counted."""

_BEGINNINGS: tuple[tuple[str, int, bytes], ...] = (  # the format by Pillow's name where it has one, offset, bytes there
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("GIF", 0, b"GIF87a"),
    ("GIF", 0, b"GIF89a"),
    ("WEBP", 8, b"WEBP"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),
    ("TIFF", 0, b"MM\0+"),
    ("AVIF", 4, b"ftypavif"),
    ("AVIF", 4, b"ftypavis"),
    ("BMP", 0, b"BM"),
    ("HEIC", 4, b"ftyphei"),
    ("HEIC", 4, b"ftyphev"),
    ("HEIC", 4, b"ftypmif1"),
    ("EPS", 0, b"%!PS"),
    ("EPS", 0, b"\xc5\xd0\xd3\xc6"),
    ("PDF", 0, b"%PDF"),
    ("JPEG2000", 0, b"\0\0\0\x0cjP  "),
    ("JPEG2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("PSD", 0, b"8BPS"),
    ("ICO", 0, b"\0\0\1\0"),
    ("CUR", 0, b"\0\0\2\0"),
    ("ICNS", 0, b"icns"),
    ("DDS", 0, b"DDS "),
    ("QOI", 0, b"qoif"),
    ("XCF", 0, b"gimp xcf"),
    ("FITS", 0, b"SIMPLE  ="),
    ("WMF", 0, b"\xd7\xcd\xc6\x9a"),
    ("EXR", 0, b"\x76\x2f\x31\x01"),
    ("HDR", 0, b"#?RADIANCE"),
    ("DJVU", 0, b"AT&TFORM"),
)
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "JPEG XL": "jxl"}
"""Of formats whose usual suffix is not their name."""
_PPM = re.compile(rb"P[1-7fF]\s")
_SVG = re.compile(rb"\s*(?:<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE svg[^>]*>|\s)*<(?:\w+:)?svg[\s>]", re.DOTALL)
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})  # JPEG markers that stand alone
_SHRINKABLE = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive frames: those of the DCT kind


def format_of(content: bytes) -> str | None:
    """The format that the first bytes are the signature of, whether or not it can be decoded; None if of none."""
    head = content[:32]
    for name, offset, signature in _BEGINNINGS:
        if head.startswith(signature, offset):
            return name
    if _PPM.match(head):
        return "PPM"
    return "SVG" if _SVG.match(content[:4096]) else None


def usual_suffix(form: str) -> str:
    """The suffix that files of a format usually have, without a dot: `jpg` for JPEG."""
    return _SUFFIXES.get(form, form.lower().replace(" ", ""))


def beginning(content: bytes) -> str:
    """The first word of the bytes as a person may read it: `"<html"`, or `00 1f 8b 08` where it is no text."""
    head = content[:16]
    text = head.decode("ascii", "replace").lstrip()
    word = re.match(r"[!-~]+?(?=[\s>]|$)", text)
    if word and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return '"' + word[0].replace('"', "'") + '"'
    return content[:8].hex(" ")


def ends_early(content: bytes, name: str | None) -> bool:
    """Whether the file is shorter than it says itself: it was cut. False where its format does not say."""
    if name == "WEBP":
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    if name == "TIFF":
        return _tiff_directories(content)[1]
    if name == "JPEG":
        return not any(marker == 0xDA for marker, _ in _jpeg_segments(content)) or b"\xff\xd9" not in content
    if name in {"PNG", "AVIF"}:
        return _parts_end(content, 8 if name == "PNG" else 0) > len(content)
    return len(content) < 12


def frames_of(content: bytes, name: str, claimed: int) -> int:
    """How many frames or pages a file has: counted where the library would be slow or fragile, else as `claimed`."""
    if name == "GIF":
        return max(1, _gif_frames(content))
    if name == "TIFF":
        return max(1, _tiff_directories(content)[0])
    return max(1, claimed)


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height of a WebP by its first chunk, which opens before anything is allocated; 0, 0 where none fits."""
    kind, head = content[12:16], content[20:30]
    if len(head) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return 0, 0


def shrinks(content: bytes) -> bool:
    """Whether a JPEG is of the kind that can be decoded at 1/2, 1/4 or 1/8: lossless ones can not."""
    frame_headers = [m for m, _ in _jpeg_segments(content) if 0xC0 <= m <= 0xCF and m not in {0xC4, 0xC8, 0xCC}]
    return len(frame_headers) == 1 and frame_headers[0] in _SHRINKABLE


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Marker and offset of each segment of a JPEG, up to and with the start of its first scan (0xDA)."""
    offset = 2
    for _ in range(MAX_STEPS):
        offset = content.find(b"\xff", offset)
        if offset < 0 or offset + 4 > len(content):
            return
        marker = content[offset + 1]
        if marker in {0x00, 0xFF}:  # stuffing and fill bytes
            offset += 1
            continue
        yield marker, offset
        if marker == 0xDA:
            return
        offset += 2 if marker in _NO_LENGTH else 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")


def _parts_end(content: bytes, offset: int) -> int:
    """Where the last chunk of a PNG (its parts begin at 8) or box of an AVIF (at 0) ends by its own length."""
    png = offset == 8
    for _ in range(MAX_STEPS):
        if offset + 8 > len(content):
            return offset if offset == len(content) else offset + 8
        size = int.from_bytes(content[offset : offset + 4], "big")
        kind = content[offset + 4 : offset + 8]
        if not png and size < 8:  # to the end of the file, or 64 bits long: not needed by any picture that fits
            return len(content)
        offset += size + 12 if png else size
        if png and kind == b"IEND":
            return offset
    return offset


def _gif_frames(content: bytes) -> int:
    """The image descriptors of a GIF, up to the first place where it is damaged."""
    frames, steps = 0, 0
    offset = 13 + _palette_bytes(content[10:11])
    while offset < len(content) and steps < MAX_STEPS:
        kind = content[offset]
        if kind == 0x2C:  # an image: descriptor, palette, code size, blocks
            frames += 1
            offset += 11 + _palette_bytes(content[offset + 9 : offset + 10])
        elif kind == 0x21:  # an extension: label, blocks
            offset += 2
        elif kind == 0x3B:
            break
        else:  # Pillow, too, steps over what stands between blocks
            offset += 1
            steps += 1
            continue
        while offset < len(content) and steps < MAX_STEPS:
            size = content[offset]
            offset += 1 + size
            steps += 1
            if not size:
                break
    return frames


def _palette_bytes(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _tiff_directories(content: bytes) -> tuple[int, bool]:
    """How many directories (pages) a TIFF chains, and whether it is cut: the chain or the first page's data go on
    beyond the end of the file.
    """
    order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
    big = b"+" in content[2:4]

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], order)

    word, counter, entry = (8, 8, 20) if big else (4, 2, 12)
    at, seen, data_end = number(8 if big else 4, word), set[int](), 0
    while at and at not in seen and len(seen) < MAX_STEPS:
        after = at + counter + entry * number(at, counter)
        if after + word > len(content):
            return len(seen), True
        if not seen:
            data_end = _tiff_data_end(number, range(at + counter, after, entry), word)
        seen.add(at)
        at = number(after, word)
    return len(seen), data_end > len(content)


def _tiff_data_end(number: Callable[[int, int], int], entries: Iterable[int], word: int) -> int:
    """Where the last strip or tile of one directory ends by its own numbers; 0 where they cannot be told."""
    last: dict[int, int] = {}
    for at in entries:
        tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, word)
        size = {3: 2, 4: 4, 16: 8}.get(kind, 0)
        if tag in {273, 279, 324, 325} and size and count:  # offsets and lengths of strips, of tiles
            place = at + 4 + word if size * count <= word else number(at + 4 + word, word)
            last[tag] = number(place + size * (count - 1), size)
    return max(last.get(273, 0) + last.get(279, 0), last.get(324, 0) + last.get(325, 0))
