"""folder: what is kept leaves as image files with one table beside them, as Hugging Face's imagefolder reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from curator.commit import commit
from curator.formats.imagefolder import SPLITS, Copied, Job, copy_images, paths_of, table_beside
from curator.formats.outgoing import unchanged
from curator.stage import Each, ProcessingStage, Source, decides

ROWS_PER_JOB = 1024
SHOWN = 6  # kinds of members that are told


class ImageFolderWriterStage(ProcessingStage):
    """Write `folder/<key>.<suffix>` and `folder/metadata.parquet`, in input order."""

    called: ClassVar[str] = "folder"
    version: ClassVar[int] = 1
    copies_images: ClassVar[bool] = True

    include_dropped: bool = decides(False)

    def write(
        self, kept: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Write the rows; `output_shard` (the folder) and `output_key` (the path in it) for each, and facts.

        Raises InputChanged where the input is not what was measured.
        """
        if kept.num_rows == 0:
            return {"output_shard": [], "output_key": []}, {"images": 0, "bytes": 0, "remarks": []}
        place = folder / self.name
        place.mkdir()
        named = list(paths_of(source, kept))
        names = [name for name, _ in named]
        has_json = any(has for _, has in named)
        parts = [slice(start, start + ROWS_PER_JOB) for start in range(0, len(names), ROWS_PER_JOB)]
        jobs = (Job(source, n, kept[part], names[part], place) for n, part in enumerate(parts))
        total, left = 0, Counter[str]()
        with unchanged(source, kept, tars=False), commit(place / "metadata.parquet") as file:
            writer: pq.ParquetWriter | None = None
            for done in _in_order(each(copy_images, jobs)):
                part, jsons = parts[done.number], done.jsons if has_json else None
                table = table_beside(kept[part], names[part], jsons, self.include_dropped)
                writer = writer or pq.ParquetWriter(file, table.schema)
                writer.write_table(table)
                total, left = total + done.bytes, left + done.left
            if writer is not None:
                writer.close()
        facts = {"images": len(names), "bytes": total, "remarks": list(self._remarks(names, left))}
        return {"output_shard": [self.name] * len(names), "output_key": names}, facts

    def _remarks(self, names: Sequence[str], left: Counter[str]) -> Iterator[str]:
        if left:
            told = ", ".join(f"{suffix or '(none)'} {n:,}" for suffix, n in left.most_common(SHOWN))
            more = " ..." if len(left) > SHOWN else ""
            yield f"members other than image, caption and json have no place here ({told}{more}); write keeps them all"
        splits = sorted({word.lower() for name in names for word in SPLITS.findall(name)})
        if splits:
            yield (
                f"paths hold {', '.join(splits)}, which Hugging Face's loader takes for the names of splits: load it "
                f"with data_files='{self.name}/metadata.parquet'"
            )


def _in_order(done: Iterator[Copied]) -> Iterator[Copied]:
    """Results by their numbers, which come in order of completion."""
    waiting: dict[int, Copied] = {}
    next_number = 0
    for one in done:
        waiting[one.number] = one
        while next_number in waiting:
            yield waiting.pop(next_number)
            next_number += 1
