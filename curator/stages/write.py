"""write: what is kept leaves as WebDataset shards, every member with its original bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from curator.formats.shards import Job, Written, shards_of, write_shard
from curator.stage import Each, ProcessingStage, Source, decides, speeds
from curator.units import Size, counted, parse_bytes

FEW_SHARDS = 8  # fewer than this limit how many readers can share the work


class ImageWriterStage(ProcessingStage):
    """Write `shards/00000.tar` ..., filled across input shards, in input order."""

    called: ClassVar[str] = "write"
    version: ClassVar[int] = 1
    ignored: ClassVar[tuple[str, ...]] = ("deterministic_name",)
    copies_images: ClassVar[bool] = True

    samples_per_shard: int = decides(1000, ge=1)
    max_shard_bytes: Size | None = decides(None)
    min_shards: int | None = decides(None, ge=1)
    include_dropped: bool = decides(False)
    images_per_tar: int | None = decides(None, ge=1)
    output_dir: str | None = speeds(None)
    verbose: bool = speeds(False)
    deterministic_name: Any = Field(None, json_schema_extra={"role": "speeds"})
    remove_image_data: bool = speeds(False)

    def write(
        self, kept: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Write the rows; `output_shard` and `output_key` for each of them, and facts for run.json.

        Raises InputChanged where the input is not what was measured.
        """
        starts = list(self._starts(kept, source))
        if not starts:
            return {"output_shard": [], "output_key": []}, _facts([])
        place = folder / "shards"
        place.mkdir()
        ends = [*starts[1:], kept.num_rows]
        width = max(5, len(str(len(starts) - 1)))
        jobs = (
            Job(source, kept.slice(start, end - start), place / f"{n:0{width}d}")
            for n, (start, end) in enumerate(zip(starts, ends, strict=True))
        )
        folders = shards_of(source, kept, "folder")  # once for all jobs: it is a look at every file below
        for shard in folders:
            source.check(shard)
        written = sorted(each(write_shard, jobs), key=lambda w: w.stem)
        for shard in folders:
            source.check(shard)
        keys = [key for shard in written for key in shard.keys]
        shards = [f"{shard.stem}.tar" for shard in written for _ in shard.keys]
        return {"output_shard": shards, "output_key": keys}, _facts(written)

    def _starts(self, kept: pa.Table, source: Any) -> Iterator[int]:
        """The first row of each output shard."""
        even = self._even_starts(kept.num_rows)
        most = self.images_per_tar or self.samples_per_shard
        if self.max_shard_bytes is None:
            yield from even or range(0, kept.num_rows, most)
            return
        sizes = _sample_bytes(kept, source)
        limit, held, rows = parse_bytes(self.max_shard_bytes), 0, 0
        for row in range(kept.num_rows):
            if rows == 0 or rows >= most or held + sizes[row] > limit or row in even:
                yield row
                held = rows = 0
            held, rows = held + int(sizes[row]), rows + 1

    def _even_starts(self, count: int) -> dict[int, None]:
        """Where `min_shards` is more than full shards would be: the starts of so many, none a sample larger."""
        wanted = min(self.min_shards or 0, count)
        if -(-count // (self.images_per_tar or self.samples_per_shard)) >= wanted:
            return {}
        return dict.fromkeys(n * count // wanted for n in range(wanted))


def _sample_bytes(kept: pa.Table, source: Any) -> Any:
    """(N,) bytes that each sample takes in a tar, headers included."""
    places = zip(kept.column("shard").to_pylist(), kept.column("index").to_pylist(), strict=True)
    return np.array([sum(512 + -(-m.size // 512) * 512 for m in source.sample(*p).members) for p in places], np.int64)


def _facts(written: Sequence[Written]) -> dict[str, Any]:
    suffixes = sorted(set[tuple[str, ...]]().union(*(shard.suffixes for shard in written)))
    remarks = []
    if named := sum(shard.named for shard in written):
        remarks.append(f"{counted(named, 'image')} came without a suffix and left with that of the format")
    bare = any("" in members for members in suffixes)
    if bare:
        remarks.append("members without a suffix are written as they came; other readers of WebDataset pass over them")
    if len(suffixes) > 1:
        told = "; ".join(" ".join(m or "(none)" for m in s) for s in suffixes[:4]) + (
            " ..." if len(suffixes) > 4 else ""
        )
        remarks.append(
            f"samples have different members ({told}): webdataset reads them, Hugging Face's loader wants the same "
            "members in all"
        )
    if len(written) < FEW_SHARDS and sum(len(s.keys) for s in written) > FEW_SHARDS:
        remarks.append(
            f"{len(written)} shard{'s' if len(written) > 1 else ''}: no more readers than that can share the work; "
            "write.min_shards=N makes more"
        )
    return {
        "shards": len(written),
        "samples": sum(len(shard.keys) for shard in written),
        "bytes": sum(shard.bytes for shard in written),
        "uniform": len(suffixes) <= 1 and not bare,
        "remarks": remarks,
    }
