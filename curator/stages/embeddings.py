"""embeddings: the vectors of what is kept, in clip-retrieval's layout, for autofaiss and embedding-reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from curator.formats.embeddings import Parts, table_beside, with_vectors
from curator.stage import Each, Embedding, ProcessingStage, Source, decides
from curator.units import counted


class EmbeddingWriterStage(ProcessingStage):
    """Write `embeddings/img_emb/img_emb_<i>.npy` and `embeddings/metadata/metadata_<i>.parquet`, in input order."""

    called: ClassVar[str] = "embeddings"
    version: ClassVar[int] = 1
    needs = (Embedding(),)

    embedding: str | None = decides(None)
    rows_per_file: int = decides(1_000_000, ge=1)
    include_dropped: bool = decides(False)

    def write(
        self, kept: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Write the vectors and their rows; no columns, and facts for run.json."""
        place = folder / self.name
        place.mkdir()
        with Parts(place, self.rows_per_file, kept.num_rows) as parts:
            for emb_ND, rows in with_vectors(source, self.name, kept):
                parts.add(emb_ND, table_beside(source, rows, self.include_dropped))
        facts: dict[str, Any] = {"rows": parts.rows, "files": parts.files, "width": parts.width, "remarks": []}
        if (without := kept.num_rows - parts.rows) > 0:
            facts["remarks"] = [f"{counted(without, 'row')} without a vector: not in it"]
        if not parts.rows:
            facts["remarks"].append("no row has a vector, so nothing was written")
        return {}, facts
