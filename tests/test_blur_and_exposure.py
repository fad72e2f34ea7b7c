"""blur and exposure: numbers that do not hang on a picture's size, its format or its transparency."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from curator import (
    CaptionFilterStage,
    FilePartitioningStage,
    ImageBatch,
    ImageBlurFilterStage,
    ImageExposureFilterStage,
    ImageReaderStage,
    ImageResolutionFilterStage,
)
from curator.stages.blur import laplacian
from tests.conftest import make_shard, shared, tar_members
from tests.odd_files import encoded

SOURCES = [FilePartitioningStage(), ImageReaderStage()]


def rows_of(pipeline, tmp_path, stage, files):
    """The ledger's rows by key, of files through a stage."""
    make_shard(tmp_path / "a.tar", files)
    result = pipeline([*SOURCES, stage], input=tmp_path / "a.tar")
    return {row["key"]: row for row in result.ledger.to_pylist()}


def scene(width: int = 4000) -> Image.Image:
    """A picture with things of all sizes and hard edges, sharp at its full size, 4 to 3."""
    rng, size = np.random.default_rng(4), (width, width * 3 // 4)
    image = Image.new("RGB", size, (120, 140, 160))
    draw = ImageDraw.Draw(image)
    for _ in range(500):
        side = float(np.exp(rng.uniform(np.log(0.005), np.log(0.2)))) * width
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + side, y + side), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def test_sharpness_is_the_same_at_any_size(pipeline, tmp_path):
    """Cases 12: sharp copies of 500, 1,500 and 4,000 px agree within 5 %, in JPEG and PNG; a blurred one is far below;
    a flat square has no edges to judge, is kept, and is said by its contrast.
    """
    whole = scene()
    files = {}
    for width in (500, 1500, 4000):
        copy = whole if width == 4000 else whole.resize((width, width * 3 // 4), Image.Resampling.LANCZOS)
        files[f"sharp{width}.jpg"] = encoded(copy, "JPEG", quality=92)
        files[f"blurred{width}.jpg"] = encoded(copy.filter(ImageFilter.GaussianBlur(width * 0.0075)), "JPEG", quality=92)
    files["sharp1500png.png"] = encoded(whole.resize((1500, 1125), Image.Resampling.LANCZOS), "PNG", compress_level=1)
    files["flat.png"] = encoded(Image.new("RGB", (900, 900), (128, 128, 128)), "PNG")
    rows = rows_of(pipeline, tmp_path, ImageBlurFilterStage(), files)
    sharp = [row["sharpness"] for key, row in rows.items() if key.startswith("sharp")]
    blurred = [row["sharpness"] for key, row in rows.items() if key.startswith("blurred")]
    assert len(sharp) == 4
    assert max(sharp) < 1.05 * min(sharp)
    assert max(blurred) < min(sharp) / 20
    assert {key: row["status"] for key, row in rows.items()} == {
        key: "dropped" if key.startswith("blurred") else "kept" for key in rows
    }
    assert (rows["flat"]["sharpness"], rows["flat"]["contrast"]) == (0, 0)
    row = rows["blurred500"]
    assert row["cause"] == "below_threshold"
    assert row["reason"] == f"{row['sharpness']:.2f} < 40.00"


def test_the_laplacian_by_hand():
    """Four neighbours less four times the middle; beyond the border the picture goes on."""
    dot = np.zeros((3, 4))
    dot[1, 1], dot[0, 3] = 10, 1
    assert laplacian(dot).tolist() == [[0, 10, 1, -2], [10, -40, 10, 1], [0, 10, 0, 0]]


def test_sharpness_and_contrast_by_hand():
    """Stripes of one pixel, 0 and 200: the Laplacian is 400 and -400 inside, 200 and -200 at two borders."""
    stripes = np.tile(np.array([0, 200] * 4, np.uint8), (6, 1))
    sharpness, contrast = ImageBlurFilterStage().prepare(Image.fromarray(stripes))
    assert sharpness == pytest.approx((6 * 400**2 + 2 * 200**2) / 8)
    assert contrast == 100


@pytest.mark.parametrize("size", [(1, 1), (2000, 1), (4000, 40), (300, 3000)])
def test_odd_shapes_have_numbers(size):
    """Nothing is divided by a side that became 0."""
    for stage in (ImageBlurFilterStage(), ImageExposureFilterStage()):
        assert np.isfinite(stage.prepare(Image.new("RGB", size, (200, 10, 10)))).all()


def test_a_16_bit_picture_is_exposed_as_its_8_bit_twin(pipeline, tmp_path):
    """Cases 3: a ramp over a picture as 16-bit grey is scaled, not clamped to white: the same numbers, not bright."""
    grey = np.asarray(scene(640).convert("L"), np.uint16)
    grey[:100, :512] = np.repeat(np.arange(256), 2)
    files = {
        "deep.png": encoded(Image.fromarray(grey * 257), "PNG"),
        "plain.png": encoded(Image.fromarray(grey.astype(np.uint8)), "PNG"),
    }
    rows = rows_of(pipeline, tmp_path, ImageExposureFilterStage(), files)
    assert Image.fromarray(grey * 257).mode == "I;16"
    assert {row["status"] for row in rows.values()} == {"kept"}
    for name in ImageExposureFilterStage.gives:
        assert rows["deep"][name] == pytest.approx(rows["plain"][name], abs=1e-6)
    assert rows["plain"]["luminance_p5"] < 0.3


def test_transparent_drawings_are_not_dark(pipeline, tmp_path):
    """Cases 4: one dark drawing as RGBA, palette with a transparent entry, LA and flattened: on white, all alike."""
    drawing = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    draw = ImageDraw.Draw(drawing)
    for n in range(8):
        draw.ellipse((30 + 45 * n, 40 + 30 * n, 90 + 45 * n, 140 + 30 * n), fill=(10 * n, 5 * n, 60, 255))
    flat = Image.new("RGB", drawing.size, "white")
    flat.paste(drawing, mask=drawing.getchannel("A"))
    palette = drawing.convert("RGB").quantize(63)
    colours = palette.getpalette()
    hole = len(colours) // 3
    palette.putdata(np.where(np.asarray(drawing.getchannel("A")) == 0, hole, np.asarray(palette)).ravel())
    palette.putpalette([*colours, 0, 0, 0])
    files = {
        "rgba.png": encoded(drawing, "PNG"),
        "la.png": encoded(drawing.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=hole),
        "flat.png": encoded(flat, "PNG"),
    }
    rows = rows_of(pipeline, tmp_path, ImageExposureFilterStage(), files)
    assert {row["status"] for row in rows.values()} == {"kept"}
    for row in rows.values():
        assert row["luminance_p95"] == 1
        assert row["luminance_mean"] == pytest.approx(rows["flat"]["luminance_mean"], abs=0.01)


def test_dark_bright_empty_and_clipped_pictures_are_told_apart(pipeline, tmp_path):
    """A lamp in the night and a thing on white are neither; what is wrong stands in the row."""

    def picture(ground, spots):
        array = np.full((200, 200), ground, np.uint8)
        for n, (value, share) in enumerate(spots):
            array[20 * n : 20 * n + 20, : int(share * 2000)] = value
        return encoded(Image.fromarray(array), "PNG")

    steps = [(value, 0.05) for value in (30, 60, 90, 120, 150, 180, 210, 240)]
    files = {
        "dark.png": encoded(Image.fromarray(np.tile(np.arange(20, dtype=np.uint8), (20, 1))), "PNG"),
        "lamp.png": picture(5, steps),
        "bright.png": encoded(Image.fromarray(np.tile(np.arange(236, 256, dtype=np.uint8), (20, 1))), "PNG"),
        "thing.png": picture(255, steps),
        "empty.png": encoded(Image.new("L", (200, 200), 128), "PNG"),
    }
    rows = rows_of(pipeline, tmp_path, ImageExposureFilterStage(max_clipped=0.7), files)
    assert {key: (row["cause"], row["reason"]) for key, row in rows.items()} == {
        "dark": ("dark", "dark: 95 % of it at or below 0.071 of white, limit 0.15"),
        "lamp": (None, None),
        "bright": ("bright", "bright: 95 % of it at or above 0.925 of white, limit 0.9"),
        "thing": (None, None),
        "empty": ("low_information", "low information: 0.000 bits, 1 are wanted"),
    }
    strict = rows_of(pipeline, tmp_path, ImageExposureFilterStage(max_clipped=0.5), files)
    assert (strict["thing"]["cause"], strict["thing"]["reason"]) == (
        "clipped", "clipped: 60.0% of it black or white, limit 50.0%",
    )  # fmt: skip


def test_the_numbers_of_the_exposure_by_hand():
    """Half black, a quarter of level 51, a quarter white: 1.5 bits."""
    array = np.repeat(np.array([0, 0, 51, 255], np.uint8), 25).reshape(10, 10)
    stage = ImageExposureFilterStage()
    columns = stage.measure(ImageBatch(pixels=stage.prepare(Image.fromarray(array))[None]))
    told = {name: float(column[0]) for name, column in columns.items()}
    assert told == pytest.approx(
        {"luminance_mean": 0.3, "luminance_p5": 0, "luminance_p95": 1, "luminance_entropy": 1.5, "clipped": 0.75}
    )


def test_of_480_real_photos_only_what_a_person_would_drop_is_dropped(pipeline):
    """All are sharp, sound and large enough; one is a page of text on white, and 35 came without a caption."""
    filters = [ImageResolutionFilterStage(), CaptionFilterStage(action="flag"), ImageExposureFilterStage(), ImageBlurFilterStage()]
    result = pipeline([*SOURCES, *filters], input=f"{shared('data/photos')}/*.tar")
    rows = result.ledger.to_pylist()
    assert {row["key"]: row["cause"] for row in rows if row["status"] != "kept"} == {"000020035": "low_information"}
    assert sum(row["flags"] == "caption: no caption" for row in rows) == 35
    assert len(rows) == 480


def test_real_photos_that_are_blurred_are_dropped(pipeline, tmp_path):
    """By 1 % of their shorter side: as out of focus as a person minds at any size."""
    files, members = {}, tar_members(shared("data/photos/00000.tar"))
    for name in [name for name in members if name.endswith(".jpg")][:30]:
        photo = Image.open(io.BytesIO(members[name])).convert("RGB")
        files[name] = encoded(photo.filter(ImageFilter.GaussianBlur(min(photo.size) / 100)), "JPEG", quality=92)
    rows = rows_of(pipeline, tmp_path, ImageBlurFilterStage(), files)
    assert [row["stage"] for row in rows.values() if row["status"] == "dropped"] == ["blur"] * 30
