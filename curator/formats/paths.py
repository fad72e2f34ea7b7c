"""What an input names: paths, globs, braces and folders -> shards, in order, each once."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from curator.errors import ConfigError
from curator.formats.base import Shard
from curator.formats.folder import is_image, walk

TAR = ".tar"
TABLES = (".parquet", ".csv", ".jsonl", ".tsv", ".txt", ".json", ".npy", ".npz")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SHOWN = 5


def shards_of(inputs: Sequence[str], no_input: Sequence[Path]) -> list[Shard]:
    """Every shard of the inputs, in the order given, lexicographic inside a glob or a folder, each once.

    `no_input`: folders (as realpath gives them) that are passed over where they lie under an input. Raises
    ConfigError with a line per input that is not there.
    """
    shards: dict[str, Shard] = {}
    mistakes = []
    skip = {str(folder) for folder in no_input}
    for given in inputs:
        try:
            for path in expanded(given):
                for shard in _shards(path, skip):
                    shards.setdefault(f"{shard.format}:{os.path.realpath(shard.path)}", shard)
        except ConfigError as error:
            mistakes += error.mistakes
    if not shards and not mistakes:
        mistakes = [f"input: {', '.join(inputs)} holds no tar and no image."]
    if mistakes:
        raise ConfigError(mistakes)
    return list(_apart(list(shards.values())))


def _apart(shards: Sequence[Shard]) -> Iterator[Shard]:
    """Folders that lie in others of the list are taken out of those: an image is read once."""
    roots = [os.path.realpath(shard.path) for shard in shards if shard.format == "folder"]
    for shard in shards:
        inner = () if shard.format != "folder" else _below(os.path.realpath(shard.path), roots)
        yield replace(shard, skip=tuple(sorted({*shard.skip, *inner}))) if inner else shard


def _below(root: str, paths: Sequence[str] | set[str]) -> tuple[str, ...]:
    return tuple(sorted(path for path in paths if path.startswith(root.rstrip(os.sep) + os.sep)))


def expanded(given: str) -> Iterator[str]:
    """The paths that one input means: itself, or what its braces and wildcards stand for."""
    if re.match(r"[a-z][a-z0-9+.-]*://", given):
        raise ConfigError(f"input: {given} is a URL; this version reads tars and folders on disk.")
    if not os.path.exists(given) and (glob.has_magic(given) or "{" in given):
        paths = list(dict.fromkeys(braces(given)))
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


def _shards(path: str, skip: set[str]) -> Iterator[Shard]:
    """What one path holds: a tar; or all tars and, as one shard, all images below a folder."""
    if os.path.isdir(path):
        yield from _of_folder(path, skip)
        return
    lower = path.lower()
    if lower.endswith(TABLES):
        raise ConfigError(f"input: {path} is a list or a table; this version reads tars and folders of images.")
    if lower.endswith((TAR, *COMPRESSED)):
        yield _tar(path)
        return
    raise ConfigError(f"input: {path} is neither a tar nor a folder. For one image, name its folder.")


def _tar(path: str) -> Shard:
    return Shard(path, os.path.abspath(path), "webdataset", _size(path))


def _size(path: str) -> int:
    """Bytes of a file; 0 where it is gone or a link to nothing, which reading will tell."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _of_folder(path: str, skip: set[str]) -> Iterator[Shard]:
    tars: list[str] = []
    others = size = 0
    for folder, names, files in os.walk(path):
        names[:] = sorted(n for n in names if not n.startswith(".") and os.path.realpath(f"{folder}/{n}") not in skip)
        for name in sorted(f for f in files if not f.startswith(".")):
            if name.lower().endswith(TAR):
                tars.append(os.path.join(folder, name))
            else:
                others += 1
                size += _size(os.path.join(folder, name))
    yield from (_tar(tar) for tar in sorted(tars))
    shard = Shard(path, os.path.abspath(path), "folder", size, _below(os.path.realpath(path), skip))
    # a folder of tars may have tables and notes beside them: those are no shard of their own
    if others and (not tars or any(is_image(shard.path, name) for name, _ in walk(shard))):
        yield shard
