"""Lists of what is kept: a table of places, text that spreadsheets may open, DataComp's array of uids.

DataComp's subset file: `np.save` of a sorted 1-D array of dtype `u8,u8`, each uid as its first and its last 16
hexadecimal digits. Its resharder finds a uid by binary search, and writes one that is listed twice twice.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.formats.outgoing import contents_of, json_of, samples_of
from curator.stage import Array

UID = re.compile(r"[0-9a-fA-F]{32}")
UID_TYPE = np.dtype("u8,u8")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")
"""What a cell must not begin with, or a spreadsheet runs it (ASVS 1.2.10)."""


@dataclass(frozen=True)
class Job:
    """Some rows whose json members may hold a uid."""

    source: Any  # phases.write.StoredSource
    number: int
    rows: pa.Table


def uids_in_json(job: Job) -> tuple[int, list[str | None]]:
    """The job's number, and for each row the `uid` of its json member; None where it has none."""
    source = copy.copy(job.source)
    has_image = job.rows.column("image").is_valid()  # of an input of vectors nothing but vectors is there
    samples = [(shard, json_of(sample)) for shard, sample in samples_of(source, job.rows.filter(has_image))]
    contents = contents_of(source, ((shard, [member] if member else []) for shard, member in samples))
    found = iter([_uid(next(contents)) if member else None for _, member in samples])
    return job.number, [next(found) if has else None for has in has_image.to_pylist()]


def _uid(content: bytes) -> str | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    uid = found.get("uid") if isinstance(found, dict) else None
    return uid if isinstance(uid, str) else None


def uid_array(uids: Iterable[str | None]) -> tuple[Array, int, int]:
    """Sorted distinct uids as (N,) `u8,u8`; how many were there before, and how many texts are no uid."""
    given = [uid for uid in uids if uid is not None]
    sound = [uid for uid in given if UID.fullmatch(uid)]
    halves = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in sound], UID_TYPE)
    distinct = np.unique(halves)
    return distinct, len(sound) - len(distinct), len(given) - len(sound)


def write_csv(file: IO[bytes], table: pa.Table) -> None:
    """A table as CSV; a text cell that a spreadsheet would run gets `'` in front."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=65_536):
        writer.writerows(zip(*(map(safe_cell, column.to_pylist()) for column in batch.columns), strict=True))
    text.flush()
    text.detach()


def safe_cell(value: Any) -> Any:
    """A cell that begins like a formula as text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_lines(file: IO[bytes], shards: Sequence[str], images: Sequence[str]) -> None:
    """A line for each image, `shard/image`: in a folder, the file's path."""
    for shard, image in zip(shards, images, strict=True):
        file.write(f"{shard.rstrip('/')}/{image}\n".encode("utf-8", "surrogateescape"))


def unsafe_cells(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as they were before `safe_cell`."""
    return pc.replace_substring_regex(cells, r"^'([=+\-@\t\r\x00])", r"\1")
