"""Results for people: a table that fits 80 columns, and a page of thumbnails that needs nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curator.commit import commit_bytes
from curator.errors import ConfigError
from curator.output import PAGE, is_page
from curator.progress import terminal_width
from curator.query.pictures import Pictures, Thumbnail
from curator.units import counted

WIDTH = 80
WIDEST = 120
LEAST_CAPTION, MOST_PLACE = 20, 30
MOST_SCORES = 4
CAPTION_LETTERS = 240
_NO_SCORE = ("rank", "similarity", "folded", "index", "width", "height", "duplicate_group")


def score_columns(results: pa.Table) -> list[str]:
    """The columns of numbers that stages measured, those called a score first."""
    types = {f.name: f.type for f in results.schema}
    names = [n for n, t in types.items() if pa.types.is_floating(t) and n not in _NO_SCORE and not n.startswith("in_")]
    return sorted(names, key=lambda name: not name.endswith("_score"))


def place_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Where an image is: the path or address that a list gave for it, else its shard and key."""
    given = row.get(columns.get(row["shard"], ""))
    return str(given) if given else f"{row['shard'].rstrip('/')}/{row['key']}"


def table(results: pa.Table, columns: Mapping[str, str]) -> str:
    """Rank, cosine, place, as many scores as leave room for the caption, caption: one line for each result."""
    rows = results.to_pylist()
    short = [row if row["shard"] in columns else {**row, "shard": _tail(row["shard"])} for row in rows]
    places = [place_of(row, columns) for row in short]
    counts = [f"+{row['folded']}" if row["folded"] else "" for row in rows]
    place = min(max(len(p) for p in (*places, "image")), MOST_PLACE)
    extra = max(map(len, counts), default=0)
    scores = [name for name in score_columns(results) if name.endswith("_score")][:MOST_SCORES]
    most = min(terminal_width() or WIDTH, WIDEST)
    captions = [" ".join((row.get("caption") or "").split()) for row in rows]
    while True:
        widths = [max(len(name.removesuffix("_score")), 5) for name in scores]
        left = most - sum(2 + w for w in (4 + 6, place, *([extra] if extra else []), *widths)) - 2
        if not any(captions) or left >= LEAST_CAPTION or not scores:
            break
        scores.pop()
    room = (place, extra, max(left, LEAST_CAPTION) if any(captions) else 0)
    lines = [_line("rank", "cosine", "image", "", "caption", [s.removesuffix("_score") for s in scores], room, widths)]
    for row, where, count, caption in zip(rows, places, counts, captions, strict=True):
        told = [f"{row[name]:.3f}" if row[name] is not None else "" for name in scores]
        lines.append(_line(str(row["rank"]), f"{row['similarity']:.3f}", where, count, caption, told, room, widths))
    return "\n".join(lines)


def _line(
    rank: str, cosine: str, place: str, folded: str, caption: str, scores: Sequence[str],
    room: tuple[int, int, int], widths: Sequence[int],
) -> str:  # fmt: skip
    wide, extra, long = room
    parts = [f"{rank:>4}  {cosine:>6}", f"{_middle(place, wide):<{wide}}"]
    if extra:
        parts.append(f"{folded:>{extra}}")
    parts += [f"{score:>{width}}" for score, width in zip(scores, widths, strict=True)]
    if long:
        parts.append(_cut(caption, long))
    return "  ".join(parts).rstrip()


def _tail(shard: str) -> str:
    return shard.rstrip("/").rpartition("/")[2]


def _middle(text: str, most: int) -> str:
    """A text without its middle where it is too long: both ends of a place tell something."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[len(text) - half :]}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def ending(results: pa.Table, wanted: int) -> str:
    """How many were found, and how many near-identical ones stand behind them."""
    count, folded = results.num_rows, sum(results.column("folded").to_pylist())
    fewer = f" of {wanted:,} asked for: there are no more" if count < wanted else ""
    near = f"; {folded:,} near-identical {'one is' if folded == 1 else 'ones are'} folded into them" if folded else ""
    return f"{counted(count, 'image')}{fewer}{near}"


def check_gallery(path: Path) -> None:
    """Raise ConfigError where a page cannot go to this path, or would replace what is no page of ours."""
    if path.is_dir():
        raise ConfigError(f"gallery: {path} is a folder; name a file in it, such as {path / PAGE}.")
    if not path.parent.is_dir():
        raise ConfigError(f"gallery: {path}: there is no folder {path.parent}.")
    if path.exists() and not is_page(path):
        raise ConfigError(
            f"gallery: {path} is there and was not made by curate-search; it stays as it is. Name another path, or "
            "gallery=null for none."
        )


def write_gallery(path: Path, results: pa.Table, pictures: Pictures, title: str, line: str, asked: Thumbnail) -> int:
    """Write the page; gives how many pictures are missing from it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    scores = score_columns(results)
    hits = [_hit(row, pictures.of(row), scores, pictures.at.image_columns) for row in results.to_pylist()]
    pages = Environment(loader=PackageLoader("curator.query", "."), autoescape=True, undefined=StrictUndefined)
    page = pages.get_template("gallery.html").render(title=title, line=line, hits=hits, asked=_data(asked))
    commit_bytes(path, page.encode("utf-8", "replace"))
    return sum(not hit["source"] for hit in hits)


def _hit(
    row: Mapping[str, Any], picture: Thumbnail, scores: Sequence[str], columns: Mapping[str, str]
) -> dict[str, Any]:
    sized = row.get("width") and row.get("height")
    return {
        "rank": row["rank"],
        "similarity": f"{row['similarity']:.3f}",
        "folded": row["folded"],
        "caption": _cut(" ".join((row.get("caption") or "").split()), CAPTION_LETTERS),
        "key": place_of(row, columns),
        "size": f"{int(row['width'])} × {int(row['height'])}" if sized else "",
        "facts": [(name.removesuffix("_score"), f"{row[name]:.3f}") for name in scores if row[name] is not None],
        "source": _data(picture),
        "why": picture.why,
        "width": picture.width,
        "height": picture.height,
    }


def _data(picture: Thumbnail) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}" if picture.jpeg else ""
