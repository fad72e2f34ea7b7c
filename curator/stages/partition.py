"""partition: which files are the input, and which of them go together in one task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from curator.formats.base import Shard
from curator.formats.paths import shards_of
from curator.stage import ProcessingStage, decides, speeds
from curator.units import Size, parse_bytes

TOGETHER_FILES = 64
TOGETHER_BYTES = 256 << 20


class FilePartitioningStage(ProcessingStage):
    """Find the input files and group them; what is measured and decided does not depend on the grouping."""

    called: ClassVar[str] = "partition"
    version: ClassVar[int] = 1
    ignored: ClassVar[tuple[str, ...]] = ("file_extensions", "storage_options")

    files_per_partition: int | None = speeds(None, ge=1)
    blocksize: Size | None = speeds(None)
    limit: int | None = decides(None, ge=1)
    file_paths: str | tuple[str, ...] | None = speeds(None)
    file_extensions: Any = Field(None, json_schema_extra={"role": "speeds"})
    storage_options: Any = Field(None, json_schema_extra={"role": "speeds"})

    def list(self, inputs: Sequence[str], skip: Sequence[Path | str] = ()) -> list[Shard]:
        """Every shard of the input, in the order given, lexicographic inside a glob or a folder, each once.

        `skip`: folders and URLs that are no input (output, store). Raises ConfigError with a line per input that is
        not there.
        """
        return shards_of(inputs, skip)[: self.limit]

    def group(self, shards: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
        """Shards that one task takes: `files_per_partition` of them, or as many as fit `blocksize`."""
        most_files = self.files_per_partition or (len(shards) if self.blocksize else TOGETHER_FILES)
        most_bytes = parse_bytes(self.blocksize) if self.blocksize else TOGETHER_BYTES
        group: list[Shard] = []
        held = 0
        for shard in shards:
            full = self.files_per_partition is None and held + shard.bytes > most_bytes
            if group and (len(group) >= most_files or full):
                yield group
                group, held = [], 0
            group.append(shard)
            held += shard.bytes
        if group:
            yield group
