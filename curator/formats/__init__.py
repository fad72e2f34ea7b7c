"""Bytes in and out: one file per format; `reader_of` finds the one that reads a shard."""

from __future__ import annotations

from curator.formats.base import Reader, Shard
from curator.formats.folder import FolderReader
from curator.formats.lists import TableReader
from curator.formats.vectors import VectorReader
from curator.formats.webdataset import TarReader

READERS: dict[str, Reader] = {
    "webdataset": TarReader(),
    "folder": FolderReader(),
    "vectors": VectorReader(),
    **dict.fromkeys(("list", "urls", "parquet"), TableReader()),
}


def reader_of(shard: Shard) -> Reader:
    """The reader of a shard's format."""
    return READERS[shard.format]
