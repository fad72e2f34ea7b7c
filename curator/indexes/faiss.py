"""FAISS: `image.index` and, row by row beside it, `metadata.parquet`. The one file that knows FAISS.

A small set is searched whole (Flat, float32). A large one is cut into cells (IVF) whose nearest are searched, its
vectors kept as the float16 numbers that are stored anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.commit import commit
from curator.errors import ConfigError
from curator.indexes.base import About, Hits
from curator.indexes.rows import batches, columns_of, ids_of, unit
from curator.indexes.where import Condition, kinds_of, mask_of
from curator.stage import Array, Source

FILE, ROWS = "image.index", "metadata.parquet"
BATCH = 8192
TRAINED_ON = 64  # rows for each cell
SEED = 0


def _library() -> Any:
    """FAISS, imported when it is first used; its own type stubs do not fit its Python layer."""
    return import_module("faiss")


def cells_for(count: int) -> int:
    """How many cells so many rows are cut into: four times the root of their number, as FAISS's guide has it."""
    return max(1, min(4 * round(math.sqrt(count)), count // TRAINED_ON))


def probes_for(cells: int) -> int:
    """How many cells a query looks into: a sixteenth of them, 16 at least."""
    return min(cells, max(16, cells // 16))


def build(folder: Path, rows: pa.Table, source: Source, stage: str, flat: bool, with_status: bool) -> dict[str, Any]:
    """Write the index of some rows and their metadata; `count`, `dim`, `columns` and `place` of its About."""
    faiss, index = _library(), None
    taken: list[Array] = []
    for numbers, emb_ND in batches(rows, source, stage, BATCH):
        index = _empty(emb_ND.shape[1], rows, source, stage, flat) if index is None else index
        index.add(emb_ND)
        taken.append(numbers)
    table = rows.take(pa.array(np.concatenate(taken) if taken else np.empty(0, np.int64)))
    metadata = columns_of(table, with_status).add_column(0, "id", pa.array(ids_of(table), pa.string()))
    with commit(folder / ROWS) as file:
        pq.write_table(metadata, file, compression="zstd")
    place: dict[str, Any] = {}
    if index is not None:
        with commit(folder / FILE) as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        place = {"type": "Flat"} if flat else {"type": "IVF", "cells": index.nlist, "probes": probes_for(index.nlist)}
    columns = kinds_of(metadata.schema)
    return {"count": table.num_rows, "dim": 0 if index is None else index.d, "columns": columns, "place": place}


def _empty(dim: int, rows: pa.Table, source: Source, stage: str, flat: bool) -> Any:
    """An index without rows; one of cells is trained on a seeded sample of them."""
    faiss = _library()
    if flat:
        return faiss.IndexFlatIP(dim)
    cells = cells_for(rows.num_rows)
    rng = np.random.default_rng(SEED)
    sample = np.sort(rng.choice(rows.num_rows, min(rows.num_rows, TRAINED_ON * cells), replace=False))
    vectors = [emb_ND for _, emb_ND in batches(rows.take(pa.array(sample)), source, stage, BATCH)]
    middles = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        middles, dim, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    middles.this.disown()  # the index outlives this function, and takes its middles with it
    index.own_fields = True
    index.cp.seed, index.cp.max_points_per_centroid = SEED + 1, TRAINED_ON
    index.train(np.concatenate(vectors))
    return index


class FaissIndex:
    """What `build` wrote."""

    def __init__(self, folder: Path) -> None:
        faiss = _library()
        self.about = About.load(folder)
        self.rows = pq.read_table(folder / ROWS)
        self.index: Any = None
        if self.about.count:
            try:
                self.index = faiss.read_index(str(folder / FILE))
            except RuntimeError as error:
                raise ConfigError(f"{folder / FILE}: FAISS cannot read it: {str(error).splitlines()[-1]}.") from None
            if self.index.ntotal != self.rows.num_rows:
                raise ConfigError(
                    f"{folder}: {FILE} holds {self.index.ntotal:,} vectors and {ROWS} {self.rows.num_rows:,} rows. "
                    "Write the index again."
                )

    def nearest(self, vector: Array, k: int, where: Condition | None) -> Hits:
        """As `Index.nearest`. Cells are looked into until there are k, or none is left."""
        mask = np.ones(self.rows.num_rows, bool) if where is None else mask_of(where, self.rows)
        most = min(k, int(mask.sum()))
        if self.index is None or not most:
            return Hits(self.rows.slice(0, 0), np.empty(0, np.float32), np.empty((0, len(vector)), np.float32))
        for options in self._options(mask if where is not None else None):
            similarity, numbers, vectors = self.index.search_and_reconstruct(vector[None], most, params=options)
            if (numbers[0] >= 0).sum() == most:
                break
        found = numbers[0] >= 0
        return Hits(self.rows.take(pa.array(numbers[0][found])), similarity[0][found], unit(vectors[0][found]))

    def _options(self, mask: Array | None) -> Iterator[Any]:
        faiss = _library()
        chosen = {"sel": faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))} if mask is not None else {}
        if "probes" not in self.about.place:
            yield faiss.SearchParameters(**chosen)
            return
        yield faiss.SearchParametersIVF(nprobe=self.about.place["probes"], **chosen)
        yield faiss.SearchParametersIVF(nprobe=self.about.place["cells"], **chosen)

    def close(self) -> None:
        """Nothing is held open."""
