"""Scenes under a sky: each function draws one on a canvas and returns its caption."""

from __future__ import annotations

import math

from curator.demo.canvas import BRIGHT, COLOURS, Canvas, many, mix, pick, shade

SKIES = {
    "a blue sky": ((92, 160, 232), (204, 230, 248)),
    "a sunset sky": ((96, 62, 140), (250, 156, 82)),
    "a pink sky": ((216, 132, 180), (252, 222, 214)),
    "a grey sky": ((126, 134, 146), (206, 210, 214)),
    "a golden sky": ((232, 172, 66), (254, 236, 176)),
    "a green evening sky": ((20, 74, 92), (150, 212, 170)),
}


def _sky(canvas: Canvas) -> str:
    name = pick(canvas.rng, tuple(SKIES))
    top, bottom = SKIES[name]
    jitter = canvas.rng.integers(-24, 25, 3)
    canvas.sky(*((int(r + jitter[0]), int(g + jitter[1]), int(b + jitter[2])) for r, g, b in (top, bottom)))
    return name


def hills(canvas: Canvas) -> str:
    """Rolling hills, a sun."""
    rng, sky = canvas.rng, _sky(canvas)
    sun = pick(rng, ("yellow", "white", "orange", "red"))
    place = canvas.width / 2 + canvas.side * rng.uniform(-0.35, 0.35)
    canvas.disc(place, canvas.height * rng.uniform(0.14, 0.36), canvas.side * rng.uniform(0.05, 0.13), shade(rng, sun))
    colour, layers = pick(rng, ("green", "teal", "brown", "purple", "orange", "blue")), int(rng.integers(2, 5))
    tone, waves, top = shade(rng, colour), rng.uniform(0.6, 2.2), rng.uniform(0.42, 0.6)
    for layer in range(layers):
        base = canvas.height * (top + (0.95 - top) * layer / layers)
        tint = mix(mix(tone, (255, 255, 255), 0.45), mix(tone, (0, 0, 0), 0.35), layer / max(layers - 1, 1))
        canvas.ridge(base, canvas.height * rng.uniform(0.04, 0.11), waves, tint)
    return f"{colour} hills under {sky} with a {sun} sun"


def mountains(canvas: Canvas) -> str:
    """Jagged mountains with snow, over a lake or a plain."""
    rng, sky = canvas.rng, _sky(canvas)
    colour = pick(rng, ("blue", "purple", "grey", "brown", "teal"))
    tone = shade(rng, colour)
    ground = canvas.height * rng.uniform(0.66, 0.84)
    for _ in range(int(rng.integers(2, 5))):
        x, peak = canvas.width / 2 + canvas.side * rng.uniform(-0.5, 0.5), canvas.height * rng.uniform(0.12, 0.45)
        spread = (ground - peak) * rng.uniform(0.6, 1.1)
        canvas.draw.polygon(
            [(x - spread, ground), (x, peak), (x + spread, ground)], fill=mix(tone, (0, 0, 0), rng.uniform(0, 0.4))
        )
        cap = rng.uniform(0.18, 0.34)
        low, drop = spread * cap, (ground - peak) * cap
        canvas.draw.polygon(
            [(x - low, peak + drop), (x, peak), (x + low, peak + drop), (x, peak + drop * 0.7)], fill=(250, 250, 252)
        )
    front = pick(rng, ("lake", "meadow", "desert"))
    canvas.box(
        0,
        ground,
        canvas.width,
        canvas.height,
        shade(rng, {"lake": "blue", "meadow": "green", "desert": "orange"}[front]),
    )
    return f"{colour} mountains with snow under {sky} behind a {front}"


def night(canvas: Canvas) -> str:
    """Stars, a moon, and something black in front."""
    rng = canvas.rng
    tint = pick(rng, ("blue", "purple", "teal", "green", "red", "black"))
    canvas.sky(mix(shade(rng, tint), (0, 0, 0), 0.82), mix(shade(rng, tint), (0, 0, 0), 0.35))
    for _ in range(int(rng.integers(30, 110))):
        canvas.disc(
            rng.uniform(0, canvas.width), rng.uniform(0, canvas.height * 0.8), rng.uniform(1, 4), (244, 240, 214)
        )
    moon = pick(rng, ("full moon", "crescent moon"))
    x, y = canvas.width / 2 + canvas.side * rng.uniform(-0.32, 0.32), canvas.height * rng.uniform(0.16, 0.45)
    radius, hue = canvas.side * rng.uniform(0.07, 0.16), pick(rng, ("white", "yellow", "orange", "pink"))
    canvas.disc(x, y, radius, shade(rng, hue))
    if moon.startswith("crescent"):
        canvas.disc(x + radius * 0.45, y - radius * 0.2, radius * 0.86, mix(shade(rng, tint), (0, 0, 0), 0.62))
    front = pick(rng, ("hills", "pines", "roofs"))
    canvas.ridge(canvas.height * rng.uniform(0.78, 0.9), canvas.height * 0.04, 1.4, (10, 12, 16))
    for _ in range({"hills": 0, "pines": 9, "roofs": 6}[front]):
        x, size = rng.uniform(0, canvas.width), canvas.side * rng.uniform(0.12, 0.3)
        canvas.box(x - size / 5, canvas.height - size, x + size / 5, canvas.height, (8, 10, 14))
        canvas.shape("triangle", x, canvas.height - size, size * 0.45, (8, 10, 14))
    return f"a {tint} night sky with stars and a {hue} {moon} over black {front}"


def sea(canvas: Canvas) -> str:
    """A sea with boats."""
    rng, sky = canvas.rng, _sky(canvas)
    water, horizon = pick(rng, ("blue", "teal", "green", "purple", "grey")), canvas.height * rng.uniform(0.4, 0.62)
    tone = shade(rng, water)
    canvas.box(0, horizon, canvas.width, canvas.height, tone)
    for _ in range(int(rng.integers(4, 9))):
        y = rng.uniform(horizon, canvas.height)
        x, length = rng.uniform(0, canvas.width), canvas.side * rng.uniform(0.1, 0.5)
        canvas.box(
            x - length, y, x + length, y + canvas.side * 0.014, mix(tone, (255, 255, 255), rng.uniform(0.2, 0.5))
        )
    count, sail = int(rng.integers(1, 4)), pick(rng, (*BRIGHT, "white"), (water,))
    hull = shade(rng, pick(rng, ("brown", "black", "red", "white")))
    for x, _ in (spots := canvas.spots(count, canvas.side * 0.3)):
        size, y = canvas.side * rng.uniform(0.1, 0.2), horizon + canvas.side * rng.uniform(0.04, 0.2)
        canvas.draw.polygon(
            [(x - size, y), (x + size, y), (x + size * 0.6, y + size * 0.45), (x - size * 0.6, y + size * 0.45)],
            fill=hull,
        )
        canvas.draw.polygon(
            [(x, y - size * 1.6), (x, y - size * 0.1), (x + size * 0.9, y - size * 0.1)], fill=shade(rng, sail)
        )
        canvas.draw.polygon(
            [(x - size * 0.1, y - size * 1.3), (x - size * 0.1, y - size * 0.1), (x - size * 0.7, y - size * 0.1)],
            fill=shade(rng, sail),
        )
    return f"{many(len(spots), 'boat')} with {sail} sails on a {water} sea under {sky}"


def city(canvas: Canvas) -> str:
    """A skyline with lit windows."""
    rng, sky = canvas.rng, _sky(canvas)
    wall, lamp = (
        pick(rng, ("grey", "blue", "purple", "brown", "black", "red")),
        pick(rng, ("yellow", "white", "orange")),
    )
    x = -rng.uniform(0, 0.1) * canvas.width
    while x < canvas.width:
        width, top = canvas.side * rng.uniform(0.12, 0.24), canvas.height * rng.uniform(0.18, 0.7)
        canvas.box(x, top, x + width, canvas.height, mix(shade(rng, wall), (0, 0, 0), rng.uniform(0, 0.45)))
        cell = canvas.side * 0.05
        for row in range(int((canvas.height - top) / cell)):
            for column in range(int(width / cell)):
                if rng.random() < 0.45:
                    left, up = x + column * cell + cell * 0.3, top + row * cell + cell * 0.3
                    canvas.box(left, up, left + cell * 0.45, up + cell * 0.5, COLOURS[lamp])
        x += width + canvas.side * rng.uniform(0, 0.03)
    return f"a {wall} city with {lamp} windows under {sky}"


def _tree(canvas: Canvas, x: float, y: float, size: float, colour: str, round_top: bool) -> None:
    rng = canvas.rng
    canvas.box(x - size * 0.07, y - size * 0.5, x + size * 0.07, y, shade(rng, "brown"))
    if round_top:
        for dx, dy, r in ((-0.2, 0.6, 0.26), (0.2, 0.6, 0.26), (0, 0.82, 0.3)):
            canvas.disc(x + dx * size, y - dy * size, r * size, shade(rng, colour))
        return
    for level in range(3):
        canvas.shape("triangle", x, y - size * (0.42 + 0.24 * level), size * (0.42 - 0.08 * level), shade(rng, colour))


def house(canvas: Canvas) -> str:
    """A house with trees."""
    rng, sky = canvas.rng, _sky(canvas)
    ground = canvas.height * rng.uniform(0.68, 0.84)
    canvas.box(0, ground, canvas.width, canvas.height, shade(rng, pick(rng, ("green", "brown", "white", "yellow"))))
    wall, roof = pick(rng, (*BRIGHT, "white", "brown")), pick(rng, (*BRIGHT, "black", "brown"))
    trees, leaf = int(rng.integers(0, 4)), pick(rng, ("green", "orange", "pink", "teal"))
    for tree in range(trees):
        x = canvas.width / 2 + canvas.side * (rng.uniform(0.28, 0.46) * (-1 if tree % 2 else 1))
        _tree(
            canvas, x, ground + canvas.side * 0.02, canvas.side * rng.uniform(0.25, 0.5), leaf, bool(rng.random() < 0.5)
        )
    x, width, tall = (
        canvas.width / 2 + canvas.side * rng.uniform(-0.12, 0.12),
        canvas.side * rng.uniform(0.15, 0.26),
        canvas.side * rng.uniform(0.2, 0.36),
    )
    canvas.box(x - width, ground - tall, x + width, ground, shade(rng, wall))
    peak = (x, ground - tall - width * rng.uniform(0.5, 1.1))
    canvas.draw.polygon(
        [(x - width * 1.2, ground - tall), peak, (x + width * 1.2, ground - tall)], fill=shade(rng, roof)
    )
    canvas.box(x - width * 0.18, ground - tall * 0.55, x + width * 0.18, ground, shade(rng, "brown"))
    for dx in (-0.6, 0.6):
        canvas.box(
            x + (dx - 0.2) * width, ground - tall * 0.75, x + (dx + 0.2) * width, ground - tall * 0.4, (250, 238, 170)
        )
    return f"a {wall} house with a {roof} roof and {many(trees, f'{leaf} tree')} under {sky}"


def forest(canvas: Canvas) -> str:
    """A row of trees."""
    rng, sky = canvas.rng, _sky(canvas)
    leaf, kind, count = (
        pick(rng, ("green", "orange", "red", "teal", "yellow", "pink")),
        pick(rng, ("pines", "oaks")),
        int(rng.integers(3, 13)),
    )
    ground = canvas.height * rng.uniform(0.6, 0.8)
    canvas.ridge(ground, canvas.height * 0.03, 1.2, shade(rng, pick(rng, ("green", "brown", "white"))))
    size = canvas.side * rng.uniform(0.3, 0.6)
    for tree in sorted(rng.uniform(0, 1, count).tolist()):
        x = rng.uniform(0, canvas.width)
        _tree(canvas, x, ground + (canvas.height - ground) * tree, size * (0.7 + 0.5 * tree), leaf, kind == "oaks")
    return f"a forest of {leaf} {kind} under {sky}"


def balloons(canvas: Canvas) -> str:
    """Hot air balloons."""
    rng, sky = canvas.rng, _sky(canvas)
    colour, count = pick(rng, BRIGHT), int(rng.integers(1, 6))
    second, size = pick(rng, (*BRIGHT, "white"), (colour,)), canvas.side * rng.uniform(0.26, 0.34) / math.sqrt(count)
    places = canvas.spots(count, size * 2.2)
    for x, y in places:
        for dx in (-0.3, 0.3):
            canvas.draw.line(
                [(x + dx * size * 2, y), (x + dx * size * 0.6, y + size * 1.4)], fill=(60, 50, 40), width=3
            )
        canvas.disc(x, y, size, shade(rng, colour))
        canvas.draw.ellipse((x - size * 0.45, y - size, x + size * 0.45, y + size), fill=shade(rng, second))
        canvas.box(x - size * 0.22, y + size * 1.3, x + size * 0.22, y + size * 1.6, shade(rng, "brown"))
    return f"{many(len(places), f'{colour} and {second} balloon')} in {sky}"
