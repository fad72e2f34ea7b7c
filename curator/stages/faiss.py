"""faiss: the vectors of what is kept as a FAISS index, with the columns beside it, for `curate-search` and others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from curator.indexes.base import About, lacking
from curator.stage import Each, Embedding, Need, ProcessingStage, Source, decides


class FaissWriterStage(ProcessingStage):
    """Write `faiss/image.index`, `metadata.parquet` and `index.json`, made anew in each run."""

    called: ClassVar[str] = "faiss"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = (Embedding(),)

    index: Literal["auto", "flat", "ivf"] = decides("auto")
    flat_rows: int = decides(200_000, ge=1)
    embedding: str | None = decides(None)
    include_dropped: bool = decides(False)

    def mistakes(self) -> list[str]:
        """The package, where it is not installed."""
        return lacking(self.name, "faiss", ["faiss"])

    def write(
        self, rows: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Build the index of the rows; facts for run.json."""
        from curator.indexes import faiss

        place = folder / self.name
        place.mkdir()
        flat = self.index == "flat" or (self.index == "auto" and rows.num_rows <= self.flat_rows)
        flat = flat or not faiss.cells_for(rows.num_rows)
        made = faiss.build(place, rows, source, self.name, flat, self.include_dropped)
        about = About(kind="faiss", model=source.embedded_by(self.name), run=source.run, **made)
        about.save(place)
        return {}, {"vectors": about.count, "type": about.place.get("type"), "remarks": remarks(rows, about)}


def remarks(rows: pa.Table, about: About) -> list[str]:
    """What a person may not expect."""
    left = rows.num_rows - about.count
    return ["no vector was there to be written"] if not about.count else [f"{left:,} without a vector"] * bool(left)
