"""Tables that are texts: CSV, TSV, JSON lines, JSON, and plain lists of lines. One bad line costs one row.

Numbers become numbers only where no digit is lost: `007`, and what no 64-bit integer holds, stay texts.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

LINES = "line"  # the one column of a plain list
SIGNS = ",;\t|"
INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
NUMBER = re.compile(r"[-+]?((0|[1-9]\d{0,14})(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?|nan|NaN")
TRUTHS = {"true": True, "false": False, "True": True, "False": False}
LARGEST_FIELD = 1 << 30
NOT_UTF8 = "not_utf8"


@dataclass
class Read:
    """Columns by name; what is wrong with a row, by its number; codes of what is worth knowing of all rows."""

    columns: dict[str, list[Any]]
    faults: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def table(self, texts: Iterable[str] = (), names: Iterable[str] | None = None) -> pa.Table:
        """As Arrow, all columns or some; `texts` are columns that stay text whatever their values look like."""
        kept = set(texts)
        return pa.table(
            {
                name: pa.array(map(spelt, values), pa.string()) if name in kept else of_one_type(_parsed(values))
                for name, values in ((n, self.columns[n]) for n in (self.columns if names is None else names))
            }
        )


def read(content: bytes, suffix: str) -> Read:
    """A text table of this suffix. Raises ValueError where nothing of it can be read."""
    text, notes = _decoded(content)
    match suffix:
        case ".csv" | ".tsv":
            found = _separated(text, "\t" if suffix == ".tsv" else _sign(text))
        case ".txt":
            found = Read({LINES: [line.strip() for line in text.splitlines() if line.strip()]})
        case _:
            found = _json(text)
    found.notes = notes
    return found


def _decoded(content: bytes) -> tuple[str, tuple[str, ...]]:
    """UTF-8, UTF-16 where a mark says so, else what Windows writes."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16"), ()
    try:
        return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace"), (NOT_UTF8,)


def _sign(text: str) -> str:
    """What separates the fields: the sign that the first line has most of."""
    first = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    return max(SIGNS, key=lambda sign: (first.count(sign), -SIGNS.index(sign)))


def _separated(text: str, sign: str) -> Read:
    csv.field_size_limit(LARGEST_FIELD)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=sign, skipinitialspace=True)
    header = next(rows, [])
    names = unique(header)
    columns: list[list[Any]] = [[] for _ in names]
    faults: dict[int, str] = {}
    begin, before = 0, rows.line_num
    for row in rows:
        begin, before = before, rows.line_num
        if not row:
            continue
        if len(row) > len(names):
            told = f"line {before:,} has {len(row)} fields and the first line {len(names)}"
            faults[len(columns[0])] = f"{told}: is a {sign!r} in it not between quotes?"
        for n, column in enumerate(columns):
            column.append(row[n] if n < len(row) else None)
    if columns and columns[0] and _is_open(text, begin, sign):
        raise ValueError(f"a quote in line {begin + 1:,} is never closed, and takes in all that is behind it")
    return Read(dict(zip(names, columns, strict=True)), faults)


def _is_open(text: str, line: int, sign: str) -> bool:
    """Whether the last record, which begins at a line, ends inside a quote."""
    last = "".join(io.StringIO(text, newline="").readlines()[line:])
    try:
        list(csv.reader(io.StringIO(last, newline=""), delimiter=sign, skipinitialspace=True, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def _json(text: str) -> Read:
    faults: dict[int, str] = {}
    rows: list[Any] = []
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    faults[len(rows)] = f"line {number:,} is no JSON: {error}"
                    rows.append({})
    for n, row in enumerate(rows):
        if not isinstance(row, dict):
            faults[n], rows[n] = f"row {n + 1:,} is no JSON object with columns", {}
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Read({name: [row.get(name) for row in rows] for name in names}, faults)


def spelt(value: Any) -> str | None:
    """A text as it is, anything else as JSON spells it."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(values: list[Any]) -> list[Any]:
    """Texts of a CSV as the numbers or truths that all of them are."""
    if not all(isinstance(value, str | None) for value in values):
        return values
    told = [value for value in values if value]
    if not told:
        return values
    for fits, made in ((INTEGER.fullmatch, int), (NUMBER.fullmatch, float), (TRUTHS.get, TRUTHS.get)):
        if all(fits(value) is not None for value in told):
            return [made(value) if value else None for value in values]
    return values


def of_one_type(values: Sequence[Any]) -> pa.Array:
    """Numbers, truths or texts; what is mixed, nested or too large for a number becomes text, as JSON spells it."""
    if not any(isinstance(value, dict | list) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            pass
    return pa.array([spelt(value) for value in values], pa.string())


def unique(names: Sequence[str]) -> list[str]:
    """Column names, each once: a second `x` is `x_2`, one without a name `column_3`."""
    taken: dict[str, None] = {}
    for number, name in enumerate(names, 1):
        plain = name.strip() or f"column_{number}"
        free, n = plain, 1
        while free in taken:
            n += 1
            free = f"{plain}_{n}"
        taken[free] = None
    return list(taken)
