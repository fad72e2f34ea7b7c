"""What an input names: paths, globs, braces and folders -> shards, in order, each once."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from curator.errors import ConfigError
from curator.formats import listing, vectors
from curator.formats.base import Shard
from curator.formats.files import GZIPPED
from curator.formats.folder import is_image, walk
from curator.formats.tables import suffix_of
from curator.ledger import shown
from curator.remote import is_url

TAR = ".tar"
IN_FOLDERS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")  # .txt and .json lie beside images as well
VECTORS = "vectors"
TABLE = "table"  # the format of a table until it is looked into
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SHOWN = 5


def shards_of(inputs: Sequence[str], no_input: Sequence[Path | str]) -> list[Shard]:
    """Every shard of the inputs, in the order given, lexicographic inside a glob or a folder, each once.

    `no_input`: folders (as realpath gives them, or URLs) that are passed over where they lie under an input. Raises
    ConfigError with a line per input that is not there.
    """
    shards: dict[str, Shard] = {}
    mistakes = []
    skip = {str(folder) for folder in no_input}
    for given in inputs:
        try:
            for path in expanded(given, skip):
                for shard in _shards(path, skip):
                    shards.setdefault(f"{shard.format}:{real(shard.path)}", shard)
        except ConfigError as error:
            mistakes += error.mistakes
    if not shards and not mistakes:
        links = any(os.path.isdir(p) and any(e.is_symlink() for e in os.scandir(p)) for p in inputs)
        more = " Links to folders in it are not followed: name what they lead to." if links else ""
        mistakes = [f"input: {', '.join(inputs)} holds no tar and no image.{more}"]
    if mistakes:
        raise ConfigError(mistakes)
    return list(_apart(list(shards.values())))


def _apart(shards: Sequence[Shard]) -> Iterator[Shard]:
    """Folders that lie in others of the list are taken out of those: an image is read once."""
    roots = [real(shard.path) for shard in shards if shard.format == "folder"]
    for shard in shards:
        inner = () if shard.format != "folder" else _below(real(shard.path), roots)
        yield replace(shard, skip=tuple(sorted({*shard.skip, *inner}))) if inner else shard


def _below(root: str, paths: Sequence[str] | set[str]) -> tuple[str, ...]:
    return tuple(sorted(path for path in paths if path.startswith(root.rstrip(os.sep) + os.sep)))


def real(path: str) -> str:
    """A path without links in it; a URL as it is."""
    return path if is_url(path) else os.path.realpath(path)


def expanded(given: str, skip: Collection[str] = ()) -> Iterator[str]:
    """The paths that one input means: itself, or what its braces and wildcards stand for.

    Wildcards pass over `skip` (output, store): `*` means the input also where the output lies beside it.
    """
    if is_url(given):
        yield from listing.expanded(given, braces)
    elif not os.path.exists(given) and (glob.has_magic(given) or "{" in given):
        paths = list(dict.fromkeys(braces(given)))
        found = {path: [path] if os.path.exists(path) else _matching(path, skip) for path in paths}
        if missing := [path for path in paths if not found[path]]:
            told = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
            count = f" ({len(missing)} of {len(paths)})" if len(paths) > 1 else ""
            raise ConfigError(f"input: {told}: nothing is there{count}. The folder looked in: {_nearest(missing[0])}.")
        for path in paths:
            yield from found[path]
    elif not os.path.exists(given):
        raise ConfigError(f"input: {given}: there is no such file or folder. The folder looked in: {_nearest(given)}.")
    else:
        yield given


def _matching(pattern: str, skip: Collection[str]) -> list[str]:
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.realpath(path) not in skip)


def braces(text: str) -> Iterator[str]:
    """`a{00..02}.tar` -> a00.tar a01.tar a02.tar; `{a,b}` -> a, b; several and nested ones, in the order of shells.

    Braces that mean neither a list nor a range stand for themselves.
    """
    for start in (n for n, sign in enumerate(text) if sign == "{"):
        parts, end = _parts(text, start)
        options = parts if len(parts) > 1 else _range("".join(parts))
        if options:
            tails = list(braces(text[end:]))
            heads = (head for option in options for head in braces(option))
            yield from (text[:start] + head + tail for head in heads for tail in tails)
            return
    yield text


def _parts(text: str, start: int) -> tuple[list[str], int]:
    """What the commas of the brace at `start` separate, and where the text goes on; nothing if it never closes."""
    parts, depth = [""], 0
    for n, sign in enumerate(text[start + 1 :], start + 1):
        if sign == "}" and depth == 0:
            return parts, n + 1
        depth += (sign == "{") - (sign == "}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [], start


def _range(inside: str) -> list[str]:
    """`0..9`, `000..100`, `9..0..3`, `a..e` -> what they count; nothing for any other text."""
    match = re.fullmatch(r"(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.(-?\d+))?", inside)
    if match is None:
        return []
    first, last, letter, last_letter, step = match.groups()
    begin, end = (ord(letter), ord(last_letter)) if letter else (int(first), int(last))
    by = abs(int(step or 1)) or 1
    counted = range(begin, end + 1, by) if begin <= end else range(begin, end - 1, -by)
    if letter:
        return [chr(n) for n in counted]
    padded = re.match(r"-?0\d", first) or re.match(r"-?0\d", last)
    width = max(len(first), len(last)) if padded else 0
    return [f"{n:0{width}d}" for n in counted]


def _nearest(path: str) -> str:
    """The deepest folder on the way to a path that exists."""
    folder = Path(path).absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    return str(folder)


def _shards(path: str, skip: set[str]) -> Iterator[Shard]:
    """What one path holds: a tar; or all tars and, as one shard, all images below a folder."""
    if is_url(path):
        yield from listing.shards_at(path, skip)
        return
    if os.path.isdir(path):
        yield from _of_folder(path, skip)
        return
    lower = path.lower()
    if lower.endswith(vectors.SUFFIXES):
        yield _vectors(path, vectors.beside_of(path))
        return
    if suffix_of(path):
        yield Shard(_given(path), os.path.abspath(path), TABLE, _size(path))
        return
    if lower.endswith((TAR, *COMPRESSED)):
        yield _tar(path)
        return
    raise ConfigError(f"input: {path} is neither a tar nor a folder. For one image, name its folder.")


def _vectors(path: str, beside: str) -> Shard:
    return Shard(_given(path), os.path.abspath(path), VECTORS, _size(path), beside=beside and os.path.abspath(beside))


def _tar(path: str) -> Shard:
    return Shard(_given(path), os.path.abspath(path), "webdataset", _size(path))


def _given(path: str) -> str:
    """A path as the ledger can hold it: as given, or escaped where its bytes are not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return shown(os.fsencode(path))
    return path


def _size(path: str) -> int:
    """Bytes of a file; 0 where it is gone or a link to nothing, which reading will tell."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _of_folder(path: str, skip: set[str]) -> Iterator[Shard]:
    tars: list[str] = []
    tables: list[str] = []
    lost: list[OSError] = []
    others = size = hidden = 0
    for folder, names, files in os.walk(path, onerror=lost.append):
        names[:] = sorted(n for n in names if not n.startswith(".") and os.path.realpath(f"{folder}/{n}") not in skip)
        hidden += sum(name.startswith(".") for name in files)
        for name in sorted(f for f in files if not f.startswith(".")):
            if name.lower().endswith(IN_FOLDERS):
                tables.append(os.path.join(folder, name))
            if name.lower().endswith((TAR, *GZIPPED)):
                tars.append(os.path.join(folder, name))
            else:
                others += 1
                size += _size(os.path.join(folder, name))
    yield from (_tar(tar) for tar in sorted(tars))
    if not tars and (found := vectors.files_of(path)):
        yield from (_vectors(*pair) for pair in found)
        return
    shard = Shard(_given(path), os.path.abspath(path), "folder", size, skip=_below(os.path.realpath(path), skip))
    if tables and not tars and not any(is_image(shard.path, name) for name, _ in walk(shard)):
        yield from _tables(sorted(tables), others + hidden - len(tables))
        return
    # a folder of tars may have tables and notes beside them: those are no shard of their own; what cannot be looked
    # into is told by the index of the folder
    if lost or (others and (not tars or any(is_image(shard.path, name) for name, _ in walk(shard)))):
        yield shard


def _tables(paths: Sequence[str], ignored: int) -> Iterator[Shard]:
    """The tables of a folder that has nothing else to offer; what is none of them is told with the first."""
    for path in paths:
        yield Shard(_given(path), os.path.abspath(path), TABLE, _size(path), ignored=ignored)
        ignored = 0
