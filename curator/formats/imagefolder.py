"""Images as files with one table beside them, as Hugging Face's `imagefolder` reads it.

    folder/metadata.parquet        file_name, caption, json, the way back (in_shard, in_key, in_index), then all that
                                   the ledger tells
    folder/<key>.<suffix>          original bytes

A path is made of a key, and a key comes from a stranger: none leaves the folder, and none is one that a file system
or Hugging Face's loader takes for something else.
"""

from __future__ import annotations

import copy
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curator.commit import commit_bytes
from curator.formats.base import Member, Sample
from curator.formats.folder import IMAGE_SUFFIXES
from curator.formats.metadata import table_of
from curator.formats.outgoing import (
    changed,
    contents_of,
    image_of,
    is_measured,
    json_of,
    samples_of,
    unchanged,
)
from curator.signatures import usual_suffix

LONGEST_NAME, LONGEST_SUFFIX, LONGEST_PATH = 180, 32, 900  # bytes
UNSAFE = re.compile(r'[<>:"\\|?*.]')
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)")
SPLITS = re.compile(
    r"(?i)(?:^|[-._ /\d])(train|training|val|valid|validation|dev|test|testing|eval|evaluation)(?=[-._ /\d])"
)
"""Words in a path that Hugging Face's loader takes for the names of splits."""
IMAGES = re.compile(r"(.*_)?file_names?")
"""Columns that it takes for paths of further images."""


@dataclass(frozen=True)
class Job:
    """Some rows, and the path below the folder that each one's image leaves under."""

    source: Any  # phases.write.StoredSource
    number: int
    rows: pa.Table
    names: Sequence[str]
    folder: Path


@dataclass(frozen=True)
class Copied:
    """What was written of one job."""

    number: int
    bytes: int
    jsons: Sequence[str | None]
    left: Counter[str]  # suffixes of members that have no place here


def copy_images(job: Job) -> Copied:
    """Write each row's image. Raises InputChanged where bytes are not those that were measured."""
    source = copy.copy(job.source)
    images = job.rows.column("image").to_pylist()
    samples = list(samples_of(source, job.rows))
    wanted = [_wanted(sample, image) for (_, sample), image in zip(samples, images, strict=True)]
    expected = job.rows.column("content_hash").to_pylist()
    for parent in sorted({(job.folder / name).parent for name in job.names}):
        parent.mkdir(parents=True, exist_ok=True)
    size, jsons = 0, []
    with unchanged(source, job.rows, tars=True):
        contents = contents_of(source, ((shard, some) for (shard, _), some in zip(samples, wanted, strict=True)))
        for (shard, _), some, image, content_hash, name in zip(
            samples, wanted, images, expected, job.names, strict=True
        ):
            content = next(contents) if some else b""
            if not is_measured(content, content_hash):
                raise changed(shard, image)
            commit_bytes(job.folder / name, content)
            size += len(content)
            jsons.append(next(contents).decode("utf-8", "backslashreplace") if len(some) > 1 else None)
    return Copied(job.number, size, jsons, _left(samples, wanted))


def _wanted(sample: Sample, image: str) -> list[Member]:
    """The image, and the json behind it where there is one."""
    return [member for member in (image_of(sample, image), json_of(sample)) if member is not None]


def _left(samples: Iterable[tuple[str, Sample]], wanted: Iterable[Sequence[Member]]) -> Counter[str]:
    """The suffixes of members that were not asked for; a caption is in the table."""
    rest = (
        sample.suffix_of(member).decode("utf-8", "backslashreplace")
        for (_, sample), some in zip(samples, wanted, strict=True)
        for member in sample.members
        if member not in some
    )
    return Counter(suffix for suffix in rest if suffix.lower() != "txt")


def table_beside(rows: pa.Table, names: Sequence[str], jsons: Sequence[str | None] | None, status: bool) -> pa.Table:
    """The rows of `metadata.parquet`; a column that would be read as further images gets `_` behind its name."""
    own: dict[str, Any] = {"file_name": pa.array(names, pa.string()), "caption": rows.column("caption")}
    if jsons is not None:
        own["json"] = pa.array(jsons, pa.string())
    own |= {f"in_{name}": rows.column(name) for name in ("shard", "key", "index")}
    table = table_of(rows, own, status)
    return table.rename_columns(
        [name if n == 0 or not IMAGES.fullmatch(name) else f"{name}_" for n, name in enumerate(table.column_names)]
    )


def paths_of(source: Any, rows: pa.Table) -> Iterator[tuple[str, bool]]:
    """For each row its path below the folder, each once even where case counts for nothing; whether it has a json."""
    taken: set[str] = set()
    last: Counter[str] = Counter()  # the number behind the last of its kind: many equal keys cost no search each
    facts = [rows.column(name).to_pylist() for name in ("image", "format")]
    for (_, sample), image, form in zip(samples_of(source, rows), *facts, strict=True):
        stem, suffix = safe_key(sample.key), _suffix(sample, image, form)
        plain = f"{stem}.{suffix}"
        free = plain
        while _same(free) in taken:
            last[_same(plain)] += 1
            free = f"{stem}-{last[_same(plain)]}.{suffix}"
        taken.add(_same(free))
        yield free, json_of(sample) is not None


def _same(path: str) -> str:
    """Paths that some file system takes for one have this in common."""
    return unicodedata.normalize("NFC", path).casefold()


def safe_key(key: bytes) -> str:
    """A relative path made of a key: no dots, no way up or out, no reserved or overlong name."""
    text = key.decode("utf-8", "backslashreplace").removeprefix("./").lstrip("/")
    path = "/".join(_safe_name(part) for part in text.split("/"))
    if len(path.encode()) > LONGEST_PATH:
        return f"{_cut(path.rpartition('/')[2], LONGEST_NAME)}-{_digest(key)}"
    return path


def _safe_name(part: str) -> str:
    plain = "".join("_" if unicodedata.category(c)[0] == "C" else c for c in UNSAFE.sub("_", part))
    if not plain.strip() or RESERVED.fullmatch(plain) or plain.endswith(" "):
        plain = f"{plain.rstrip()}_"
    if len(plain.encode()) > LONGEST_NAME:
        return f"{_cut(plain, LONGEST_NAME)}-{_digest(part.encode())}"
    return plain


def _cut(text: str, most: int) -> str:
    """At most so many bytes of a text, whole letters."""
    return text.encode()[:most].decode(errors="ignore").rstrip()


def _digest(name: bytes) -> str:
    return hashlib.sha256(name).hexdigest()[:16]


def _suffix(sample: Sample, image: str, form: str) -> str:
    """The image's own suffix, that of its format behind it where readers would not know it for an image."""
    member = image_of(sample, image)
    own = b"" if member is None else sample.suffix_of(member)
    text = re.sub(r"[^A-Za-z0-9._-]", "_", own.decode("ascii", "replace")).strip(".")
    usual = usual_suffix(form or "")
    if not text or len(text) > LONGEST_SUFFIX:
        return usual
    return text if text.rpartition(".")[2].lower().encode() in IMAGE_SUFFIXES else f"{text}.{usual}"
