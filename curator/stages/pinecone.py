"""pinecone: the vectors of what is kept into an index of Pinecone's, with the columns to filter by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from curator.indexes.base import About, lacking
from curator.indexes.rows import columns_of, dim_of
from curator.indexes.sync import check_model, check_owner, namespace_of, owner_of, put, told
from curator.indexes.where import kinds_of
from curator.stage import Each, Embedding, Need, ProcessingStage, Source, decides, speeds


class PineconeWriterStage(ProcessingStage):
    """Bring an index's namespace up to date with the kept rows: one row for each, none that is no longer kept."""

    called: ClassVar[str] = "pinecone"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Embedding(),)

    host: str | None = decides(None)
    index: str | None = decides(None)
    namespace: str | None = decides(None, min_length=1, max_length=64)
    embedding: str | None = decides(None)
    include_dropped: bool = decides(False)
    overwrite: bool = speeds(False)
    batch_size: int | None = speeds(None, ge=1, le=1000)

    def mistakes(self) -> list[str]:
        """The package, the index's address or the key, where they are missing."""
        from curator.indexes.pinecone import mistakes_of_host

        return [*lacking(self.name, "pinecone", ["pinecone"]), *mistakes_of_host(self.host, self.index, self.name)]

    def write(
        self, rows: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Send what is not there, delete what is no longer kept; facts for run.json."""
        from curator.indexes import pinecone

        place, model = folder / self.name, source.embedded_by(self.name)
        place.mkdir()
        namespace = self.namespace or namespace_of(source.output)
        dim = dim_of(rows, source, self.name)
        where, output = self.host or self.index or "", owner_of(source.output)
        with pinecone.connected(self.host, self.index) as client:
            shelf = pinecone.PineconeShelf(client, where, namespace, dim)
            check_model(self.name, f"{where}, {namespace}", shelf.model(), model)
            check_owner(self.name, where, namespace, shelf.owner(output), self.overwrite)
            size = self.batch_size or pinecone.batch_for(dim)
            counts = put(shelf, rows, source, self.name, namespace, self.include_dropped, size)
        columns = kinds_of(columns_of(rows, self.include_dropped).schema)
        found = {"host": self.host, "index": self.index, "namespace": namespace, "output": output}
        About("pinecone", model, counts["rows"], dim, columns, place=found, run=source.run).save(place)
        return {}, {**counts, "remarks": told(counts, f"{where}, {namespace}")}
