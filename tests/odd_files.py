"""A few hundred odd image files: every format, mode and kind of damage, made with Pillow and some surgery on bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIZE = (61, 47)
SAVED = {
    "JPEG": ("jpg", ("RGB", "L", "CMYK")),
    "PNG": ("png", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    "WEBP": ("webp", ("RGB", "RGBA", "L")),
    "GIF": ("gif", ("1", "L", "P", "RGB")),
    "BMP": ("bmp", ("1", "L", "P", "RGB")),
    "TIFF": ("tif", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB")),
    "AVIF": ("avif", ("RGB", "RGBA")),
}


def base(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth picture in a mode."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 4), dtype=np.uint8), "RGBA").resize(
        size, Image.Resampling.BICUBIC
    )
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return image.convert("L").convert(mode)
    if mode == "LAB":
        return Image.merge("LAB", image.convert("RGB").split())
    return image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def odd_images() -> dict[str, bytes]:
    """Name (with a suffix) -> bytes."""
    return dict([*_modes(), *_sizes(), *_turned(), *_animated(), *_cut(), *_flipped(), *_bombs(), *_no_images()])


def _modes() -> Iterator[tuple[str, bytes]]:
    for form, (suffix, modes) in SAVED.items():
        for mode in modes:
            yield f"mode_{form}_{mode.replace(';', '')}.{suffix}", encoded(base(mode), form)
    for options in ({"progressive": True}, {"quality": 1}, {"subsampling": 2}, {"optimize": True}):
        yield f"jpeg_{next(iter(options))}.jpg", encoded(base(), "JPEG", **options)
    palette = base().quantize(16)
    yield "palette_transparent.png", encoded(palette, "PNG", transparency=3)
    yield "palette_bytes_transparent.png", encoded(palette, "PNG", transparency=bytes(range(0, 160, 10)))
    yield "rgb_trns.png", encoded(base(), "PNG", transparency=(10, 20, 30))
    yield "grey_trns.png", encoded(base("L"), "PNG", transparency=7)
    yield "lossless.webp", encoded(base(), "WEBP", lossless=True)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield f"tiff_{compression}.tif", encoded(base(), "TIFF", compression=compression)


def _sizes() -> Iterator[tuple[str, bytes]]:
    for width, height in ((1, 1), (2, 1), (1, 2), (2000, 1), (1, 2000), (4000, 40), (300, 3000), (7, 13)):
        for form, suffix in (("PNG", "png"), ("JPEG", "jpg")):
            yield f"size_{width}x{height}.{suffix}", encoded(base(size=(width, height)), form)


def _turned() -> Iterator[tuple[str, bytes]]:
    for turn in range(11):
        exif = Image.Exif()
        exif[0x0112] = turn
        yield f"exif_{turn}.jpg", encoded(base(), "JPEG", exif=exif)
    yield "exif_broken.jpg", encoded(base(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")


def _animated() -> Iterator[tuple[str, bytes]]:
    frames = [base().rotate(n * 30) for n in range(5)]
    for form, suffix in (("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tif")):
        yield f"frames.{suffix}", encoded(frames[0], form, save_all=True, append_images=frames[1:])
    yield "frames_mpo.jpg", encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    yield "frames_many.gif", _long_gif(4000)
    looped = bytearray(encoded(base(), "TIFF"))
    looped[-4:] = looped[4:8] if looped[-4:] == bytes(4) else looped[-4:]  # the next directory is this one again
    yield "frames_for_ever.tif", bytes(looped)


def _long_gif(frames: int) -> bytes:
    """An animation of many frames, each a few bytes."""
    content = encoded(Image.new("P", (9, 9)), "GIF")
    start = content.index(b",", 13 + 3 * (2 << (content[10] & 7)))
    return content[:start] + content[start:-1] * frames + b";"


def _cut() -> Iterator[tuple[str, bytes]]:
    for form, (suffix, _) in SAVED.items():
        content = encoded(base(), form)
        for share in (1, 5, 20, 40, 60, 80, 95):
            yield f"cut_{share:02d}.{suffix}", content[: len(content) * share // 100]


def _flipped() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(5)
    for form, (suffix, _) in SAVED.items():
        content = encoded(base(), form)
        for n in range(14):
            broken = bytearray(content)
            for at in rng.integers(0, len(content), 1 + 3 * n):
                broken[at] = rng.integers(0, 256)
            yield f"flip_{n:02d}.{suffix}", bytes(broken)


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a size; its data are zeros, well compressed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((1 + width // 8 + 1) * height), 9) if width * height < 5_000_000_000 else b""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _bombs() -> Iterator[tuple[str, bytes]]:
    for width, height in ((9000, 9000), (13000, 13000), (19000, 19000), (65535, 1), (65535, 65535)):
        yield f"bomb_{width}x{height}.png", png_claiming(width, height)
    gif = bytearray(encoded(base("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    yield "bomb_gif.gif", bytes(gif)
    webp = bytearray(encoded(base(), "WEBP", lossless=True))
    webp[21:25] = (0xFFFFFFF).to_bytes(4, "little")  # 16,384 x 16,384
    yield "bomb_webp.webp", bytes(webp)
    text = PngInfo()
    text.add_text("comment", "0" * 5_000_000, zip=True)
    yield "bomb_text.png", encoded(base(), "PNG", pnginfo=text)


def _no_images() -> Iterator[tuple[str, bytes]]:
    yield "empty.jpg", b""
    yield "zeros.jpg", bytes(5000)
    yield "page.jpg", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "text.png", b"just words, no picture\n" * 20
    yield "eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    yield "later.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    yield "vector.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "document.pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"
    yield "icon.ico", encoded(base("RGBA", (32, 32)), "ICO")
    yield "photoshop.psd", b"8BPS\0\1" + bytes(100)
    yield "wrong_suffix_png.jpg", encoded(base(), "PNG")
    yield "wrong_suffix_gif.jpg", encoded(base("P"), "GIF")
    yield "wrong_suffix_webp.jpg", encoded(base(), "WEBP")
    yield "wrong_suffix_jpeg.png", encoded(base(), "JPEG")
    yield "jpeg_with_tail.jpg", encoded(base(), "JPEG") + b"tail" * 100
    yield "random.jpg", np.random.default_rng(1).bytes(3000)
