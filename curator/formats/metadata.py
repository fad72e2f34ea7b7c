"""What the ledger tells about a sample, in the forms that travel with its image: columns beside it, fields in its json.

Columns that stages measured, and those that came with the input (`in_`), in the ledger's order. A name that is taken
gets another in front: what a file was made for comes first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator.ledger import carried

STATUS = ("status", "stage", "cause", "reason")
OURS = "curator_"


def table_of(rows: pa.Table, own: Mapping[str, Any], status: bool) -> pa.Table:
    """A file's own columns; with `status`, whether and why each row was dropped; then all that the ledger tells.

    A name that is taken by then is told behind another `in_` (a table's own `key` is `in_in_key`).
    """
    columns = dict(own)
    for name in (*(STATUS if status else ()), *carried(rows.schema)):
        free = name
        while free in columns:
            free = f"in_{free}"
        columns[free] = rows.column(name)
    return pa.table(columns)


def fields_of(ledger: pa.Table, status: bool) -> list[str]:
    """The columns of the ledger that go into each sample's json: the same ones, in the same order, for all of them."""
    flagged = pc.any(pc.not_equal(ledger.column("flags"), "")).as_py() if "flags" in ledger.column_names else False
    return [*carried(ledger.schema), *(STATUS if status else ()), *(("flags",) if flagged else ())]


def records_of(rows: pa.Table, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The fields of each row as JSON values: null where there is none, but an empty text for no verdict."""
    columns = {name: rows.column(name) for name in fields}
    values = {
        name: [_value(value, column.type, name in (*STATUS, "flags")) for value in column.to_pylist()]
        for name, column in columns.items()
    }
    return [{name: values[name][row] for name in fields} for row in range(rows.num_rows)]


def _value(value: Any, kind: pa.DataType, verdict: bool) -> Any:
    if value is None:
        return "" if verdict else None
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(kind.to_pandas_dtype()(value).astype(str))
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def alone(fields: Mapping[str, Any]) -> bytes:
    """A json member of these fields."""
    return _dumped(fields).encode()


def merged(content: bytes, fields: Mapping[str, Any]) -> tuple[bytes, int] | None:
    """A json member with fields put behind its own, and how many of them had to be renamed. None: it is no object.

    What is there stays as it is written: order, long numbers, everything but spaces before the last brace. Where it
    has one of our names already, ours gets `curator_` in front.
    """
    text, found = _object(content)
    if found is None:
        return None
    named = {_free(name, found): value for name, value in fields.items()}
    renamed = len(named.keys() - fields.keys())
    if not named:
        return content, 0
    end = text.rindex("}")
    inner = _dumped(named)[1:]
    return f"{text[:end].rstrip()}{', ' if found else ''}{inner}{text[end + 1 :]}".encode(), renamed


def _object(content: bytes) -> tuple[str, Mapping[str, Any] | None]:
    try:
        text = content.decode()
        found = json.loads(text.removeprefix("\ufeff"), parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return "", None
    return text, found if isinstance(found, dict) else None


def _free(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name = OURS + name
    return name


def _dumped(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, default=str)
