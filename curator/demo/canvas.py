"""What the drawn scenes are made of: named colours, a canvas, shapes and textures.

Everything is drawn at twice the final size and halved at the end, which smooths the edges. Knows nothing about
scenes, captions or files; all chance comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (208, 36, 40),
    "orange": (242, 132, 28),
    "yellow": (250, 212, 50),
    "green": (52, 152, 66),
    "teal": (24, 158, 158),
    "blue": (38, 86, 200),
    "purple": (124, 58, 168),
    "pink": (242, 128, 176),
    "brown": (130, 82, 46),
    "grey": (132, 136, 142),
    "black": (24, 24, 30),
    "white": (246, 245, 240),
}
BRIGHT = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def shade(rng: np.random.Generator, name: str, spread: int = 16) -> Colour:
    """A shade of a named colour, each channel moved by up to `spread`."""
    r, g, b = (int(np.clip(channel + rng.integers(-spread, spread + 1), 0, 255)) for channel in COLOURS[name])
    return r, g, b


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The first colour with `share` (0..1) of the second in it."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(first, second, strict=True))
    return r, g, b


def pick(rng: np.random.Generator, names: Sequence[str], but: Sequence[str] = ()) -> str:
    """One of the names, none of `but`."""
    rest = [name for name in names if name not in but]
    return rest[int(rng.integers(len(rest)))]


def many(count: int, noun: str) -> str:
    """A number and its noun, as words: `three red circles`."""
    plural = noun if noun.endswith("fish") else noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{NUMBERS[count]} {noun if count == 1 else plural}"


class Canvas:
    """A picture being drawn, at twice its final size; `side` is its shorter side in those pixels."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng = rng
        self.width, self.height = 2 * width, 2 * height
        self.side = min(self.width, self.height)
        self.image = Image.new("RGB", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)

    def paste(self, pixels_HWC: NDArray[np.float32]) -> None:
        """Cover the canvas with an array of 0..255 values of any size."""
        picture = Image.fromarray(np.clip(pixels_HWC, 0, 255).astype(np.uint8))
        self.image.paste(picture.resize((self.width, self.height), Image.Resampling.BILINEAR))

    def sky(self, top: Colour, bottom: Colour) -> None:
        """Cover the canvas with a gradient from top to bottom."""
        step_H11 = np.linspace(0, 1, 128, dtype=np.float32)[:, None, None]
        rows_H1C = np.array(top, np.float32) * (1 - step_H11) + np.array(bottom, np.float32) * step_H11
        self.paste(np.repeat(rows_H1C, 2, axis=1))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle."""
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle."""
        self.draw.rectangle((left, top, max(left, right), max(top, bottom)), fill=colour)

    def ridge(self, base: float, swing: float, waves: float, colour: Colour, jagged: bool = False) -> None:
        """Ground up to a rolling or jagged line around `base`; all below it is filled."""
        rng, step = self.rng, max(self.width // (14 if jagged else 64), 1)
        x_N = np.arange(-step, self.width + 2 * step, step)
        if jagged:
            y_N = base + swing * rng.uniform(-1, 1, len(x_N))
        else:
            phase = rng.uniform(0, 2 * math.pi, 2)
            turn_N = x_N / self.width * 2 * math.pi * waves
            y_N = base + swing * (0.7 * np.sin(turn_N + phase[0]) + 0.3 * np.sin(2.3 * turn_N + phase[1]))
        line = list(zip(x_N.tolist(), y_N.tolist(), strict=True))
        self.draw.polygon([*line, (self.width + step, self.height), (-step, self.height)], fill=colour)

    def shape(self, kind: str, x: float, y: float, radius: float, colour: Colour, turn: float = 0.0) -> None:
        """One of SHAPES around (x, y); `turn` in radians."""
        SHAPES[kind](self, x, y, radius, colour, turn)

    def spots(self, count: int, gap: float) -> list[Point]:
        """Up to `count` places in the middle square, at least `gap` apart where there is room."""
        rng, half = self.rng, self.side / 2 - gap * 0.55
        places: list[Point] = []
        for _ in range(count * 30):
            x, y = rng.uniform(-half, half, 2)
            place = (self.width / 2 + x, self.height / 2 + y)
            if all(math.dist(place, other) >= gap for other in places):
                places.append(place)
            if len(places) == count:
                break
        return places

    def finish(self) -> Image.Image:
        """The picture at its final size."""
        return self.image.reduce(2)


def around(x: float, y: float, radii: Sequence[float], turn: float) -> list[Point]:
    """Corners at equal angles around (x, y), the first one straight up when `turn` is 0."""
    step = 2 * math.pi / len(radii)
    return [(x + r * math.sin(i * step + turn), y - r * math.cos(i * step + turn)) for i, r in enumerate(radii)]


def _polygon(*radii: float) -> Callable[[Canvas, float, float, float, Colour, float], None]:
    def paint(canvas: Canvas, x: float, y: float, radius: float, colour: Colour, turn: float) -> None:
        canvas.draw.polygon(around(x, y, [radius * share for share in radii], turn), fill=colour)

    return paint


def _circle(canvas: Canvas, x: float, y: float, radius: float, colour: Colour, _turn: float) -> None:
    canvas.disc(x, y, radius * 0.9, colour)


def _ring(canvas: Canvas, x: float, y: float, radius: float, colour: Colour, _turn: float) -> None:
    edges = (x - radius * 0.9, y - radius * 0.9, x + radius * 0.9, y + radius * 0.9)
    canvas.draw.ellipse(edges, outline=colour, width=max(int(radius * 0.32), 2))


def _heart(canvas: Canvas, x: float, y: float, radius: float, colour: Colour, turn: float) -> None:
    t_N = np.linspace(0, 2 * math.pi, 40)
    across_N = radius * np.sin(t_N) ** 3
    down_N = -radius / 16 * (13 * np.cos(t_N) - 5 * np.cos(2 * t_N) - 2 * np.cos(3 * t_N) - np.cos(4 * t_N))
    cos, sin = math.cos(turn), math.sin(turn)
    x_N, y_N = x + cos * across_N - sin * down_N, y + sin * across_N + cos * down_N
    canvas.draw.polygon(list(zip(x_N.tolist(), y_N.tolist(), strict=True)), fill=colour)


SHAPES: dict[str, Callable[[Canvas, float, float, float, Colour, float], None]] = {
    "circle": _circle,
    "ring": _ring,
    "heart": _heart,
    "triangle": _polygon(1.05, 1.05, 1.05),
    "diamond": _polygon(1.1, 0.7, 1.1, 0.7),
    "square": _polygon(1.05, 1.05, 1.05, 1.05),
    "hexagon": _polygon(1, 1, 1, 1, 1, 1),
    "star": _polygon(*(1.1, 0.45) * 5),
    "cross": _polygon(*(0.42, 1.0, 1.0) * 4),
}


def texture(kind: str, rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """A texture's pattern, (H, W) in 0..1: how much of the second colour each place has."""
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float32) / min(width, height)
    turn, period = rng.uniform(0, math.pi), rng.uniform(0.1, 0.28)
    u_HW = (x_HW * math.cos(turn) + y_HW * math.sin(turn)) / period + rng.uniform(0, 1)
    v_HW = (y_HW * math.cos(turn) - x_HW * math.sin(turn)) / period + rng.uniform(0, 1)
    pattern_HW = TEXTURES[kind](u_HW.astype(np.float32), v_HW.astype(np.float32), rng)
    return np.clip(pattern_HW, 0, 1).astype(np.float32)


def _sharp(wave_HW: NDArray[np.float32], slope: float = 12.0) -> NDArray[np.float32]:
    """A soft step where the wave crosses zero: hard edges would show stairs."""
    soft_HW: NDArray[np.float32] = np.clip(0.5 + slope * wave_HW, 0, 1)
    return soft_HW


def _wave(u_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    wave_HW: NDArray[np.float32] = np.sin(2 * np.pi * u_HW)
    return wave_HW


Texture = Callable[[NDArray[np.float32], NDArray[np.float32], np.random.Generator], NDArray[np.float32]]

TEXTURES: dict[str, Texture] = {
    "striped": lambda u, _v, _rng: _sharp(_wave(u)),
    "wavy": lambda u, v, rng: _sharp(_wave(u + 0.35 * _wave(v * rng.uniform(0.3, 0.7)))),
    "checked": lambda u, v, _rng: _sharp(_wave(u) * _wave(v)),
    "dotted": lambda u, v, _rng: _sharp(_wave(u) + _wave(v) - 0.9, 4),
    "plaid": lambda u, v, _rng: 0.5 * _sharp(_wave(u)) + 0.5 * _sharp(_wave(v)),
    "cloudy": lambda u, v, _rng: 0.5 + 0.25 * _wave(0.23 * u + 0.2 * _wave(0.3 * v)) + 0.25 * _wave(0.31 * v),
    "plain": lambda u, _v, _rng: np.zeros_like(u),
    "shaded": lambda u, _v, _rng: (u - u.min()) / (u.max() - u.min()),
}


def cover(canvas: Canvas, kind: str, first: Colour, second: Colour) -> None:
    """Cover the canvas with a texture in two colours."""
    pattern_HW1 = texture(kind, canvas.rng, canvas.width // 2, canvas.height // 2)[..., None]
    canvas.paste(np.array(first, np.float32) * (1 - pattern_HW1) + np.array(second, np.float32) * pattern_HW1)
