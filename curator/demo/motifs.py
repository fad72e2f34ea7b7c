"""Scenes without a sky: shapes, textures, flowers, still lifes; each function draws one and returns its caption."""

from __future__ import annotations

import math

from curator.demo.canvas import BRIGHT, COLOURS, SHAPES, TEXTURES, Canvas, cover, many, mix, pick, shade


def _scatter(canvas: Canvas, kind: str, colour: str, count: int, radius: float) -> int:
    places = canvas.spots(count, radius * 2.1)
    for x, y in places:
        canvas.shape(kind, x, y, radius, shade(canvas.rng, colour), canvas.rng.uniform(-0.5, 0.5))
    return len(places)


def shapes(canvas: Canvas) -> str:
    """Shapes of one kind on a textured ground."""
    rng = canvas.rng
    ground, weave = pick(rng, tuple(COLOURS)), pick(rng, tuple(TEXTURES))
    cover(canvas, weave, shade(rng, ground), mix(shade(rng, ground), (255, 255, 255), rng.uniform(0.3, 0.7)))
    kind, colour, count = pick(rng, tuple(SHAPES)), pick(rng, tuple(COLOURS), (ground,)), int(rng.integers(1, 7))
    radius = canvas.side * rng.uniform(0.22, 0.34) / math.sqrt(count)
    count = _scatter(canvas, kind, colour, count, radius)
    return f"{many(count, f'{colour} {kind}')} on a {weave} {ground} background"


def pair(canvas: Canvas) -> str:
    """Two big shapes side by side on a ground of two colours."""
    rng = canvas.rng
    left, right = pick(rng, BRIGHT), pick(rng, BRIGHT)
    canvas.box(0, 0, canvas.width / 2, canvas.height, shade(rng, left, 28))
    canvas.box(canvas.width / 2, 0, canvas.width, canvas.height, shade(rng, right, 28))
    words = []
    for sign, ground in ((-1, left), (1, right)):
        kind, colour = pick(rng, tuple(SHAPES)), pick(rng, tuple(COLOURS), (ground,))
        y = canvas.height / 2 + canvas.side * rng.uniform(-0.22, 0.22)
        radius = canvas.side * rng.uniform(0.12, 0.21)
        canvas.shape(kind, canvas.width / 2 + sign * canvas.side * 0.24, y, radius, shade(rng, colour))
        words.append(f"a {colour} {kind}")
    return f"{words[0]} beside {words[1]} on {left} and {right}"


def flowers(canvas: Canvas) -> str:
    """Flowers on a meadow."""
    rng = canvas.rng
    ground = pick(rng, ("green", "teal", "yellow", "white", "blue", "black"))
    cover(canvas, pick(rng, ("cloudy", "shaded", "plain")), shade(rng, ground), mix(shade(rng, ground), (0, 0, 0), 0.3))
    colour, heart, count = (
        pick(rng, (*BRIGHT, "white"), (ground,)),
        pick(rng, ("yellow", "brown", "orange")),
        int(rng.integers(1, 7)),
    )
    radius = canvas.side * rng.uniform(0.24, 0.36) / math.sqrt(count)
    places, petals = canvas.spots(count, radius * 2), int(rng.integers(5, 9))
    for x, y in places:
        canvas.draw.line(
            [(x, y), (x + rng.uniform(-0.1, 0.1) * canvas.side, canvas.height)],
            fill=(38, 110, 50),
            width=int(radius * 0.12) + 2,
        )
    for x, y in places:
        turn = rng.uniform(0, 1)
        for petal in range(petals):
            angle = 2 * math.pi * petal / petals + turn
            canvas.disc(
                x + math.cos(angle) * radius * 0.58,
                y + math.sin(angle) * radius * 0.58,
                radius * 0.36,
                shade(rng, colour),
            )
        canvas.disc(x, y, radius * 0.34, shade(rng, heart))
    return f"{many(len(places), f'{colour} flower')} with {heart} hearts on a {ground} meadow"


def table(canvas: Canvas) -> str:
    """A still life: fruit and a vase or a bowl on a table."""
    rng = canvas.rng
    wall, wood, edge = (
        pick(rng, tuple(COLOURS)),
        pick(rng, ("brown", "white", "black", "grey", "red")),
        canvas.height * rng.uniform(0.58, 0.74),
    )
    canvas.sky(shade(rng, wall), mix(shade(rng, wall), (255, 255, 255), 0.3))
    canvas.box(0, edge, canvas.width, canvas.height, shade(rng, wood))
    vessel, glaze = pick(rng, ("vase", "bowl", "cup")), pick(rng, (*BRIGHT, "white"), (wall,))
    x, y, size = (
        canvas.width / 2 + canvas.side * rng.uniform(-0.28, 0.28),
        edge + canvas.side * 0.06,
        canvas.side * rng.uniform(0.14, 0.2),
    )
    if vessel == "bowl":
        canvas.draw.pieslice(
            (x - size * 1.4, y - size * 2.2, x + size * 1.4, y + size * 0.1), 0, 180, fill=shade(rng, glaze)
        )
    elif vessel == "cup":
        canvas.draw.ellipse(
            (x + size * 0.4, y - size * 1.2, x + size * 1.4, y - size * 0.3),
            outline=shade(rng, glaze),
            width=int(size * 0.2),
        )
        canvas.box(x - size * 0.7, y - size * 1.5, x + size * 0.7, y, shade(rng, glaze))
    else:
        canvas.draw.ellipse((x - size * 0.8, y - size * 1.8, x + size * 0.8, y), fill=shade(rng, glaze))
        canvas.box(x - size * 0.35, y - size * 2.5, x + size * 0.35, y - size, shade(rng, glaze))
    fruit, count = pick(rng, ("apple", "orange", "plum", "lemon")), int(rng.integers(1, 6))
    skin = {"apple": "red", "orange": "orange", "plum": "purple", "lemon": "yellow"}[fruit]
    for _ in range(count):
        radius, across = (
            canvas.side * rng.uniform(0.055, 0.085),
            canvas.width / 2 + canvas.side * rng.uniform(-0.4, 0.4),
        )
        down = edge + canvas.side * rng.uniform(0.08, 0.2)
        canvas.disc(across, down, radius, shade(rng, skin))
        canvas.disc(across - radius * 0.3, down - radius * 0.3, radius * 0.25, mix(COLOURS[skin], (255, 255, 255), 0.6))
    return f"a {glaze} {vessel} and {many(count, fruit)} on a {wood} table before a {wall} wall"


def cloth(canvas: Canvas) -> str:
    """A texture that fills the picture."""
    rng = canvas.rng
    first = pick(rng, tuple(COLOURS))
    second, weave = pick(rng, tuple(COLOURS), (first,)), pick(rng, tuple(TEXTURES), ("plain",))
    cover(canvas, weave, shade(rng, first, 30), shade(rng, second, 30))
    return f"a {weave} cloth in {first} and {second}"


def mosaic(canvas: Canvas) -> str:
    """Tiles in two colours, some of them round."""
    rng = canvas.rng
    first, tile = pick(rng, BRIGHT), pick(rng, ("square", "round", "pointed"))
    second, across = pick(rng, tuple(COLOURS), (first,)), int(rng.integers(3, 8))
    canvas.box(0, 0, canvas.width, canvas.height, shade(rng, pick(rng, ("white", "black", "grey"))))
    cell = canvas.side / across
    kind = {"square": "square", "round": "circle", "pointed": "diamond"}[tile]
    turn = math.pi / 4 if tile == "square" else 0
    for row in range(int(canvas.height / cell) + 1):
        for column in range(int(canvas.width / cell) + 1):
            name = first if rng.random() < 0.5 else second
            radius = cell * (0.6 if tile == "square" else 0.5)
            canvas.shape(kind, (column + 0.5) * cell, (row + 0.5) * cell, radius, shade(rng, name, 34), turn)
    return f"a mosaic of {first} and {second} {tile} tiles"


def lines(canvas: Canvas) -> str:
    """An abstract: fields of colour between thick lines."""
    rng = canvas.rng
    ground, ink = pick(rng, ("white", "yellow", "grey", "pink", "blue")), pick(rng, ("black", "white", "red", "purple"))
    canvas.box(0, 0, canvas.width, canvas.height, shade(rng, ground))
    fill = pick(rng, BRIGHT, (ground, ink))
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.uniform(0, canvas.width * 0.8), rng.uniform(0, canvas.height * 0.8)
        canvas.box(
            x, y, x + canvas.side * rng.uniform(0.15, 0.5), y + canvas.side * rng.uniform(0.15, 0.5), shade(rng, fill)
        )
    slanted = bool(rng.random() < 0.5)
    for _ in range(int(rng.integers(3, 8))):
        thick, u, v = int(canvas.side * rng.uniform(0.015, 0.05)), rng.uniform(0, 1), rng.uniform(0, 1)
        if rng.random() < 0.5:
            line = [(u * canvas.width, 0.0), ((v if slanted else u) * canvas.width, canvas.height)]
        else:
            line = [(0.0, u * canvas.height), (canvas.width, (v if slanted else u) * canvas.height)]
        canvas.draw.line(line, fill=shade(rng, ink), width=thick)
    return f"{'slanted' if slanted else 'straight'} {ink} lines and {fill} fields on a {ground} ground"


def fish(canvas: Canvas) -> str:
    """Fish under water."""
    rng = canvas.rng
    water = pick(rng, ("blue", "teal", "green", "purple", "grey", "pink"))
    canvas.sky(mix(shade(rng, water), (255, 255, 255), rng.uniform(0.2, 0.5)), mix(shade(rng, water), (0, 0, 0), 0.5))
    for _ in range(int(rng.integers(3, 8))):
        x, tall = rng.uniform(0, canvas.width), canvas.height * rng.uniform(0.15, 0.4)
        points = [(x + math.sin(i * 1.3) * canvas.side * 0.025, canvas.height - tall * i / 6) for i in range(7)]
        canvas.draw.line(points, fill=shade(rng, "green"), width=int(canvas.side * 0.025))
    colour, count = pick(rng, (*BRIGHT, "white"), (water,)), int(rng.integers(1, 6))
    size = canvas.side * rng.uniform(0.24, 0.34) / math.sqrt(count)
    places = canvas.spots(count, size * 2)
    for x, y in places:
        tone, way = shade(rng, colour), 1 if rng.random() < 0.5 else -1
        canvas.draw.polygon(
            [
                (x - way * size * 0.6, y),
                (x - way * size * 1.1, y - size * 0.45),
                (x - way * size * 1.1, y + size * 0.45),
            ],
            fill=tone,
        )
        canvas.draw.ellipse((x - size * 0.85, y - size * 0.5, x + size * 0.85, y + size * 0.5), fill=tone)
        canvas.disc(x + way * size * 0.5, y - size * 0.1, size * 0.1, (20, 20, 24))
    return f"{many(len(places), f'{colour} fish')} in a {water} sea"


def planet(canvas: Canvas) -> str:
    """Planets in space, some with rings."""
    rng = canvas.rng
    tint = pick(rng, ("black", "purple", "blue", "teal", "red", "green"))
    canvas.sky(mix(shade(rng, tint), (0, 0, 0), 0.75), mix(shade(rng, tint), (0, 0, 0), 0.6))
    for _ in range(int(rng.integers(20, 90))):
        canvas.disc(rng.uniform(0, canvas.width), rng.uniform(0, canvas.height), rng.uniform(1, 3.5), (250, 250, 236))
    colour, count = pick(rng, BRIGHT), int(rng.integers(1, 4))
    size, ringed = canvas.side * rng.uniform(0.18, 0.3) / math.sqrt(count), bool(rng.random() < 0.5)
    places = canvas.spots(count, size * 2.6)
    for x, y in places:
        tone = shade(rng, colour)
        canvas.disc(x, y, size, tone)
        canvas.disc(x - size * 0.25, y - size * 0.25, size * 0.6, mix(tone, (255, 255, 255), 0.22))
        if ringed:
            canvas.draw.arc(
                (x - size * 1.7, y - size * 0.5, x + size * 1.7, y + size * 0.5),
                -25,
                205,
                fill=mix(tone, (255, 255, 255), 0.6),
                width=int(size * 0.16),
            )
    return f"{many(len(places), f'{colour} planet')} {'with rings ' if ringed else ''}in {tint} space"
