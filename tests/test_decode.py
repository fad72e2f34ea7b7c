"""Bytes to pixels: what plain Pillow decodes decodes, what it does not is one fault with a cause and a sentence."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageFile

from curator.decode import FORMATS, DecodeFault, DecodeSettings, decode
from curator.stage import Pixels
from tests.conftest import shared
from tests.odd_files import base, encoded, odd_images, png_claiming

ODD = odd_images()
FULL = Pixels()


def pixels(content: bytes, need: Pixels = FULL, **settings) -> np.ndarray:
    """The picture that a stage is given, as an array."""
    decoded = decode(content, DecodeSettings(**settings), [("s", need, np.asarray)])
    assert not decoded.faults
    return decoded.arrays["s"]


def cause(content: bytes, **settings) -> str:
    """Why an image fails; empty where it does not."""
    try:
        decode(content, DecodeSettings(**settings), [])
    except DecodeFault as fault:
        assert fault.detail
        assert "0x" not in fault.detail
        return fault.cause.value
    return ""


def pillow_opens(content: bytes) -> bool:
    """What plain Pillow says, with its own limit on pixels out of the way."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > 100_000_000:
                return False
            image.load()
        return True
    except Exception:
        return False
    finally:
        Image.MAX_IMAGE_PIXELS = before


@pytest.mark.parametrize("name", sorted(ODD))
def test_an_odd_file_decodes_where_pillow_decodes_it(name):
    """A few hundred files: the same set decodes, and in exact mode to the same pixels."""
    content = ODD[name]
    opens = pillow_opens(content)
    assert (cause(content) == "") == opens, cause(content)
    if opens:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            truth = np.asarray(image)
        assert np.array_equal(pixels(content, exact=True), truth)
        seen = pixels(content)
        assert seen.dtype == np.uint8
        assert seen.ndim == 3
        assert seen.shape[2] == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("empty.jpg", "empty_file"), ("zeros.jpg", "not_an_image"), ("page.jpg", "not_an_image"), ("eps.jpg", "format_off"),
        ("vector.svg", "format_off"), ("document.pdf", "format_off"), ("icon.ico", "format_off"),
        ("bomb_13000x13000.png", "too_many_pixels"), ("bomb_19000x19000.png", "too_many_pixels"),
        ("cut_40.jpg", "truncated"), ("cut_60.png", "truncated"), ("random.jpg", "not_an_image"),
    ],
)  # fmt: skip
def test_each_way_to_be_bad_has_its_cause(name, expected):
    """A short list that a person can count by."""
    assert cause(ODD[name]) == expected


def test_a_bomb_is_told_by_its_header_and_not_decoded():
    """361 megapixels in some kilobytes."""
    with pytest.raises(DecodeFault, match=r"361\.0 MP, limit 100 MP \(`read\.max_pixels`\)\. Not decoded\."):
        decode(png_claiming(19000, 19000), DecodeSettings(), [])
    assert cause(encoded(base(size=(100, 100)), "PNG"), max_pixels=9999) == "too_many_pixels"


def test_faults_do_not_depend_on_the_scale():
    """A JPEG cut at every 5 % fails alike, whether it is decoded small or at full size."""
    content = encoded(base(size=(640, 480)), "JPEG", quality=90)
    for percent in range(5, 100, 5):
        part = content[: len(content) * percent // 100]
        found = set()
        for need in (Pixels(), Pixels(min_side=50), Pixels(max_side=100)):
            try:
                decode(part, DecodeSettings(), [("s", need, np.asarray)])
                found.add("")
            except DecodeFault as fault:
                found.add(f"{fault.cause} {fault.detail}")
        assert len(found) == 1, found
        assert cause(part) == next(iter(found)).split(" ")[0]


def test_what_a_stage_is_given_does_not_depend_on_the_stages_beside_it():
    """Otherwise a measurement would not be a function of its address."""
    content = encoded(base(size=(900, 700)), "JPEG")
    alone = pixels(content, Pixels(min_side=80))
    needs = [
        ("big", Pixels(), np.asarray),
        ("s", Pixels(min_side=80), np.asarray),
        ("t", Pixels(max_side=300), np.asarray),
    ]
    together = decode(content, DecodeSettings(), needs).arrays
    assert np.array_equal(together["s"], alone)
    assert min(alone.shape[:2]) >= 80
    assert together["big"].shape == (700, 900, 3)


def test_sixteen_bits_are_scaled_and_not_clamped():
    """CASES 3 (Pillow #3011): a 16-bit ramp came out white; it is the 8-bit picture again."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    wide = Image.fromarray(ramp.astype(np.uint16) * 257)
    assert np.array_equal(pixels(encoded(wide, "PNG")), np.repeat(ramp[..., None], 3, axis=2))


def test_transparent_pictures_lie_on_white():
    """CASES 4 (img2dataset PR 67): one dark drawing four ways is one picture, and none is a dark blot."""
    drawing = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    drawing.paste((20, 20, 60, 255), (10, 10, 30, 30))
    flat = Image.new("RGB", (40, 40), "white")
    flat.paste(drawing, mask=drawing.getchannel("A"))
    palette = drawing.convert("RGB").quantize(4)
    clear = palette.getpixel((0, 0))
    ways = [encoded(drawing, "PNG"), encoded(palette, "PNG", transparency=clear), encoded(flat, "PNG")]
    first, *others = [pixels(way) for way in ways]
    assert all(np.abs(first.astype(int) - other).max() <= 4 for other in others)
    assert pixels(encoded(drawing.convert("LA"), "PNG"))[0, 0].tolist() == [255, 255, 255]


def test_every_exif_turn_is_the_upright_picture():
    """Photos of the eight orientations, made elsewhere, are one landscape; in exact mode they lie as stored."""
    with tarfile.open(shared("data/peers/exif_orientation.tar")) as tar:
        contents = {m.name: tar.extractfile(m).read() for m in tar if m.name.startswith("landscape_")}
    upright = {name: decode(content, DecodeSettings(), [("s", FULL, np.asarray)]) for name, content in contents.items()}
    assert {(d.facts.width, d.facts.height) for d in upright.values()} == {(1800, 1200)}
    small = [np.asarray(Image.fromarray(d.arrays["s"]).resize((90, 60))).astype(float) for d in upright.values()]
    assert max(np.abs(s - small[0]).mean() for s in small) < 12
    exact = {decode(c, DecodeSettings(exact=True), []).facts.width for c in contents.values()}
    assert exact == {1800, 1200}


def test_a_format_by_content_whatever_its_name():
    """CASES 5 (fastdup #322): the name never counts."""
    for name, form in (
        ("wrong_suffix_png.jpg", "PNG"),
        ("wrong_suffix_webp.jpg", "WEBP"),
        ("wrong_suffix_jpeg.png", "JPEG"),
    ):
        assert decode(ODD[name], DecodeSettings(), []).facts.format == form


def test_an_animation_is_its_first_frame_and_says_so():
    """`frames` and a note."""
    for name in ("frames.gif", "frames.webp", "frames.png"):
        facts = decode(ODD[name], DecodeSettings(), []).facts
        assert (facts.frames, facts.notes) == (5, ("animated",))


def test_a_stage_that_raises_fails_alone():
    """One stage's fault on one image is no fault of the image."""

    def broken(image):
        raise KeyError("mine")

    decoded = decode(encoded(base(), "PNG"), DecodeSettings(), [("bad", FULL, broken), ("good", FULL, np.asarray)])
    assert decoded.faults == {"bad": ("stage_error", "KeyError: 'mine'")}
    assert decoded.arrays["good"].shape == (47, 61, 3)
