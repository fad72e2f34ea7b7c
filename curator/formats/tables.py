"""Tables as people have them, read into Arrow: parquet, CSV, TSV, JSON lines, and plain lists of lines.

Which column is what is said by settings or guessed from the usual names. Knows nothing about samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator import remote
from curator.errors import ConfigError
from curator.formats.texts import Read, spelt, unique
from curator.formats.texts import read as read_text
from curator.wording import meant

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
BROKEN = (OSError, ValueError, OverflowError, pa.ArrowException)
"""What reading a table raises where that is damaged."""
USUAL = {
    "image": "image_path image img_path img path filepath file_path file_name filename file jpg jpeg png webp",
    "url": "url image_url img_url link uri",
    "caption": "caption text alt alt_text title description sentence",
    "embedding": "embedding embeddings emb img_emb image_embedding clip_embedding vector",
    "key": "key __key__ uid",
}
"""The names by which columns are known, the likeliest first, in any case."""
ROWS_AT_ONCE = 1 << 16
INDEX_OF_PANDAS = "__index_level_"
LOOKED_AT = 1000  # rows
MOST_NUMBERS, MOST_BYTES = 16, 64  # of a value that goes along
PLACES = ("http://", "https://")


def suffix_of(path: str) -> str:
    """`.csv` of a table's path, empty where it is none."""
    lower = path.lower()
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), "")


def schema_of(path: str) -> pa.Schema:
    """The columns of a table, each with a name of its own. One of BROKEN where it cannot be read."""
    if suffix_of(path) != ".parquet":
        return read(path).schema
    schema = pq.read_schema(path)
    return pa.schema([column.with_name(name) for column, name in zip(schema, unique(schema.names), strict=True)])


def read(path: str, columns: Sequence[str] | None = None, texts: Sequence[str] = ()) -> pa.Table:
    """A whole table, or some of its columns; `texts` are columns that stay text whatever their values look like.

    One of BROKEN where it cannot be read.
    """
    if suffix_of(path) == ".parquet":
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) == len(names) and columns is not None and set(columns) <= set(names):
            return file.read(columns)  # a list may lie beside vectors and images, which nobody asked for
        table = file.read()
        table = table.rename_columns(unique(table.column_names))
        return table if columns is None else table.select(columns)
    return text_table(path).table(texts, columns)


def text_table(path: str) -> Read:
    """A table that is a text, its columns as they stand there; the last one is kept."""
    status = os.stat(path)
    return _text_table(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _text_table(path: str, *_: int) -> Read:
    with open(path, "rb") as file:
        return read_text(file.read(), suffix_of(path))


def roles_of(path: str, schema: pa.Schema, given: Mapping[str, str | None]) -> dict[str, str]:
    """Which column is what: as settings say (`given`, by role), else by its usual name.

    Raises ConfigError for each setting that names no column.
    """
    names = schema.names
    if lost := [(role, name) for role, name in given.items() if name is not None and name not in names]:
        raise ConfigError(
            [
                f"read.{role}_column: {path} has no column {name}.{meant(str(name), names)} It has {', '.join(names)}."
                for role, name in lost
            ]
        )
    roles = {role: name for role, name in given.items() if name is not None}
    lower = {name.lower(): name for name in reversed(names)}
    for role, usual in USUAL.items():
        known = (lower[name] for name in usual.split() if name in lower and lower[name] not in roles.values())
        fitting = (name for name in known if _fits(role, schema.field(name).type))
        if role not in roles and (name := next(fitting, None)) is not None:
            roles[role] = name
    return roles


def _fits(role: str, kind: pa.DataType) -> bool:
    """Whether a column of this type can have the role: `vector` may also be a text, and `image` a number."""
    if role == "embedding":
        return is_vectors(kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    if role == "image":
        return text or holds_images(kind)
    return text or (role == "key" and pa.types.is_integer(kind))


def is_vectors(kind: pa.DataType) -> bool:
    """Whether a column's values are lists of numbers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column's values are the bytes of files, or Hugging Face's `{bytes, path}`."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def carried_names(some: pa.Table, roles: Mapping[str, str]) -> list[str]:
    """The columns that go along with a sample: all but key and caption, which it has, and images, vectors, long bytes.

    A `uid` goes along also where it is the key: keep-lists are made of it. `some`: the table, or some rows of it.
    """
    away = {roles.get("embedding"), roles.get("caption"), roles.get("key")} - {"uid"}
    names = [name for name in some.column_names if name not in away and not name.startswith(INDEX_OF_PANDAS)]
    return [name for name in names if _is_short(some.column(name))]


def _is_short(column: pa.ChunkedArray) -> bool:
    """Whether values are small enough to be told: the numbers of a box and hashes are, vectors and files are not."""
    if not (is_vectors(column.type) or holds_images(column.type) or pa.types.is_fixed_size_binary(column.type)):
        return True
    if pa.types.is_struct(column.type):
        return False
    first = next((value for value in column.slice(0, LOOKED_AT).to_pylist() if value is not None), ())
    return len(first) <= (MOST_NUMBERS if is_vectors(column.type) else MOST_BYTES)


def rows_of(table: pa.Table, names: Sequence[str]) -> Iterator[str]:
    """Some columns of each row as a JSON object, keys in the table's order."""
    if not names:
        yield from [""] * table.num_rows
        return
    for start in range(0, table.num_rows, ROWS_AT_ONCE):
        columns = [_values(table.column(name).slice(start, ROWS_AT_ONCE)) for name in names]
        for values in zip(*columns, strict=True):
            told = {name: plain(value) for name, value in zip(names, values, strict=True)}
            yield json.dumps(told, ensure_ascii=False)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As Python has them; times that it cannot hold as text."""
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError, pa.ArrowException):
        values = column.cast(pa.string()).to_pylist()
    return values


def plain(value: Any) -> Any:
    """A value as JSON can hold it: times as ISO 8601, decimals as text, bytes in hex, what is no number as null."""
    match value:
        case float():
            return value if value == value and abs(value) != float("inf") else None
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
        case bytes():
            return value.hex()
        case dict():
            return {name: plain(one) for name, one in value.items()}
        case list():
            return [plain(one) for one in value]
    return value


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers, truths and texts as they are; anything else as the text that JSON spells it with."""
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return column.cast(pa.string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind):
        return column
    return pa.chunked_array([pa.array([spelt(plain(value)) for value in _values(column)], pa.string())])


def first_text(path: str, column: str) -> str:
    """The first value of a text column that holds something."""
    if suffix_of(path) != ".parquet":
        values: Iterator[Any] = iter(read(path, [column]).column(column).to_pylist())
    else:
        batches = pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE, columns=[column])
        values = (value for batch in batches for value in batch.column(0).to_pylist())
    return next((value for value in values if isinstance(value, str) and value.strip()), "")


def beginning(path: str, offset: int, count: int) -> bytes:
    """Some bytes of a file."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(count)


def is_address(text: str) -> bool:
    """Whether a value is to be fetched over HTTP."""
    return text.lower().startswith(PLACES)


def local(path: str, root: str) -> str:
    """A list's path as the system opens it: as it stands, or below the place where relative ones begin."""
    path = remote.local(path)
    return path if "://" in path else os.path.join(root, os.path.expanduser(path))
