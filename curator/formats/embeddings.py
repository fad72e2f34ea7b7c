"""Vectors in clip-retrieval's layout, as autofaiss and embedding-reader take them.

    img_emb/img_emb_<i>.npy            (n, d) float16, C order, unit rows
    metadata/metadata_<i>.parquet      row i of the table belongs to row i of the array

Those readers pair the files of the two folders by position in sorted order: numbers are padded, no part is empty,
and nothing else lies there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.commit import commit
from curator.formats.metadata import table_of
from curator.formats.outgoing import TAR
from curator.stage import Array, Mask

HEADER_BYTES = 128


class Parts:
    """The files as they are filled, one pair at a time; leaving it with an error leaves no file of an open pair."""

    def __init__(self, folder: Path, rows_per_file: int, most: int) -> None:
        self.folder, self.rows_per_file = folder, rows_per_file
        self.digits = len(str(max(-(-most // rows_per_file) - 1, 0)))
        self.files = self.rows = self.width = 0
        self.held = 0  # rows of the file that is open
        self._open: ExitStack | None = None
        self._npy: IO[bytes]
        self._parquet: pq.ParquetWriter

    def add(self, emb_ND: Array, table: pa.Table) -> None:
        """Append rows, filling one pair of files after another."""
        start = 0
        while start < len(emb_ND):
            if self._open is None:
                self._begin(emb_ND.shape[1], table.schema)
            some = min(self.rows_per_file - self.held, len(emb_ND) - start)
            self._npy.write(np.ascontiguousarray(emb_ND[start : start + some], "<f2").tobytes())
            self._parquet.write_table(table.slice(start, some))
            start, self.held, self.rows = start + some, self.held + some, self.rows + some
            if self.held == self.rows_per_file:
                self._finish()

    def _begin(self, width: int, schema: pa.Schema) -> None:
        number = f"{self.files:0{self.digits}d}"
        self._open = ExitStack()
        for name in ("img_emb", "metadata"):
            (self.folder / name).mkdir(exist_ok=True)
        self._npy = self._open.enter_context(commit(self.folder / f"img_emb/img_emb_{number}.npy"))
        file = self._open.enter_context(commit(self.folder / f"metadata/metadata_{number}.parquet"))
        self._parquet = pq.ParquetWriter(file, schema)
        self._npy.write(bytes(HEADER_BYTES))
        self.width, self.held, self.files = width, 0, self.files + 1

    def _finish(self) -> None:
        """Now it is known how many rows the open pair has."""
        assert self._open is not None
        with self._open:
            self._parquet.close()
            self._npy.seek(0)
            self._npy.write(npy_header(self.held, self.width))
        self._open = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._open is None:
            return
        if error is None:
            self._finish()
        else:
            self._open.__exit__(kind, error, trace)


def npy_header(rows: int, width: int) -> bytes:
    """The header of a (rows, width) float16 array, of one length whatever the numbers."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {width}), }}".encode()
    length = HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"


def table_beside(source: Any, rows: pa.Table, status: bool) -> pa.Table:
    """`image_path` (a tar's key, a file's path), `caption`, the way back to the ledger, then all that it tells."""
    paths = _paths(source, rows)
    own = {
        "image_path": pa.array(paths, pa.string()),
        "caption": rows.column("caption"),
        **{f"in_{name}": rows.column(name) for name in ("shard", "key", "index")},
    }
    return table_of(rows, own, status)


def _paths(source: Any, rows: pa.Table) -> Iterator[str]:
    for shard, key, image in zip(*(rows.column(name).to_pylist() for name in ("shard", "key", "image")), strict=True):
        yield key if source.shard(shard).format == TAR or image is None else f"{shard.rstrip('/')}/{image}"


def with_vectors(source: Any, stage: str, rows: pa.Table) -> Iterator[tuple[Array, pa.Table]]:
    """(n, D) float16 and the n rows that have a vector, part by part in order."""
    start = 0
    has: Mask
    for emb_ND, has in source.vectors(stage, rows):
        part = rows.slice(start, len(has))
        start += len(has)
        if has.any():
            yield emb_ND[has], part.filter(pa.array(has))
