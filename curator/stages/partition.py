"""partition: which files are the input, and which of them go together in one task."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from curator.errors import ConfigError
from curator.formats.base import Shard
from curator.stage import ProcessingStage, decides, speeds
from curator.units import Size, parse_bytes

TAR = ".tar"
TABLES = (".parquet", ".csv", ".jsonl", ".tsv", ".txt", ".json", ".npy", ".npz")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TOGETHER_FILES = 64
TOGETHER_BYTES = 256 << 20
SHOWN = 5


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

    def list(self, inputs: Sequence[str], skip: Sequence[Path] = ()) -> list[Shard]:
        """Every shard of the input, in the order given, lexicographic inside a glob or a folder, each once.

        `skip`: folders that are no input (output, store). Raises ConfigError with a line per input that is not there.
        """
        shards: dict[str, Shard] = {}
        mistakes = []
        for given in inputs:
            try:
                for path in expanded(given):
                    for shard in _shards(path, skip):
                        shards.setdefault(f"{shard.format}:{shard.path}", shard)
            except ConfigError as error:
                mistakes += error.mistakes
        if not shards and not mistakes:
            mistakes = [f"input: {', '.join(inputs)} holds no tar and no image."]
        if mistakes:
            raise ConfigError(mistakes)
        return [*shards.values()][: self.limit]

    def group(self, shards: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
        """Shards that one task takes: `files_per_partition` of them, or as many as fit `blocksize`."""
        most_files = self.files_per_partition or (len(shards) if self.blocksize else TOGETHER_FILES)
        most_bytes = parse_bytes(self.blocksize) if self.blocksize else TOGETHER_BYTES
        group: list[Shard] = []
        for shard in shards:
            full = self.files_per_partition is None and sum(s.bytes for s in group) + shard.bytes > most_bytes
            if group and (len(group) >= most_files or full):
                yield group
                group = []
            group.append(shard)
        if group:
            yield group


def expanded(given: str) -> Iterator[str]:
    """The paths that one input means: itself, or what its braces and wildcards stand for."""
    if re.match(r"[a-z][a-z0-9+.-]*://", given):
        raise ConfigError(f"input: {given} is a URL; this version reads tars and folders on disk.")
    if not os.path.exists(given) and (glob.has_magic(given) or "{" in given):
        paths = list(braces(given))
        found = {path: sorted(glob.glob(path, recursive=True)) for path in paths}
        if missing := [path for path in paths if not found[path]]:
            shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
            count = f" ({len(missing)} of {len(paths)})" if len(paths) > 1 else ""
            raise ConfigError(f"input: {shown}: nothing is there{count}. The folder looked in: {_nearest(missing[0])}.")
        for path in paths:
            yield from found[path]
    elif not os.path.exists(given):
        raise ConfigError(f"input: {given}: there is no such file or folder. The folder looked in: {_nearest(given)}.")
    else:
        yield given


def braces(text: str) -> Iterator[str]:
    """`a{00..02}.tar` -> a00.tar a01.tar a02.tar; `{a,b}` -> a, b; several and nested ones, as shells do."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        yield text
        return
    before, inside, after = text[: match.start()], match.group(1), text[match.end() :]
    for option in _options(inside):
        yield from braces(before + option + after)


def _options(inside: str) -> Sequence[str]:
    numbers = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?", inside)
    if numbers is None:
        return inside.split(",") if "," in inside else [f"[{{]{inside}[}}]"]
    first, last, step = numbers.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    by = max(1, int(step or 1)) * (1 if int(first) <= int(last) else -1)
    return [f"{n:0{width}d}" for n in range(int(first), int(last) + (1 if by > 0 else -1), by)]


def _nearest(path: str) -> str:
    """The deepest folder on the way to a path that exists."""
    folder = Path(path).absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    return str(folder)


def _shards(path: str, skip: Sequence[Path]) -> Iterator[Shard]:
    """What one path holds: a tar; or all tars and, as one shard, all images below a folder."""
    if os.path.isdir(path):
        yield from _of_folder(path, {str(s) for s in skip})
        return
    lower = path.lower()
    if lower.endswith(TABLES):
        raise ConfigError(f"input: {path} is a list or a table; this version reads tars and folders of images.")
    if lower.endswith((TAR, *COMPRESSED)):
        yield _tar(path)
        return
    raise ConfigError(f"input: {path} is neither a tar nor a folder. For one image, name its folder.")


def _tar(path: str) -> Shard:
    return Shard(path, os.path.abspath(path), "webdataset", os.path.getsize(path))


def _of_folder(path: str, skip: set[str]) -> Iterator[Shard]:
    tars: list[str] = []
    others = size = 0
    for folder, names, files in os.walk(path):
        names[:] = sorted(n for n in names if not n.startswith(".") and os.path.abspath(f"{folder}/{n}") not in skip)
        for name in sorted(f for f in files if not f.startswith(".")):
            if name.lower().endswith(TAR):
                tars.append(os.path.join(folder, name))
            else:
                others += 1
                size += os.path.getsize(os.path.join(folder, name))
    yield from (_tar(tar) for tar in sorted(tars))
    absolute = os.path.abspath(path)
    if others and not (tars and _only_beside_tars(path, skip)):
        below = tuple(sorted(s for s in skip if s.startswith(absolute + os.sep)))
        yield Shard(path, absolute, "folder", size, below)


def _only_beside_tars(path: str, skip: set[str]) -> bool:
    """Whether a folder of tars holds no image besides: its tables and notes are then no shard of their own."""
    from curator.formats.folder import is_image, walk

    shard = Shard(path, os.path.abspath(path), "folder", 0, tuple(skip))
    return not any(is_image(shard.path, name) for name, _ in walk(shard))
