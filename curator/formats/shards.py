"""WebDataset shards as they are written: original bytes of every member under headers of ours, and beside each tar
the two files that img2dataset writes and the tools after it read.

The same rows give the same bytes: no clock, no owner, no host. Formats: POSIX ustar, pax only where a name or size
needs it; img2dataset's `00000.parquet` and `00000_stats.json`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator.commit import commit, commit_bytes
from curator.errors import InputChanged
from curator.formats.base import Member, Sample
from curator.ledger import shown

BLOCK = 512
RECORD = 20 * BLOCK  # tars end on a multiple of this, as other programs write them
NAME_BYTES, LARGEST_OCTAL = 100, 8**11 - 1
SUFFIXES = {"JPEG": b"jpg", "TIFF": b"tif"}
"""Of image formats whose usual suffix is not their name."""


@dataclass(frozen=True)
class Job:
    """One output shard: which rows it takes, and from where."""

    source: Any  # phases.write.StoredSource: shard, sample, read, check
    rows: pa.Table
    stem: Path  # folder/00000


@dataclass
class Written:
    """What was written of one job."""

    stem: str
    keys: list[str]
    bytes: int
    suffixes: set[tuple[str, ...]] = field(default_factory=set)
    named: int = 0  # images that came without a suffix and were given that of their format


def write_shard(job: Job) -> Written:
    """Write one tar and the files beside it. Raises InputChanged where bytes are not those that were measured."""
    source = copy.copy(job.source)
    samples = list(_samples(source, job.rows))
    keys = output_keys([sample.key for _, sample in samples])
    written = Written(job.stem.name, [key.decode("utf-8", "backslashreplace") for key in keys], 0)
    tars = shards_of(source, job.rows, "webdataset")
    for shard in tars:
        source.check(shard)
    with commit(job.stem.with_suffix(".tar")) as file:
        written.bytes = _write_tar(file, source, job.rows, samples, keys, written)
    for shard in tars:
        source.check(shard)
    _write_beside(job, written.keys)
    return written


def shards_of(source: Any, rows: pa.Table, form: str) -> list[str]:
    """The shards of one format that some rows come from, by the ledger's names for them, in order."""
    return [shard for shard in dict.fromkeys(rows.column("shard").to_pylist()) if source.shard(shard).format == form]


def _samples(source: Any, rows: pa.Table) -> Iterator[tuple[str, Sample]]:
    for shard, index in zip(rows.column("shard").to_pylist(), rows.column("index").to_pylist(), strict=True):
        yield shard, source.sample(shard, index)


def output_keys(keys: Sequence[bytes]) -> list[bytes]:
    """Keys as they leave: dots become `_` (readers cut keys there), equal ones get `-1`, `-2` ... behind them."""
    taken: set[bytes] = set()
    last: dict[bytes, int] = {}  # the number behind the last of its kind, so that many equal keys cost no search each
    result = []
    for key in keys:
        plain = key.removeprefix(b"./").replace(b".", b"_")
        free, n = plain, last.get(plain, 0)
        while free in taken:
            n += 1
            free = b"%b-%d" % (plain, n)
        last[plain] = n
        taken.add(free)
        result.append(free)
    return result


def _write_tar(
    file: IO[bytes],
    source: Any,
    rows: pa.Table,
    samples: Sequence[tuple[str, Sample]],
    keys: Sequence[bytes],
    written: Written,
) -> int:
    """All members of all samples, in order; gives the bytes written."""
    facts = (rows.column(name).to_pylist() for name in ("content_hash", "image", "format"))
    contents = _contents(source, samples)
    size = 0
    for (shard, sample), key, expected, image, form in zip(samples, keys, *facts, strict=True):
        suffixes = [sample.suffix_of(member) for member in sample.members]
        matched = False
        for n, member in enumerate(sample.members):
            content = next(contents)
            if shown(member.name) == image:
                matched = matched or hashlib.sha256(content).hexdigest() == expected
                if not suffixes[n] and (usual := SUFFIXES.get(form, form.lower().encode())) not in suffixes:
                    suffixes[n] = usual  # readers of WebDataset pass over a name without one
                    written.named += 1
            size += add_member(file, key + b"." + suffixes[n] if suffixes[n] else key, content)
        if not matched:
            raise changed(shard, image)
        written.suffixes.add(tuple(sorted(suffix.decode("utf-8", "backslashreplace") for suffix in suffixes)))
    end = end_of_archive(size)
    file.write(end)
    return size + len(end)


def end_of_archive(size: int) -> bytes:
    """What closes a tar of `size` bytes: two blocks of zeros, filled up to a record."""
    end = 2 * BLOCK
    return bytes(end + -(size + end) % RECORD)


def changed(shard: str, image: str) -> InputChanged:
    """The error for an image whose bytes are not those that were measured; its `shard` is not to be trusted."""
    error = InputChanged(
        f"{shard}: {image} is not the image that was measured; nothing was replaced. Run the same command again to "
        "measure it."
    )
    error.shard = shard
    return error


def _contents(source: Any, samples: Iterable[tuple[str, Sample]]) -> Iterator[bytes]:
    """The bytes of all members in order, read shard by shard."""
    run: list[Member] = []
    current: str | None = None
    for shard, sample in samples:
        if shard != current and run:
            yield from _read(source, current, run)
            run = []
        current = shard
        run.extend(sample.members)
    if run:
        yield from _read(source, current, run)


def _read(source: Any, shard: str | None, members: Sequence[Member]) -> Iterator[bytes]:
    try:
        yield from source.read(shard, members)
    except OSError as error:
        raise changed(str(shard), str(error)) from error


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
    rows, count = job.rows, job.rows.num_rows
    own = ("width", "height", "caption", "content_hash", "shard", "key")
    scores = {n: rows.column(n) for n in rows.column_names if n not in own and _is_score(rows.schema.field(n))}
    columns: dict[str, Any] = {
        "caption": rows.column("caption"),
        "key": pa.array(keys, pa.string()),
        "status": pa.array(["success"] * count, pa.string()),
        "error_message": pa.nulls(count, pa.string()),
        "width": rows.column("width"),
        "height": rows.column("height"),
        "original_width": rows.column("width"),
        "original_height": rows.column("height"),
        "sha256": rows.column("content_hash"),
        **scores,
        "in_shard": rows.column("shard"),
        "in_key": rows.column("key"),
    }
    with commit(job.stem.with_suffix(".parquet")) as file:
        pq.write_table(pa.table(columns), file)
    stats = {
        "count": count, "successes": count, "failed_to_download": 0, "failed_to_resize": 0,
        "status_dict": {"success": count},
    }  # fmt: skip
    commit_bytes(job.stem.with_name(f"{job.stem.name}_stats.json"), json.dumps(stats, indent=4).encode())


def _is_score(column: pa.Field) -> bool:
    return pa.types.is_floating(column.type) and not column.name.startswith("duplicate_")
