"""Vectors that were computed elsewhere: `.npy` and `.npz` files and parquet columns, with or without a table beside.

clip-retrieval writes `img_emb/img_emb_0.npy` and `metadata/metadata_0.parquet`, DataComp `<name>.npz` and
`<name>.parquet`; row i of one belongs to row i of the other. Knows nothing about models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.errors import ConfigError
from curator.formats import files, tables
from curator.formats.base import Member, Shard, ShardIndex
from curator.formats.pieces import PIECE
from curator.stage import Array
from curator.wording import meant

SUFFIXES = (".npy", ".npz")
FOLDER = "img_emb"
USUAL_ARRAYS = ("l14_img", "img_emb", "embedding", "embeddings", "emb", "arr_0")
USUAL_KEYS = ("key", "__key__", "uid", "image_path", "path", "filename", "file_name")
KEY_DIGITS = 9
SIZES = (("width", "height"), ("original_width", "original_height"))
HASHES = ("content_hash", "sha256")
"""How tables of vectors call what reading finds of an image: those that come first are taken first."""


def files_of(folder: str) -> list[tuple[str, str]]:
    """The vector files of a folder, each with the table beside it or nothing: clip-retrieval's, DataComp's, others.

    Files of clip-retrieval belong together by the number in their names.
    """
    root = Path(folder, FOLDER)
    if root.is_dir():
        beside = {_number(path.name): str(path) for path in Path(folder, "metadata").glob("*.parquet")}
        return [(str(path), beside.get(_number(path.name), "")) for path in sorted(root.glob("*.npy"), key=_by_number)]
    found = sorted(path for suffix in SUFFIXES for path in Path(folder).glob(f"*{suffix}"))
    return [(str(path), beside_of(str(path))) for path in found]


def beside_of(path: str) -> str:
    """The table of the same name, or nothing."""
    beside = path.rpartition(".")[0] + ".parquet"
    return beside if os.path.isfile(beside) else ""


def _number(name: str) -> str:
    return "".join(re.findall(r"\d+", name)[-1:])


def _by_number(path: Path) -> tuple[int, str]:
    digits = _number(path.name)
    return int(digits) if digits else -1, path.name


def shape_of(shard: Shard) -> tuple[int, int]:
    """Rows and columns. Raises ConfigError where a file holds something else; OSError where it cannot be read."""
    if shard.path.lower().endswith(".parquet"):
        file = pq.ParquetFile(shard.path)
        count = file.metadata.num_rows
        first = next(file.iter_batches(1, columns=[shard.role("embedding")]), None)
        value = first.column(0)[0].as_py() if first is not None and len(first) else None
        return count, len(value or ())
    try:
        rows = _whole(shard.path, shard.role("embedding"), files.stamp_of(shard.path))
    except (ValueError, EOFError) as error:
        why = "it is empty" if isinstance(error, EOFError) else str(error)
        why = "it is no array of numbers" if "pickle" in why else why  # NumPy would tell how to run what is in it
        raise ConfigError(f"input: {shard.given} is no file of vectors: {why}.") from error
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ConfigError(
            f"input: {shard.given} holds {rows.dtype} of shape {rows.shape}; vectors are floats, a row for each image."
        )
    return rows.shape[0], rows.shape[1]


def rows_of(shard: Shard, first: int, last: int) -> Array:
    """(n, D) rows first..last-1 as they lie in the file; in parquet, NaN where there is none."""
    if not shard.path.lower().endswith(".parquet"):
        return _whole(shard.path, shard.role("embedding"), files.stamp_of(shard.path))[first:last]
    return np.concatenate([g[max(first - at, 0) : last - at] for at, g in _groups(shard, first, last)])


def _groups(shard: Shard, first: int, last: int) -> Iterator[tuple[int, Array]]:
    """The row groups of a parquet file that hold some rows, with the number of their first."""
    begin = 0
    counts = pq.ParquetFile(shard.path).metadata
    for group in range(counts.num_row_groups):
        end = begin + counts.row_group(group).num_rows
        if begin < last and first < end:
            yield begin, _group(shard.path, str(shard.role("embedding")), group, files.stamp_of(shard.path))
        begin = end


@lru_cache(maxsize=2)
def _group(path: str, column: str, group: int, _: str) -> Array:
    """(n, D) float32 of one row group; pieces come in order, so that it is read once."""
    values = pq.ParquetFile(path, memory_map=True).read_row_group(group, columns=[column]).column(0).combine_chunks()
    width = max((len(value) for value in values[:1].to_pylist() if value is not None), default=0)
    lengths = values.value_lengths() if not pa.types.is_fixed_size_list(values.type) else None
    if values.null_count == 0 and (lengths is None or set(lengths.unique().to_pylist()) <= {width}):
        flat: Array = values.flatten().to_numpy(zero_copy_only=False)
        return flat.astype(np.float32, copy=False).reshape(len(values), -1)
    rows = values.to_pylist()
    width = max((len(row) for row in rows if row is not None), default=1)
    lacking = [np.nan] * width
    return np.array([row if row is not None and len(row) == width else lacking for row in rows], np.float32)


@lru_cache(maxsize=2)
def _whole(path: str, name: str | None, _: str) -> Array:
    """The array of a file, mapped where it can be. Pickled objects are refused: loading one runs code."""
    loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        chosen = name or next((usual for usual in USUAL_ARRAYS if usual in loaded.files), None)
        if chosen is None and len(loaded.files) == 1:
            chosen = loaded.files[0]
        if chosen not in loaded.files:
            near = meant(str(name), loaded.files) if name else ""
            raise ConfigError(
                f"read.embedding_column: {path} has {'no array ' + name if name else 'several arrays'}.{near} It has "
                f"{', '.join(loaded.files)}."
            )
        array: Array = loaded[chosen]
        return array


def stamp_of(shard: Shard) -> str:
    """Size and time of last change of the vectors and of the table beside them."""
    return "+".join(files.stamp_of(path) for path in (shard.path, shard.beside) if path)


def facts_of(shard: Shard, first: int, last: int) -> tuple[list[str], pa.Table | None]:
    """Keys of rows first..last-1, and the columns that go along: `in_<name>`, and reading's as far as known; or None.

    Where no column names a row, its number in the file does.
    """
    numbers = [f"{n:0{KEY_DIGITS}d}" for n in range(first, last)]
    table = _facts(path, shard.roles, files.stamp_of(path)) if (path := _table(shard)) else None
    if table is None:
        return numbers, None
    part = table.slice(first, last - first)
    if "key" not in part.column_names:
        return numbers, part
    given = part.column("key").to_pylist()
    keys = [number if key is None else str(key) for key, number in zip(given, numbers, strict=True)]
    return keys, part.drop_columns("key")


def _table(shard: Shard) -> str:
    return shard.beside or (shard.path if shard.path.lower().endswith(".parquet") else "")


def with_roles(shard: Shard, given: Mapping[str, str | None]) -> Shard:
    """Which columns of the table name the rows and hold captions: as settings say, or by the usual names.

    Raises ConfigError for a column that is not there, and for a table with another number of rows.
    """
    roles = {"embedding": name} if (name := given.get("embedding") or shard.role("embedding")) is not None else {}
    if path := _table(shard):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = {role: given.get(role) for role in ("key", "caption")}
        found = tables.roles_of(path, file.schema_arrow, wanted)
        key = wanted["key"] or next((usual for usual in USUAL_KEYS if usual in names), None)
        roles |= {role: name for role, name in (("key", key), ("caption", found.get("caption"))) if name is not None}
        if shard.beside and (rows := file.metadata.num_rows) != (vectors := shape_of(shard)[0]):
            raise ConfigError(
                f"input: {shard.given} holds {vectors:,} vectors and {path} beside it {rows:,} rows; they belong "
                "together row by row."
            )
    return replace(shard, roles=tuple(sorted(roles.items())))


@lru_cache(maxsize=2)
def _facts(path: str, roles: Sequence[tuple[str, str]], _: str) -> pa.Table | None:
    """All that a table says of its rows: `key`, reading's columns as far as it has them, `in_<name>` of plain types."""
    file = pq.ParquetFile(path, memory_map=True)
    known = {role: name for role, name in roles if role in ("key", "caption")}
    some = next(file.iter_batches(tables.LOOKED_AT), None)
    some = file.schema_arrow.empty_table() if some is None else pa.Table.from_batches([some])
    carried = tables.carried_names(some, dict(roles))
    table = file.read(list(dict.fromkeys([*carried, *known.values()])))
    columns = {f"in_{name}": tables.plain_column(table.column(name)) for name in carried}
    columns |= {role: table.column(name) for role, name in known.items()}
    columns |= _of_reading(table)
    return pa.table(columns) if columns else None


def _of_reading(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Sizes and content hashes by the ledger's names and types, so that filters decide from them as from images'."""
    columns: dict[str, pa.ChunkedArray] = {}
    for names in reversed(SIZES):
        sides = [_pixels(table.column(name)) for name in names if name in table.column_names]
        if len(sides) == len(names) and None not in sides:
            columns |= dict(zip(SIZES[0], sides, strict=True))
    for name in reversed(HASHES):
        if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
            texts = table.column(name)
            fit = pc.match_substring_regex(texts, "^[0-9a-fA-F]{64}$")
            columns[HASHES[0]] = pc.if_else(fit, pc.utf8_lower(texts), None)
    return columns


def _pixels(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Whole numbers above 0 as int32, floats among them, since pandas writes integers so where one is missing."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    fit = pc.and_(pc.greater(column, 0), pc.less(column, 2**31))
    try:
        return pc.if_else(fit, column, None).cast(pa.int32())
    except pa.ArrowInvalid:  # halves of pixels: a column of something else
        return None


class VectorReader:
    """Counts the rows of a file of vectors; what is in them is read a piece at a time, and no sample has a member."""

    def index(self, shard: Shard, max_bytes: int) -> ShardIndex:
        """So many rows, in pieces."""
        del max_bytes
        count, _ = shape_of(shard)
        return ShardIndex(range(count), range(0, count, PIECE))  # type: ignore[arg-type]

    def stamp(self, shard: Shard, members: Iterable[Member] | None = None) -> str:
        """Size and time of last change of the vectors and of the table beside them."""
        del members
        return stamp_of(shard)

    def read(self, shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
        """Nothing: there are no members."""
        del members
        raise OSError(f"{shard.given} holds vectors and no images")
