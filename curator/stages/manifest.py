"""manifest: a list of what is kept, and DataComp's uids of it. Copies no image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.commit import commit
from curator.formats.keeplist import Job, uid_array, uids_in_json, write_csv, write_lines
from curator.formats.metadata import STATUS
from curator.stage import Each, ProcessingStage, Source, decides
from curator.units import counted

COLUMNS = ("shard", "key", "index", "image", "content_hash")
UID_COLUMN = "in_uid"
LOOKED_AT = 16  # samples that tell whether there are uids in json members
ROWS_PER_JOB = 4096


class ManifestWriterStage(ProcessingStage):
    """Write `manifest/manifest.parquet`, and `manifest/uids.npy` where samples have a uid."""

    called: ClassVar[str] = "manifest"
    version: ClassVar[int] = 1
    light: ClassVar[bool] = True

    format: Literal["parquet", "csv", "txt"] = decides("parquet")
    uids: bool = decides(True)
    include_dropped: bool = decides(False)

    def write(
        self, kept: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Write the list; no columns, and facts for run.json."""
        place = folder / self.name
        place.mkdir()
        table = kept.select([*COLUMNS, *(STATUS if self.include_dropped else ())])
        uids = self._uids(kept, source, each) if self.uids else None
        facts: dict[str, Any] = {"rows": kept.num_rows, "remarks": []}
        if uids is not None:
            table = table.append_column("uid", pa.array(uids, pa.string()))
            facts["uids"], facts["remarks"] = self._write_uids(kept, uids, place)
        with commit(place / f"manifest.{self.format}") as file:
            if self.format == "parquet":
                pq.write_table(table, file)
            elif self.format == "csv":
                write_csv(file, table)
            else:
                names = pc.coalesce(table.column("image"), table.column("key"))
                write_lines(file, table.column("shard").to_pylist(), names.to_pylist())
        return {}, facts

    def _uids(self, kept: pa.Table, source: Source, each: Each) -> list[str | None] | None:
        """The uid of each row: the input's column, or else what the json members hold; None where nobody has one."""
        if UID_COLUMN in kept.column_names:
            return [None if uid is None else str(uid) for uid in kept.column(UID_COLUMN).to_pylist()]
        some = np.unique(np.linspace(0, max(kept.num_rows - 1, 0), min(LOOKED_AT, kept.num_rows)).astype(np.int64))
        if not any(uids_in_json(Job(source, 0, kept.take(pa.array(some))))[1]):
            return None
        starts = range(0, kept.num_rows, ROWS_PER_JOB)
        jobs = (Job(source, n, kept.slice(start, ROWS_PER_JOB)) for n, start in enumerate(starts))
        return [uid for _, part in sorted(each(uids_in_json, jobs)) for uid in part]

    def _write_uids(self, kept: pa.Table, uids: Sequence[str | None], place: Path) -> tuple[int, list[str]]:
        """DataComp's array, always of what is kept alone: it holds no status."""
        is_kept = pc.equal(kept.column("status"), "kept").to_pylist()
        array, repeated, odd = uid_array(uid for uid, keep in zip(uids, is_kept, strict=True) if keep)
        with commit(place / "uids.npy") as file:
            np.save(file, array)
        return len(array), list(_remarks(repeated, odd, sum(uid is None for uid in uids)))


def _remarks(repeated: int, odd: int, missing: int) -> Iterator[str]:
    if repeated:
        yield (
            f"{counted(repeated, 'uid')} more than once: uids.npy has each once, since DataComp's resharder writes "
            "each of them out"
        )
    if odd:
        yield f"{counted(odd, 'uid')} of other than 32 hexadecimal digits: not in uids.npy"
    if missing:
        yield f"{counted(missing, 'sample')} without a uid: not in uids.npy"
