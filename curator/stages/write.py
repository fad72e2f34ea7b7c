"""write: what is kept leaves as WebDataset shards, every member with its original bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from curator.formats.metadata import fields_of
from curator.formats.outgoing import unchanged
from curator.formats.shards import Job, Written, suffix_sets, write_shard
from curator.stage import Array, Each, ProcessingStage, Source, decides, speeds
from curator.units import Size, counted, parse_bytes

FEW_SHARDS = 8  # fewer than this limit how many readers can share the work
SHOWN = 4  # kinds of samples that are told
INFERRED = 5  # samples from which Hugging Face's loader takes the types of all


@dataclass(frozen=True)
class Part:
    """Rows that fill shards of their own: all of them, or those whose samples have the same suffixes."""

    folder: str  # below shards/, empty for shards/ itself
    rows: Array


class ImageWriterStage(ProcessingStage):
    """Write `shards/00000.tar` ..., filled across input shards, in input order."""

    called: ClassVar[str] = "write"
    version: ClassVar[int] = 2
    ignored: ClassVar[tuple[str, ...]] = ("deterministic_name",)
    copies_images: ClassVar[bool] = True

    samples_per_shard: int = decides(1000, ge=1)
    max_shard_bytes: Size | None = decides(None)
    min_shards: int | None = decides(None, ge=1)
    add_metadata: bool = decides(False)
    split_by_suffix: bool = decides(False)
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
        if kept.num_rows == 0:
            return {"output_shard": [], "output_key": []}, _facts({})
        place = folder / "shards"
        place.mkdir()
        fields = tuple(fields_of(source.ledger, self.include_dropped)) if self.add_metadata else ()
        parts = self._parts(kept, source, bool(fields))
        jobs = [job for part in parts for job in self._jobs(part, kept, source, place, fields)]
        with unchanged(source, kept, tars=False):
            written = {w.place: w for w in each(write_shard, jobs)}
        ordered = [written[job.place] for job in jobs]
        rows = np.concatenate([part.rows for part in parts])
        columns = {
            "output_shard": [f"{shard.place}.tar" for shard in ordered for _ in shard.keys],
            "output_key": [key for shard in ordered for key in shard.keys],
        }
        facts = _facts({part.folder: [w for w in ordered if w.folder == part.folder] for part in parts})
        if (self.min_shards or 0) > kept.num_rows:
            facts["remarks"].append(
                f"write.min_shards={self.min_shards} is more than the {counted(kept.num_rows, 'image')}: "
                f"{counted(len(ordered), 'shard')}, an image in each"
            )
        facts["remarks"] += _null_at_first(kept, [part.rows for part in parts], fields)
        return {name: _in_order(values, rows) for name, values in columns.items()}, facts

    def _parts(self, kept: pa.Table, source: Source, told: bool) -> list[Part]:
        if not self.split_by_suffix:
            return [Part("", np.arange(kept.num_rows))]
        return [Part(name, rows) for name, rows in suffix_sets(source, kept, told).items()]

    def _jobs(
        self, part: Part, kept: pa.Table, source: Source, place: Path, fields: tuple[str, ...]
    ) -> Iterator[Job]:
        rows = kept.take(pa.array(part.rows)) if part.folder else kept
        if part.folder:
            (place / part.folder).mkdir()
        starts = list(self._starts(rows, source))
        width = max(5, len(str(len(starts) - 1)))
        for n, (start, end) in enumerate(zip(starts, [*starts[1:], rows.num_rows], strict=True)):
            taken = rows.slice(start, end - start)
            yield Job(source, taken, place, part.folder, f"{n:0{width}d}", fields, self.include_dropped)

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


def _in_order(values: Sequence[Any], rows: Array) -> list[Any]:
    """Values of rows as they were written, in the order of the rows."""
    ordered = np.empty(len(rows), object)
    ordered[rows] = values
    return ordered.tolist()


def _facts(parts: Mapping[str, Sequence[Written]]) -> dict[str, Any]:
    sets = {folder: sorted(set[tuple[str, ...]]().union(*(w.suffixes for w in ws))) for folder, ws in parts.items()}
    uniform = {folder: len(suffixes) <= 1 and "" not in suffixes[0] for folder, suffixes in sets.items()}
    written = [shard for shards in parts.values() for shard in shards]
    facts: dict[str, Any] = {
        "shards": len(written),
        "samples": sum(len(shard.keys) for shard in written),
        "bytes": sum(shard.bytes for shard in written),
        "uniform": all(uniform.values()),
        "remarks": [*_about_members(sets, written), *_about_shards(written)],
    }
    if any(parts):
        facts["sets"] = [
            {"folder": f"shards/{folder}", "members": list(sets[folder][0]), "uniform": uniform[folder],
             "shards": len(shards), "samples": sum(len(shard.keys) for shard in shards)}
            for folder, shards in parts.items()
        ]  # fmt: skip
    return facts


def _about_members(sets: Mapping[str, Sequence[tuple[str, ...]]], written: Sequence[Written]) -> Iterator[str]:
    if named := sum(shard.named for shard in written):
        yield f"{counted(named, 'image')} came without a suffix and left with that of the format"
    if any("" in members for suffixes in sets.values() for members in suffixes):
        yield "members without a suffix are written as they came; other readers of WebDataset pass over them"
    for folder, suffixes in sets.items():
        if len(suffixes) > 1:
            where = f"shards/{folder}: " if folder else ""
            advice = "" if folder else "; write.split_by_suffix=true gives each kind its own shards"
            yield (
                f"{where}samples have different members ({_listed(suffixes)}): webdataset reads them, Hugging Face's "
                f"loader wants the same members in all{advice}"
            )
    if any(sets):
        told = _listed([suffixes[0] for suffixes in sets.values()])
        yield f"{counted(len(sets), 'kind')} of samples, each with shards of its own: {told}"
    if aside := sum(shard.aside for shard in written):
        yield f"the json of {counted(aside, 'sample')} is no object: it left as it came, and curator.json beside it"
    if renamed := sum(shard.renamed for shard in written):
        yield f"the json of {counted(renamed, 'sample')} had a name of ours already: ours begins with curator_ there"


def _listed(suffixes: Sequence[tuple[str, ...]]) -> str:
    told = "; ".join(" ".join(member or "(none)" for member in members) for members in suffixes[:SHOWN])
    return told + (" ..." if len(suffixes) > SHOWN else "")


def _about_shards(written: Sequence[Written]) -> Iterator[str]:
    if len(written) < FEW_SHARDS and sum(len(shard.keys) for shard in written) > FEW_SHARDS:
        yield (
            f"{counted(len(written), 'shard')}: no more readers than that can share the work; "
            "write.min_shards=N makes more"
        )


def _null_at_first(kept: pa.Table, parts: Sequence[Array], fields: Sequence[str]) -> Iterator[str]:
    """Fields that Hugging Face's loader would take for always null, since they are so in the first samples."""
    for name in fields:
        values = kept.column(name)
        if values.null_count and any(_only_later(values.take(pa.array(rows))) for rows in parts):
            yield (
                f"{name} is null in the first {INFERRED} samples and not in all: Hugging Face's loader takes its type "
                "from these, so give it features=..."
            )


def _only_later(values: pa.ChunkedArray) -> bool:
    first = values.slice(0, INFERRED)
    return bool(first.null_count == len(first) and values.null_count < len(values))
