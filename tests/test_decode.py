"""Bytes to pixels: what plain Pillow decodes decodes, what it does not is one fault with a cause and a sentence."""

from __future__ import annotations

import io
import os
import tarfile
import time

import numpy as np
import pytest
from PIL import Image, ImageFile

from curator.decode import FORMATS, DecodeFault, DecodeSettings, decode
from curator.errors import ConfigError
from curator.signatures import webp_size
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


@pytest.mark.parametrize("name", [name for name in sorted(ODD) if name.startswith("bomb_")])
def test_a_bomb_costs_no_time_and_no_memory(name):
    """What is too large for `max_pixels` is told from its header, with the sides where it says them."""
    begin = time.monotonic()
    try:
        decode(ODD[name], DecodeSettings(), [])
    except DecodeFault as fault:
        assert time.monotonic() - begin < 0.5
        if fault.cause == "too_many_pixels":
            assert f"{fault.facts.width * fault.facts.height / 1e6:,.1f} MP, limit 100 MP" in fault.detail


def test_no_program_is_run_for_a_file(tmp_path, monkeypatch):
    """Plain Pillow starts Ghostscript for EPS, whatever the file's name; here a `gs` on the path is never asked."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DecodeFault, match=r"^\(<Cause.FORMAT_OFF.*EPS is not in `read.formats`\."):
        decode(ODD["eps.jpg"], DecodeSettings(), [])
    assert not (tmp_path / "asked").exists()
    with pytest.raises(ConfigError, match="EPS is never decoded"):
        DecodeSettings(formats=("JPEG", "EPS"))


def test_frames_are_counted_as_pillow_counts_them():
    """`frames` of every file that decodes; of a JPEG, the pictures that a camera put behind it."""
    for name in [name for name in ODD if not cause(ODD[name])]:
        with Image.open(io.BytesIO(ODD[name]), formats=FORMATS) as image:
            try:
                counted = getattr(image, "n_frames", 1)
            except Exception:  # damage behind the first frame, where Pillow gives up and Curator does not
                assert name.startswith("flip_")
                continue
            assert decode(ODD[name], DecodeSettings(), []).facts.frames == counted, name


def test_frames_that_are_damaged_or_endless_do_not_matter_to_the_first():
    """A GIF cut in its last frame, and one of twenty million empty blocks, are their first frame, soon."""
    content = ODD["frames.gif"]
    decoded = decode(content[:-60], DecodeSettings(), [("s", FULL, np.asarray)])
    assert np.array_equal(decoded.arrays["s"], pixels(content))
    begin = time.monotonic()
    decode(ODD["frames_many.gif"][:-1] + b"!\xfe" + b"\1x" * 20_000_000 + b"\0;", DecodeSettings(), [])
    assert time.monotonic() - begin < 5


def test_a_webp_says_its_size_before_it_is_opened():
    """In each of the three ways in which a WebP begins, as Pillow reads it."""
    for options in ({}, {"lossless": True}, {"exif": Image.Exif()}, {"icc_profile": b"x" * 200}):
        assert webp_size(encoded(base(size=(300, 41)), "WEBP", **options)) == (300, 41)
    assert webp_size(b"RIFF") == (0, 0)


def test_the_same_damage_has_the_same_name_at_any_scale():
    """Bytes changed at random in a JPEG: full size and an eighth agree on whether and why it fails."""
    rng = np.random.default_rng(8)
    for options in ({}, {"progressive": True}):
        content = encoded(base(size=(320, 240)), "JPEG", **options)
        for _ in range(150):
            broken = bytearray(content)
            for at in rng.integers(2, len(content), rng.integers(1, 20)):
                broken[at] = rng.integers(0, 256)
            found = set()
            for need in (Pixels(), Pixels(max_side=40)):
                try:
                    decode(bytes(broken), DecodeSettings(), [("s", need, np.asarray)])
                    found.add("")
                except DecodeFault as fault:
                    found.add((fault.cause, fault.detail))
            assert len(found) == 1, found


def test_a_jpeg_is_shrunk_as_far_as_its_need_allows():
    """The side that is named stays at least what it must be; other formats, and `exact`, are never shrunk."""
    content = encoded(base(size=(1600, 1000)), "JPEG")
    sides = [(Pixels(), 1600), (Pixels(max_side=400), 400), (Pixels(max_side=401), 800), (Pixels(min_side=125), 200)]
    assert [pixels(content, need).shape[1] for need, _ in sides] == [side for _, side in sides]
    assert pixels(content, Pixels(max_side=10), exact=True).shape[1] == 1600
    assert pixels(encoded(base(size=(1600, 1000)), "PNG"), Pixels(max_side=10)).shape[1] == 1600


def test_wide_numbers_have_a_rule():
    """16 bits by 257; 32-bit numbers and fractions by the first usual range that holds them; NaN is black."""
    ramp = np.linspace(0, 1, 50).reshape(5, 10)
    eight = np.rint(ramp * 255)
    for wide in (ramp.astype("f4"), eight.astype("f4"), eight.astype("i4"), (eight * 257).astype("i4"),
                 (eight * 257).astype("u2"), (eight * 1e6 - 4e7).astype("f4")):  # fmt: skip
        seen = pixels(encoded(Image.fromarray(wide), "TIFF"))
        assert np.abs(seen[..., 0] - eight).max() <= 1, (wide.dtype, wide.max())
    lost = ramp.astype("f4")
    lost[0, 0], lost[0, 1] = np.nan, np.inf
    assert list(pixels(encoded(Image.fromarray(lost), "TIFF"))[0, :2, 0]) == [0, 255]


def test_exif_that_stands_behind_the_pixels_turns_a_png_too():
    """And asking for it decodes nothing before the limits hold, nor hides that the pixels are damaged."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(base(), "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    late = content.replace(chunk, b"").replace(content[-12:], chunk + content[-12:])
    assert decode(late, DecodeSettings(), []).facts == decode(content, DecodeSettings(), []).facts
    assert np.array_equal(pixels(late), pixels(content))
    assert pixels(late).shape[:2] == base().size
    assert cause(late[:-200]) == "truncated"


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
