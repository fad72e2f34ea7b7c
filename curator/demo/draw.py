"""The demo's pictures: drawn scenes with captions, some spoiled, some with a warning sign, some copied and altered,
some broken; written as WebDataset tars with the truth beside them. The same seed gives the same bytes.

The warning sign stands for what must not be in a dataset; a copy for a near-duplicate; spoiling for poor quality.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from curator.commit import commit, commit_bytes
from curator.demo.canvas import NUMBERS, Canvas
from curator.demo.scenes import SCENES, SIZES, scene
from curator.formats.shards import add_member, end_of_archive

TRUTH = "truth.csv"
PER_SHARD = 100
SIGN_SHARE, COPIED_SHARE = 0.08, 0.07
MOST_TRIES = 40
BROKEN = ("truncated", "empty_file", "not_an_image", "corrupt")
FORMATS = (("jpg", "JPEG"), ("jpg", "JPEG"), ("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))


@dataclass(frozen=True)
class Picture:
    """One drawn picture and what is true of it."""

    image: Image.Image
    caption: str
    unsafe: bool = False
    quality: float = 1.0
    group: str = ""
    transform: str = ""


def picture(rng: np.random.Generator, kind: str | None = None, sign: bool = False, quality: float = 1.0) -> Picture:
    """Draw one scene; `sign` puts a warning sign into it, `quality` (0..1) below 1 spoils it."""
    names = tuple(SCENES)
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    canvas = Canvas(rng, width, height)
    caption = scene(canvas, kind or names[int(rng.integers(len(names)))])
    if sign:
        _sign(canvas)
        caption += " with a warning sign"
    image = canvas.finish()
    return Picture(spoiled(rng, image, quality) if quality < 1 else image, caption, sign, quality)


def _sign(canvas: Canvas) -> None:
    """A yellow triangle in a red border with an exclamation mark, somewhere in the middle square."""
    rng = canvas.rng
    radius = canvas.side * rng.uniform(0.17, 0.28)
    reach = canvas.side / 2 - radius
    x = canvas.width / 2 + rng.uniform(-reach, reach) * 0.85
    y = canvas.height / 2 + rng.uniform(-reach, reach) * 0.85
    for size, colour in ((1.0, (212, 20, 24)), (0.66, (255, 224, 40))):
        reaches = ((0, -1), (0.92, 0.62), (-0.92, 0.62))
        corners = [(x + radius * size * dx, y + radius * size * dy) for dx, dy in reaches]
        canvas.draw.polygon(corners, fill=colour)
    bar = radius * 0.09
    canvas.box(x - bar, y - radius * 0.38, x + bar, y + radius * 0.16, (10, 10, 10))
    canvas.disc(x, y + radius * 0.3, bar * 1.1, (10, 10, 10))


def spoiled(rng: np.random.Generator, image: Image.Image, quality: float) -> Image.Image:
    """The picture with less contrast and colour, blurred and noisy: the more, the lower `quality` (0..1)."""
    much = 1.0 - quality
    grey = ImageEnhance.Color(image).enhance(1 - 0.75 * much)
    flat = ImageEnhance.Contrast(grey).enhance(1 - 0.7 * much)
    soft = flat.filter(ImageFilter.GaussianBlur(3.2 * much * rng.uniform(0.6, 1.0)))
    noise = rng.normal(0, 26 * much, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(soft) * (1 - 0.25 * much) + noise, 0, 255).astype(np.uint8))


def altered(rng: np.random.Generator, image: Image.Image, transform: str) -> Image.Image:
    """A near-duplicate: `crop` (at most 15 % a side), `resize`, `colour` or `encode`."""
    width, height = image.size
    if transform == "crop":
        left, top, right, bottom = rng.uniform(0.02, 0.15, 4) * (width, height, width, height)
        return image.crop((int(left), int(top), int(width - right), int(height - bottom)))
    if transform == "resize":
        scale = rng.uniform(0.45, 0.85)
        return image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    if transform == "colour":
        gain = rng.uniform(0.88, 1.12, 3) * rng.uniform(0.9, 1.1)
        return Image.fromarray(np.clip(np.asarray(image) * gain, 0, 255).astype(np.uint8))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=int(rng.integers(22, 50)))
    return Image.open(encoded).convert("RGB")


TRANSFORMS = ("crop", "resize", "colour", "encode")


def draw_demo(folder: Path, seed: int = 7, count: int = 400) -> None:
    """Write the demo's tars and `truth.csv` into `folder`; one that has them for this seed and count is left alone.

    `truth.csv` goes first and comes last, so that a folder with it is whole and an interrupted draw is done again.
    """
    mark = f"# seed {seed}, count {count}, edition 2"
    truth = folder / TRUTH
    if truth.is_file() and truth.read_text().startswith(mark):
        return
    folder.mkdir(parents=True, exist_ok=True)
    truth.unlink(missing_ok=True)
    for old in folder.glob("demo-*.tar"):
        old.unlink()
    samples = list(_samples(seed, count))
    rows = []
    for start in range(0, len(samples), PER_SHARD):
        with commit(folder / f"demo-{start // PER_SHARD:05d}.tar") as file:
            size = 0
            for key, suffix, content, facts in samples[start : start + PER_SHARD]:
                members = ((suffix, content), ("txt", facts["caption"].encode()), ("json", _facts(facts)))
                size += sum(add_member(file, f"{key}.{name}".encode(), data) for name, data in members)
                rows.append([key, *(facts[c] for c in ("group", "transform", "unsafe", "broken", "quality"))])
            file.write(end_of_archive(size))
    text = io.StringIO()
    text.write(mark + "\n")
    csv.writer(text).writerows([["key", "group", "transform", "unsafe", "broken", "quality"], *rows])
    commit_bytes(truth, text.getvalue().encode())


def _facts(facts: dict[str, Any]) -> bytes:
    return json.dumps({"caption": facts["caption"], "drawn": True}).encode()


def _samples(seed: int, count: int) -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
    """Key, suffix, bytes and facts of every sample, shuffled so that copies do not lie side by side."""
    rng = np.random.default_rng([seed, 0])
    pictures = _pictures(seed, count)
    broken = len(BROKEN) * max(1, count // 100)
    order = rng.permutation(len(pictures) + broken)
    for place, which in enumerate(order):
        key = f"demo{place:05d}"
        one = np.random.default_rng([seed, 2, int(which)])
        if which < len(pictures):
            drawn = pictures[which]
            suffix, content = _encoded(one, drawn)
            fault = ""
        else:
            fault = BROKEN[int(which) % len(BROKEN)]
            drawn = picture(one)
            suffix, content = "jpg", _broken(fault, _encoded_as(drawn.image, "JPEG", 90))
        facts = {
            "caption": drawn.caption, "group": drawn.group, "transform": drawn.transform,
            "unsafe": int(drawn.unsafe), "broken": fault, "quality": round(drawn.quality, 3),
        }  # fmt: skip
        yield key, suffix, content, facts


def _pictures(seed: int, count: int) -> list[Picture]:
    """All pictures that are whole: singles, and groups of an original with one to three altered copies.

    What is as good as drawn already (`gist`) is left out: else two pictures could be alike without being planted.
    """
    pictures: list[Picture] = []
    seen: set[str] = set()
    number = tries = 0
    kinds = tuple(SCENES)
    while len(pictures) < count:
        rng = np.random.default_rng([seed, 1, number, tries])
        chance = rng.random()
        sign = chance < SIGN_SHARE
        copies = int(rng.integers(1, 4)) if SIGN_SHARE <= chance < SIGN_SHARE + COPIED_SHARE else 0
        quality = 1.0 if rng.random() < 0.7 or copies else float(rng.uniform(0, 0.8))
        drawn = picture(rng, kinds[number % len(kinds)], sign, quality)
        if gist(drawn.caption) in seen and tries < MOST_TRIES:
            tries += 1
            continue
        seen.add(gist(drawn.caption))
        group = f"g{number:04d}" if copies else ""
        pictures.append(Picture(drawn.image, drawn.caption, sign, quality, group, "original" if copies else ""))
        for _ in range(copies):
            transform = TRANSFORMS[int(rng.integers(len(TRANSFORMS)))]
            image = altered(rng, drawn.image, transform)
            pictures.append(Picture(image, drawn.caption, sign, quality, group, transform))
        number, tries = number + 1, 0
    return pictures


def gist(caption: str) -> str:
    """A caption less what changes a picture little: how many there are, a sign, what stands in the dark."""
    words = re.sub(r" with a warning sign$| with rings| over black \w+$", "", caption).split()
    return " ".join(word.rstrip("s") for word in words if word not in NUMBERS)


def _encoded(rng: np.random.Generator, drawn: Picture) -> tuple[str, bytes]:
    suffix, form = FORMATS[int(rng.integers(len(FORMATS)))]
    return suffix, _encoded_as(drawn.image, form, int(rng.integers(85, 96)))


def _encoded_as(image: Image.Image, form: str, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **({} if form == "PNG" else {"quality": quality}))
    return file.getvalue()


def _broken(fault: str, content: bytes) -> bytes:
    if fault == "truncated":
        return content[: len(content) // 2]
    if fault == "empty_file":
        return b""
    if fault == "not_an_image":
        return b"<html><body>404 Not Found</body></html>\n"
    scan = content.find(b"\xff\xda")
    return content[:20] + bytes(255 - b for b in content[20 : max(scan, 60)]) + content[max(scan, 60) :]
