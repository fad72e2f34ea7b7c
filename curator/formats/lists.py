"""Tables whose rows are samples: lists of paths, lists of URLs that were fetched, and parquet files that hold images.

A row's sample has its image, its caption as `.txt`, and all that the table says of it as `.json`, so that it leaves
as img2dataset would have written it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator import remote
from curator.download import Shelf
from curator.errors import Cause, Fault
from curator.formats import bucket, tables
from curator.formats.base import Damage, Member, Sample, Shard, ShardIndex
from curator.formats.files import opened, stamp_of
from curator.formats.pieces import cut
from curator.formats.texts import LINES, unique
from curator.formats.webdataset import runs
from curator.ledger import shown
from curator.remote import is_url
from curator.signatures import beginning, format_of, usual_suffix
from curator.units import readable

KEY_DIGITS = 9
MAGIC = 32
FAR = "far"  # where objects behind URLs lie, whatever each is called
BROKEN = tables.BROKEN


class TableReader:
    """Reads a table as one shard, one sample for each row."""

    def index(self, shard: Shard, max_bytes: int) -> ShardIndex:
        """Every row in order; a table that cannot be read is damage."""
        try:
            parts = _parts(shard)
            samples = [sample for first, table in parts for sample in _samples(shard, first, table, max_bytes)]
        except BROKEN as error:
            told = " ".join(str(error).split())
            what = tables.suffix_of(shard.path).strip(".")
            damage = Damage(Cause.UNREADABLE, f"{shard.given}: cannot be read as {what}: {told}")
            return ShardIndex((), (), damage, shard.ignored)
        return ShardIndex(samples, cut(samples), None, shard.ignored)

    def stamp(self, shard: Shard, members: Iterable[Member] | None = None) -> str:
        """Size and time of the table, and of the files that it names; what lies elsewhere than on disk is trusted."""
        digest = hashlib.sha256(_state(shard.path))
        if shard.format == "urls" and members is None:
            digest.update(_state_of_urls(shard))
        places = _places(shard) if members is None else (m.place for m in members)
        for place, _ in groupby(places):
            if place and "://" not in place:
                digest.update(_state(place) if os.path.exists(place) else b"gone")
        return digest.hexdigest()

    def read(self, shard: Shard, members: Iterable[Member]) -> Iterator[bytes]:
        """The bytes of each member, in order. OSError where a file has another size by now."""
        rows = Rows(shard)
        for (place, is_text), some in groupby(members, _where):
            if place == FAR:
                yield from bucket.objects(shard.given, ((member.place, member.size) for member in some))
            elif is_text:
                yield from (member.content or b"" for member in some)
            elif place:
                yield from _from_file(shard, place, some)
            else:
                yield from (rows.image(member) for member in some)


def _where(member: Member) -> tuple[str, bool]:
    """What is read in one go: members of one file, objects behind URLs, texts out of the table."""
    return FAR if is_url(member.place) else member.place, member.content is not None


class Rows:
    """The images in a parquet file, by the number of their row; one row group is held at a time."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.file: Any = None
        self.first, self.held = 0, pa.nulls(0)

    def image(self, member: Member) -> bytes:
        """The bytes of one image. OSError where the file is another than before."""
        number = member.offset
        if not self.first <= number < self.first + len(self.held):
            self._load(number)
        value = self.held[number - self.first].as_py() if number < self.first + len(self.held) else None
        content: bytes = (value["bytes"] if isinstance(value, dict) else value) or b""
        if len(content) != member.size:
            raise OSError(f"{self.shard.given}: row {number:,} has another size than before")
        return content[: member.size]

    def _load(self, number: int) -> None:
        self.file = self.file or pq.ParquetFile(self.shard.path, memory_map=True)
        first = 0
        for group in range(self.file.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            if number < first + count:
                column = self.file.read_row_group(group, columns=[self.shard.role("image")])
                self.first, self.held = first, column.column(0)
                return
            first += count


def _parts(shard: Shard) -> Iterator[tuple[int, pa.Table]]:
    """The table and the number of its first row, a row group at a time where it holds images."""
    if shard.format != "parquet":
        yield 0, tables.read(shard.path, texts=[name for role, name in shard.roles if role != "embedding"])
        return
    file = pq.ParquetFile(shard.path, memory_map=True)
    first = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        table = table.rename_columns(unique(table.column_names))
        yield first, table
        first += table.num_rows


def _samples(shard: Shard, first: int, table: pa.Table, max_bytes: int) -> Iterator[Sample]:
    carried = tables.rows_of(table, tables.carried_names(table, dict(shard.roles)))
    faults, notes = _wrong(shard)
    captions, given = (_texts(table, shard.role(role)) for role in ("caption", "key"))
    keys = [
        (key or f"{n:0{KEY_DIGITS}d}").encode("utf-8", "surrogateescape") for n, key in enumerate(given, first)
    ]
    images = _IMAGES[shard.format](shard, first, table, keys, max_bytes)
    rows = zip(keys, images, captions, carried, strict=True)
    for number, (key, image, caption, told) in enumerate(rows, first):
        members = [_lacking(key, Cause.BAD_ROW, f"is no good row: {faults[number]}") if number in faults else image]
        if caption is not None:
            members.append(_text(key + b".txt", caption))
        if told:
            members.append(_text(key + b".json", told))
        yield Sample(key, tuple(members), notes, told)


def _wrong(shard: Shard) -> tuple[dict[int, str], tuple[str, ...]]:
    """What is wrong with rows of a text table, by their number, and what is worth knowing of all of them."""
    if tables.suffix_of(shard.path) == ".parquet":
        return {}, ()
    found = tables.text_table(shard.path)
    return found.faults, found.notes


def _texts(table: pa.Table, name: str | None) -> list[str | None]:
    """A column as texts, of nothing where there is none."""
    if name is None:
        return [None] * table.num_rows
    return [None if value is None else str(value) for value in table.column(name).to_pylist()]


def _text(name: bytes, text: str) -> Member:
    content = text.encode("utf-8", "surrogateescape")
    return Member(name, 0, len(content), content=content)


def _listed(shard: Shard, _: int, table: pa.Table, keys: Sequence[bytes], max_bytes: int) -> Iterator[Member]:
    """The files that a list names."""
    places = (tables.local(path, shard.root) for path in _texts(table, shard.role("image")) if path)
    remote.look_at(place for place in dict.fromkeys(places) if is_url(place) and remote.mistake(place) is None)
    for key, path in zip(keys, _texts(table, shard.role("image")), strict=True):
        if not (path or "").strip():
            yield _lacking(key, Cause.NO_IMAGE, "is not there: the row names no image")
            continue
        yield _file(shard, key, str(path), max_bytes)


def _file(shard: Shard, key: bytes, path: str, max_bytes: int) -> Member:
    """One file of its own; a fault where it is not there."""
    place = tables.local(path, shard.root)
    name = key + os.path.splitext(place)[1].encode("utf-8", "surrogateescape")
    if is_url(place):
        if (entry := remote.seen(place)) is not None:
            return _member(name, 0, entry.size, max_bytes, place)
        return _lacking(name, Cause.MISSING_FILE, f"cannot be read: {remote.mistake(place) or f'{place}: not there'}")
    try:
        status = os.stat(place)
        if not stat.S_ISREG(status.st_mode):
            return _lacking(name, Cause.UNREADABLE, f"cannot be read: {shown(os.fsencode(path))} is no file")
        return _member(name, 0, status.st_size, max_bytes, place)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return _lacking(name, Cause.MISSING_FILE, f"cannot be read: {shown(os.fsencode(path))}: {why}")


def _fetched(shard: Shard, _: int, table: pa.Table, keys: Sequence[bytes], max_bytes: int) -> Iterator[Member]:
    """What was fetched from the URLs of a list, and why the rest was not."""
    urls = [(url or "").strip() for url in _texts(table, shard.role("url"))]
    for key, url, place in zip(keys, urls, shelf_of(shard).look(urls), strict=True):
        if not url:
            yield _lacking(key, Cause.NO_IMAGE, "is not there: the row names no URL")
        elif isinstance(place, Fault):
            yield _lacking(key, place.cause, f"was not fetched: {place.detail}")
        else:
            head = tables.beginning(str(place.tar), place.offset, min(MAGIC, place.size))
            yield _image(key, head, place.offset, place.size, max_bytes, str(place.tar))


def shelf_of(shard: Shard) -> Shelf:
    """What was fetched, looked at anew where tables came since."""
    folder = Path(shard.root)
    return _shelf(folder, max((p.stat().st_mtime_ns for p in folder.glob("*.parquet")), default=0))


@lru_cache(maxsize=1)
def _shelf(folder: Path, _: int) -> Shelf:
    return Shelf(folder)


def _inside(shard: Shard, first: int, table: pa.Table, keys: Sequence[bytes], max_bytes: int) -> Iterator[Member]:
    """The images in a column of bytes, or of `{bytes, path}`, whose path counts where there are no bytes."""
    for n, (key, value) in enumerate(zip(keys, table.column(shard.role("image")), strict=True), first):
        content, path = _bytes_and_path(value)
        if not content and path:
            yield _file(shard, key, path, max_bytes)
            continue
        if not content:
            yield _lacking(key, Cause.NO_IMAGE, "is not there: the row holds no image")
            continue
        yield _image(key, bytes(content[:MAGIC]), n, len(content), max_bytes, "")


def _image(key: bytes, head: bytes, offset: int, size: int, max_bytes: int, place: str) -> Member:
    """An image by its first bytes; a fault where they are none's."""
    form = format_of(head)
    if form is None:
        return _lacking(key, Cause.NOT_AN_IMAGE, f"is no image: it starts with {beginning(head)}")
    return _member(key + f".{usual_suffix(form)}".encode(), offset, size, max_bytes, place)


def _bytes_and_path(value: pa.Scalar) -> tuple[Any, str | None]:
    """Without a copy of the bytes, which are looked at and left where they lie."""
    if pa.types.is_struct(value.type):
        fields = {field.name: value[field.name] for field in value.type} if value.is_valid else {}
        path = fields["path"].as_py() if "path" in fields else None
        return (_buffer(fields["bytes"]) if fields else b""), path
    return _buffer(value), None


def _buffer(value: pa.Scalar) -> Any:
    return memoryview(value.as_buffer()) if value.is_valid else b""


def _member(name: bytes, offset: int, size: int, max_bytes: int, place: str) -> Member:
    if size <= max_bytes:
        return Member(name, offset, size, place=place)
    text = f"has {readable(size)}, limit {readable(max_bytes)} (`read.max_member_bytes`)"
    return Member(name, offset, size, Cause.MEMBER_TOO_LARGE, text, place)


def _lacking(name: bytes, cause: Cause, detail: str) -> Member:
    return Member(name, 0, 0, cause, detail)


_IMAGES = {"list": _listed, "urls": _fetched, "parquet": _inside}


def _places(shard: Shard) -> Iterator[str]:
    """The files that a list names, as far as its table can be read."""
    if shard.format == "list":
        try:
            table = tables.read(shard.path, [shard.role("image") or LINES])
        except BROKEN:
            return
        yield from (tables.local(path, shard.root) for path in _texts(table, shard.role("image")) if path)


def _state_of_urls(shard: Shard) -> bytes:
    """What became of each URL of a list."""
    try:
        return shelf_of(shard).state(urls_of(shard))
    except BROKEN:
        return b"unreadable"


def urls_of(shard: Shard) -> list[str]:
    """The URLs of a list, row by row, empty where there is none. Raises one of BROKEN where it cannot be read."""
    column = shard.role("url") or LINES
    return [(url or "").strip() for url in _texts(tables.read(shard.path, [column]), column)]


def _state(path: str) -> bytes:
    return f"{stamp_of(path)};".encode()


def _from_file(shard: Shard, place: str, members: Iterable[Member]) -> Iterator[bytes]:
    """Members of another file: the whole of it, or runs of neighbours in a tar of what was fetched."""
    with opened(place) as file:
        for run in runs(members):
            start = run[0].offset
            block = memoryview(file.pread(start, run[-1].offset + run[-1].size - start))
            for member in run:
                content = block[member.offset - start : member.offset - start + member.size]
                if len(content) != member.size:
                    raise OSError(f"{shard.given}: {place} is shorter than before")
                yield bytes(content)
