"""What lies beside a tar: img2dataset's table of the same name, which knows more of each sample, found by its key.

Its rows stand in the order of completion, and those that failed are in no tar: never by position.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import Cause
from curator.formats import tables
from curator.formats.base import Damage, Sample, Shard
from curator.formats.files import stamp_of
from curator.formats.texts import unique

KEY = "key"


def table_beside(tar: str) -> str:
    """`00000.parquet` of `00000.tar`, where it is there and has keys; else empty."""
    path = re.sub(r"\.(tar(\.gz)?|tgz)$", "", tar, flags=re.IGNORECASE) + ".parquet"
    try:
        return path if os.path.isfile(path) and KEY in pq.read_schema(path).names else ""
    except (OSError, pa.ArrowException):
        return path  # the reader tells what is wrong with it


def joined(shard: Shard, samples: Sequence[Sample]) -> tuple[Sequence[Sample], Damage | None]:
    """The samples of a tar, with all columns of their rows in the table beside it; damage where that is broken."""
    try:
        table = pq.ParquetFile(shard.beside).read()
    except (OSError, pa.ArrowException) as error:
        why = " ".join(str(error).split())
        what = f"{shard.given}: {os.path.basename(shard.beside)} beside it cannot be read: {why}"
        return samples, Damage(Cause.UNREADABLE, what)
    table = table.rename_columns(unique(table.column_names))
    names = tables.carried_names(table, {"key": KEY})
    keys = (str(key).encode("utf-8", "surrogateescape") for key in table.column(KEY).to_pylist())
    told = dict(zip(keys, tables.rows_of(table, names), strict=True))
    return [replace(sample, carried=told.get(sample.key, "")) for sample in samples], None


def state_of(path: str) -> str:
    """Size and time of last change of the table."""
    return f":{stamp_of(path)}"
