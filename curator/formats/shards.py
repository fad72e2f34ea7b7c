"""WebDataset shards as they are written: original bytes of every member under headers of ours, and beside each tar
the two files that img2dataset writes and the tools after it read.

The same rows give the same bytes: no clock, no owner, no host. Formats: POSIX ustar, pax only where a name or size
needs it; img2dataset's `00000.parquet` and `00000_stats.json`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.commit import commit, commit_bytes
from curator.formats.base import Sample
from curator.formats.metadata import alone, merged, records_of, table_of
from curator.formats.outgoing import (
    JSON,
    changed,
    contents_of,
    is_measured,
    json_of,
    samples_of,
    suffixes_of,
    unchanged,
)
from curator.ledger import shown

BLOCK = 512
RECORD = 20 * BLOCK  # tars end on a multiple of this, as other programs write them
NAME_BYTES, LARGEST_OCTAL = 100, 8**11 - 1
LONGEST_FOLDER = 100  # letters of a folder's name
ASIDE = b"curator.json"
"""The member that takes what is told of a sample whose own json is no object."""


@dataclass(frozen=True)
class Job:
    """One output shard: which rows it takes, and from where."""

    source: Any  # phases.write.StoredSource: shard, sample, read, check
    rows: pa.Table
    root: Path  # output/shards
    folder: str  # below that, empty for itself
    name: str  # 00000
    fields: tuple[str, ...] = ()  # the ledger's columns that each sample's json is told
    status: bool = False  # whether the rows are told why they were dropped

    @property
    def place(self) -> str:
        """The shard's path below the root, without its suffix: the ledger's `output_shard`."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def stem(self) -> Path:
        """Where its files lie, without their suffixes."""
        return self.root / self.place


@dataclass
class Written:
    """What was written of one job."""

    place: str
    folder: str
    keys: list[str]
    bytes: int
    suffixes: set[tuple[str, ...]] = field(default_factory=set)
    named: int = 0  # images that came without a suffix and were given that of their format
    renamed: int = 0  # samples whose json had one of our names already
    aside: int = 0  # samples whose json is no object


def write_shard(job: Job) -> Written:
    """Write one tar and the files beside it. Raises InputChanged where bytes are not those that were measured."""
    source = copy.copy(job.source)
    samples = list(samples_of(source, job.rows))
    keys = output_keys([sample.key for _, sample in samples])
    written = Written(job.place, job.folder, [key.decode("utf-8", "backslashreplace") for key in keys], 0)
    with unchanged(source, job.rows, tars=True), commit(job.stem.with_suffix(".tar")) as file:
        for key, members in zip(keys, _members(job, source, samples, written), strict=True):
            for suffix, content in members:
                written.bytes += add_member(file, key + b"." + suffix if suffix else key, content)
            written.suffixes.add(tuple(sorted(suffix.decode("utf-8", "backslashreplace") for suffix, _ in members)))
        end = end_of_archive(written.bytes)
        file.write(end)
        written.bytes += len(end)
    _write_beside(job, written.keys)
    return written


def suffix_sets(source: Any, rows: pa.Table, told: bool) -> dict[str, Any]:
    """Rows by the suffixes that their samples leave with: a folder name for each set, (n,) row numbers, in order.

    `told`: fields go into each sample's json. Sets come in the order of their first samples.
    """
    sets: dict[tuple[bytes, ...], list[int]] = {}
    facts = [rows.column(name).to_pylist() for name in ("image", "format")]
    for row, ((_, sample), image, form) in enumerate(zip(samples_of(source, rows), *facts, strict=True)):
        added = [JSON] if told and json_of(sample) is None else []
        sets.setdefault(tuple(sorted([*suffixes_of(sample, image, form), *added])), []).append(row)
    names: dict[str, Any] = {}
    for suffixes, numbers in sets.items():
        names[_folder_name(suffixes, names)] = np.array(numbers)
    return names


def _folder_name(suffixes: Sequence[bytes], taken: Collection[str]) -> str:
    """`jpg-json-txt`, of letters that every file system takes; numbered where two sets would share one."""
    words = (re.sub(r"[^A-Za-z0-9_.]", "_", suffix.decode("ascii", "replace")) or "none" for suffix in suffixes)
    plain = "-".join(words)[:LONGEST_FOLDER].strip(".") or "none"
    in_use = {name.lower() for name in taken}
    return next(n for k in count() if (n := f"{plain}-{k}" if k else plain).lower() not in in_use)


def output_keys(keys: Sequence[bytes]) -> list[bytes]:
    """Keys as they leave: dots become `_` (readers cut keys there), equal ones get `-1`, `-2` ... behind them."""
    taken: set[bytes] = set()
    last: dict[bytes, int] = {}  # the number behind the last of its kind, so that many equal keys cost no search each
    result = []
    for key in keys:
        plain = key.removeprefix(b"./").lstrip(b"/").replace(b".", b"_")
        free, n = plain, last.get(plain, 0)
        while free in taken:
            n += 1
            free = b"%b-%d" % (plain, n)
        last[plain] = n
        taken.add(free)
        result.append(free)
    return result


def _members(
    job: Job, source: Any, samples: Sequence[tuple[str, Sample]], written: Written
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Suffix and bytes of every member as it leaves, sample by sample."""
    facts = [job.rows.column(name).to_pylist() for name in ("content_hash", "image", "format")]
    told = records_of(job.rows, job.fields) if job.fields else None
    contents = contents_of(source, ((shard, sample.members) for shard, sample in samples))
    for row, ((shard, sample), expected, image, form) in enumerate(zip(samples, *facts, strict=True)):
        leaving, matched = [], False
        for member, suffix in zip(sample.members, suffixes_of(sample, image, form), strict=True):
            content = next(contents)
            if shown(member.name) == image:
                matched = matched or is_measured(content, expected)
                written.named += suffix != sample.suffix_of(member)
            leaving.append((suffix, content))
        if not matched:
            raise changed(shard, image)
        if told is not None:
            _tell(leaving, sample, told[row], written)
        yield leaving


def _tell(leaving: list[tuple[bytes, bytes]], sample: Sample, fields: dict[str, Any], written: Written) -> None:
    """Put the fields into the sample's json; into a member of their own where that is no object."""
    member = json_of(sample)
    if member is None:
        leaving.append((JSON, alone(fields)))
        return
    place = sample.members.index(member)
    suffix, content = leaving[place]
    if (result := merged(content, fields)) is None:
        written.aside += 1
        leaving.append((ASIDE, alone(fields)))
    else:
        leaving[place] = (suffix, result[0])
        written.renamed += result[1] > 0


def end_of_archive(size: int) -> bytes:
    """What closes a tar of `size` bytes: two blocks of zeros, filled up to a record."""
    end = 2 * BLOCK
    return bytes(end + -(size + end) % RECORD)


def add_member(file: IO[bytes], name: bytes, content: bytes) -> int:
    """One member; gives the bytes that it took."""
    extended = b""
    if len(name) > NAME_BYTES or len(content) > LARGEST_OCTAL:
        records = pax_record(b"path", name)
        if len(content) > LARGEST_OCTAL:
            records += pax_record(b"size", b"%d" % len(content))
        extended = header(b"PaxHeader/" + name[:60], len(records), b"x") + records + bytes(-len(records) % BLOCK)
    head = extended + header(name[:NAME_BYTES], min(len(content), LARGEST_OCTAL), b"0")
    file.write(head)
    file.write(content)
    padding = -len(content) % BLOCK
    file.write(bytes(padding))
    return len(head) + len(content) + padding


def header(name: bytes, size: int, kind: bytes) -> bytes:
    """A ustar header: mode 0644, owner, group and time 0, no names."""
    fields = b"%b%b%b%b%b%b" % (
        name.ljust(NAME_BYTES, b"\0"), b"0000644\0", b"0000000\0" * 2, b"%011o\0" % size, b"00000000000\0", b" " * 8,
    )  # fmt: skip
    block = (fields + kind + bytes(100) + b"ustar\x0000").ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def pax_record(key: bytes, value: bytes) -> bytes:
    """`length key=value` and a line end, the length counting itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _write_beside(job: Job, keys: Sequence[str]) -> None:
    """`00000.parquet` and `00000_stats.json`, in img2dataset's columns."""
    rows, total = job.rows, job.rows.num_rows
    own: dict[str, Any] = {
        "caption": rows.column("caption"),
        "key": pa.array(keys, pa.string()),
        "status": pa.array(["success"] * total, pa.string()),
        "error_message": pa.nulls(total, pa.string()),
        "width": rows.column("width"),
        "height": rows.column("height"),
        "original_width": rows.column("width"),
        "original_height": rows.column("height"),
        "sha256": rows.column("content_hash"),
        "in_shard": rows.column("shard"),
        "in_key": rows.column("key"),
    }
    with commit(job.stem.with_suffix(".parquet")) as file:
        pq.write_table(table_of(rows, own, job.status), file)
    stats = {
        "count": total, "successes": total, "failed_to_download": 0, "failed_to_resize": 0,
        "status_dict": {"success": total},
    }  # fmt: skip
    commit_bytes(job.stem.with_name(f"{job.stem.name}_stats.json"), json.dumps(stats, indent=4).encode())
