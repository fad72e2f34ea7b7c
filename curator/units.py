"""Sizes and counts as people write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: int | str) -> int:
    """`268435456`, `"256MiB"`, `"2 GB"` -> bytes. Raises ValueError, which a stage's constructor explains."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if found is None:
        raise ValueError(f"must be a size such as 256MiB, not {text!r}")
    number, power, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[power])


def _checked(text: int | str) -> int | str:
    if parse_bytes(text) <= 0:
        raise ValueError(f"must be more than nothing, not {text!r}")
    return text


Size = Annotated[int | str, AfterValidator(_checked)]
"""A setting that is a size: a number of bytes, or text with a unit. Kept as written."""


def readable(size: int) -> str:
    """`512 bytes`, `10.0 GiB`, `256 MiB`."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return (
        f"{value:,.0f} {unit}" if unit == "bytes" or (value >= 100 and value == int(value)) else f"{value:,.1f} {unit}"
    )


def counted(n: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
