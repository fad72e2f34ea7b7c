"""All scenes by name. A scene's subject stays inside the middle square: that is all that CLIP's centre crop sees."""

from __future__ import annotations

from collections.abc import Callable

from curator.demo.canvas import Canvas
from curator.demo.landscapes import balloons, city, forest, hills, house, mountains, night, sea
from curator.demo.motifs import cloth, fish, flowers, lines, mosaic, pair, planet, shapes, table

SIZES = ((256, 256), (320, 256), (256, 320), (344, 256), (288, 240))
"""Width and height of the pictures in pixels."""
SCENES: dict[str, Callable[[Canvas], str]] = {
    drawn.__name__: drawn
    for drawn in (
        shapes,
        pair,
        hills,
        mountains,
        night,
        sea,
        city,
        house,
        flowers,
        table,
        cloth,
        mosaic,
        lines,
        balloons,
        fish,
        forest,
        planet,
    )
}


def scene(canvas: Canvas, kind: str) -> str:
    """Draw a scene of one of the SCENES; its caption."""
    return SCENES[kind](canvas)
