"""Members on their way out, for every writer that copies bytes: read in order, held against what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from curator.errors import InputChanged
from curator.formats.base import Member, Sample
from curator.ledger import shown
from curator.signatures import usual_suffix

JSON = b"json"
TAR = "webdataset"


@contextmanager
def unchanged(source: Any, rows: pa.Table, tars: bool) -> Iterator[None]:
    """Hold the inputs of some rows against what was measured, before and after. InputChanged where one is another.

    Tars, which are one look each, or else all others: a look at a folder is one at every file below it, so that it is
    taken once for all jobs.
    """
    shards = [s for s in dict.fromkeys(rows.column("shard").to_pylist()) if (source.shard(s).format == TAR) == tars]
    for shard in shards:
        source.check(shard)
    yield
    for shard in shards:
        source.check(shard)


def samples_of(source: Any, rows: pa.Table) -> Iterator[tuple[str, Sample]]:
    """The shard and the sample behind each row."""
    for shard, index in zip(rows.column("shard").to_pylist(), rows.column("index").to_pylist(), strict=True):
        yield shard, source.sample(shard, index)


def contents_of(source: Any, wanted: Iterable[tuple[str, Sequence[Member]]]) -> Iterator[bytes]:
    """The bytes of some members of each sample, all in order, read shard by shard. InputChanged where one is gone."""
    run: list[Member] = []
    current = ""
    for shard, members in wanted:
        if shard != current and run:
            yield from _read(source, current, run)
            run = []
        current = shard
        run.extend(members)
    if run:
        yield from _read(source, current, run)


def _read(source: Any, shard: str, members: Sequence[Member]) -> Iterator[bytes]:
    try:
        yield from source.read(shard, members)
    except OSError as error:
        raise changed(shard, str(error)) from error


def is_measured(content: bytes, content_hash: str) -> bool:
    """Whether these are the bytes that were measured."""
    return hashlib.sha256(content).hexdigest() == content_hash


def changed(shard: str, image: str) -> InputChanged:
    """The error for an image whose bytes are not those that were measured; its `shard` is not to be trusted."""
    error = InputChanged(
        f"{shard}: {image} is not the image that was measured; nothing was replaced. Run the same command again to "
        "measure it."
    )
    error.shard = shard
    return error


def image_of(sample: Sample, image: str | None) -> Member | None:
    """The member that the ledger calls the sample's image."""
    return next((member for member in sample.members if shown(member.name) == image), None)


def json_of(sample: Sample) -> Member | None:
    """The member with the suffix `json`, in any case."""
    return next((member for member in sample.members if sample.suffix_of(member).lower() == JSON), None)


def suffixes_of(sample: Sample, image: str | None, form: str | None) -> list[bytes]:
    """The suffix under which each member leaves: its own, and that of the format for an image without one.

    Readers of WebDataset pass over a name without a suffix.
    """
    suffixes = [sample.suffix_of(member) for member in sample.members]
    usual = usual_suffix(form or "").encode()
    for n, member in enumerate(sample.members):
        if not suffixes[n] and shown(member.name) == image and usual and usual not in suffixes:
            suffixes[n] = usual
    return suffixes
