"""milvus: the vectors of what is kept into Milvus, a server or a folder here, with the columns to filter by."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from curator.indexes.base import About, lacking
from curator.indexes.rows import columns_of, dim_of
from curator.indexes.sync import check_model, check_owner, namespace_of, owner_of, put, told
from curator.indexes.where import kinds_of
from curator.stage import Each, Embedding, Need, ProcessingStage, Source, decides, speeds


class MilvusWriterStage(ProcessingStage):
    """Bring a collection up to date with the kept rows: one row for each, none that is no longer kept."""

    called: ClassVar[str] = "milvus"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Embedding(),)

    uri: str | None = decides(None)
    collection: str = decides("curator")
    namespace: str | None = decides(None, min_length=1, max_length=64)
    embedding: str | None = decides(None)
    include_dropped: bool = decides(False)
    overwrite: bool = speeds(False)
    batch_size: int = speeds(1000, ge=1, le=5000)

    def mistakes(self) -> list[str]:
        """The packages, where they are not installed."""
        local = self.uri is None or "://" not in self.uri
        wrong = local and self.uri is not None and not self.uri.endswith(".db")
        unfit = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", self.collection) is None
        return [
            *[f"{self.name}.collection: {self.collection!r} cannot be used: letters without accents, digits and _ make "
              "a collection's name, and no digit begins it."] * unfit,
            *lacking(self.name, "milvus", ["pymilvus", *["milvus_lite"] * local]),
            *[f"{self.name}.uri: {self.uri} must end with .db, or be a server's http:// or https:// address."] * wrong,
        ]

    def write(
        self, rows: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Send what is not there, delete what is no longer kept; facts for run.json."""
        from curator.indexes import milvus

        place, model = folder / self.name, source.embedded_by(self.name)
        place.mkdir()
        namespace = self.namespace or namespace_of(source.output)
        kept = self.uri if self.uri is None or milvus.is_server(self.uri) else os.path.abspath(self.uri)
        uri, output = kept or str(place / "vectors.db"), owner_of(source.output)
        dim = dim_of(rows, source, self.name)
        counts = {"rows": 0, "sent": 0, "there": 0, "deleted": 0}
        if not milvus.is_server(uri) and Path(uri).exists():
            milvus.settled(uri, self.collection)
        with milvus.connected(uri, make=True) as client:
            if dim or client.has_collection(self.collection):
                shelf = milvus.MilvusShelf(client, uri, self.collection, namespace, dim)
                check_model(self.name, f"{uri}, {self.collection}", shelf.model(), model)
                check_owner(self.name, f"{uri}, {self.collection}", namespace, shelf.owner(output), self.overwrite)
                counts = put(shelf, rows, source, self.name, namespace, self.include_dropped, self.batch_size)
                shelf.flush()
        if not milvus.is_server(uri) and dim:
            milvus.settled(uri, self.collection)
        columns = kinds_of(columns_of(rows, self.include_dropped).schema)
        where = {"uri": kept, "collection": self.collection, "namespace": namespace, "output": output}
        About("milvus", model, counts["rows"], dim, columns, place=where, run=source.run).save(place)
        return {}, {**counts, "remarks": told(counts, f"{self.uri or 'vectors.db'}, {self.collection}, {namespace}")}
