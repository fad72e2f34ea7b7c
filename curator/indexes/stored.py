"""The store's own vectors as an index, where a run wrote none: every kept row is compared, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator import address
from curator.errors import StoreError
from curator.indexes.base import About, Hits
from curator.indexes.rows import columns_of, unit
from curator.indexes.where import Condition, kinds_of, mask_of
from curator.stage import Array, Mask
from curator.store import Store, vectors_of


class StoredIndex:
    """The kept rows of a ledger, whose vectors lie in the store in the same order."""

    def __init__(self, store: Store, ledger: pa.Table, inputs: list[Mapping[str, Any]], model: Mapping[str, Any]):
        sound = ledger.filter(ledger.column("index").combine_chunks().is_valid())  # else a damaged shard as a whole
        self.store, self.inputs = store, inputs
        self.kept: Mask = pc.equal(sound.column("status"), "kept").to_numpy()
        self.rows = columns_of(sound, False)
        self.about = About("store", model, int(self.kept.sum()), 0, kinds_of(self.rows.schema))

    def nearest(self, vector: Array, k: int, where: Condition | None) -> Hits:
        """As `Index.nearest`; holds one piece and the best so far."""
        wanted = self.kept if where is None else self.kept & mask_of(where, self.rows)
        numbers, best = np.empty(0, np.int64), np.empty((0, len(vector)), np.float32)
        for start, emb_ND, has in self._pieces():
            taken = np.flatnonzero(has & wanted[start : start + len(has)])
            if len(taken):
                numbers, best = np.append(numbers, taken + start), np.concatenate([best, unit(emb_ND[taken])])
                order = np.argsort(-(best @ vector), kind="stable")[:k]
                numbers, best = numbers[order], best[order]
        return Hits(self.rows.take(pa.array(numbers)), best @ vector, best)

    def _pieces(self) -> Iterator[tuple[int, Array, Mask]]:
        """The first row of each piece, its vectors (N, D) float16 and which rows have one."""
        stage, key, start = self.about.model["stage"], self.about.model["key"], 0
        for shard in self.inputs:
            end = start + int(shard["samples"])
            for content in shard["contents"]:
                stored = self.store.get(stage, address.measurement(key, content))
                if stored is None:
                    raise StoreError(
                        f"{shard['shard']}: its vectors are not in the store {self.store.root}. The run's command "
                        "makes them again; with faiss among its stages, into an index that needs no store."
                    )
                emb_ND, has = vectors_of(stored.table)
                yield start, emb_ND, has
                start += len(has)
            assert start == end, f"{shard['shard']}: {start} rows in the store, {end} in run.json"

    def close(self) -> None:
        """Nothing is held open."""
