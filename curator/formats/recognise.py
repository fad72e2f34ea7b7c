"""What each table of the input is: a list of paths or URLs, images in parquet, vectors; and which column is what.

Looks at schemas and first values alone, so that a wrong column name is said before any work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from curator.errors import ConfigError
from curator.formats import tables, vectors
from curator.formats.base import Shard
from curator.formats.beside import table_beside
from curator.formats.paths import TABLE, VECTORS
from curator.formats.texts import LINES

NEEDED = {"list": "image", "parquet": "image", "urls": "url", "vectors": "embedding"}
"""The role without which a table is not of a format."""


@dataclass(frozen=True)
class Wanted:
    """What the config says of tables: `form` such as `urls`, columns by role, where relative paths begin.

    `join`: whether a table beside a tar is looked into. `fetched`: where what is fetched from URLs lies.
    """

    form: str = "auto"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    root: str | None = None
    join: bool = True
    fetched: str = ""


def recognised(shards: Sequence[Shard], wanted: Wanted) -> list[Shard]:
    """The shards, tables among them as what they are. Raises ConfigError with a line for each that is nothing."""
    result, mistakes = [], []
    for shard in shards:
        try:
            result.append(_recognised(shard, wanted))
        except ConfigError as error:
            mistakes += error.mistakes
    alone = [shard for shard in result if shard.format == VECTORS]
    if alone and len(alone) < len(result):
        other = next(shard for shard in result if shard.format != VECTORS)
        mistakes.append(
            f"input: {alone[0].given} holds vectors and {other.given} images; a run reads the one or the other."
        )
    if mistakes:
        raise ConfigError(mistakes)
    return result


def _recognised(shard: Shard, wanted: Wanted) -> Shard:
    if shard.format == TABLE:
        shard = _table(shard, wanted)
    if shard.format == VECTORS:
        try:
            return vectors.with_roles(shard, wanted.columns)
        except tables.BROKEN as error:
            raise ConfigError(f"input: {shard.given} cannot be read: {' '.join(str(error).split())}.") from error
    return _tar(shard, wanted)


def _tar(shard: Shard, wanted: Wanted) -> Shard:
    """A tar and the table beside it; folders as they are."""
    beside = table_beside(shard.path) if shard.format == "webdataset" and wanted.join else ""
    return replace(shard, beside=beside) if beside else shard


def _table(shard: Shard, wanted: Wanted) -> Shard:
    root = os.path.abspath(os.path.expanduser(wanted.root)) if wanted.root else os.path.dirname(shard.path)
    if tables.suffix_of(shard.path) == ".txt":
        return _lines(shard, wanted, root)
    try:
        schema = tables.schema_of(shard.path)
    except tables.BROKEN:
        return replace(shard, format="list", root=root)  # its reader tells what is damaged
    roles = tables.roles_of(shard.given, schema, wanted.columns)
    form = _form(shard, schema, roles, wanted)
    if form == "urls" and "url" not in roles:
        roles["url"] = roles.pop("image")
    if form == "list" and "image" not in roles and "url" in roles:  # of objects in buckets
        roles["image"] = roles.pop("url")
    return replace(
        shard, format=form, root=wanted.fetched if form == "urls" else root, roles=tuple(sorted(roles.items()))
    )


def _lines(shard: Shard, wanted: Wanted, root: str) -> Shard:
    """A plain list: of URLs where its first line is one."""
    if wanted.form in ("list", "urls"):
        form = wanted.form
    else:
        try:
            form = "urls" if tables.is_address(tables.first_text(shard.path, LINES)) else "list"
        except OSError:
            form = "list"
    role = "url" if form == "urls" else "image"
    return replace(
        shard, format=form, root=wanted.fetched if form == "urls" else root, roles=((role, LINES),)
    )


def _form(shard: Shard, schema: pa.Schema, roles: Mapping[str, str], wanted: Wanted) -> str:
    has = ", ".join(schema.names)
    if wanted.form in NEEDED:
        role = NEEDED[wanted.form]
        fits = role in roles or (wanted.form == "urls" and "image" in roles)
        if fits and wanted.form == "parquet":
            fits = tables.holds_images(schema.field(roles["image"]).type)
        if not fits:
            raise ConfigError(
                f"read.format: {shard.given} is to be read as {wanted.form}, and no column of it is known to hold "
                f"that. Name it with read.{role}_column. It has {has}."
            )
        return wanted.form
    if (image := roles.get("image")) is not None:
        if tables.holds_images(schema.field(image).type):
            return "parquet"
        return "urls" if tables.is_address(tables.first_text(shard.path, image)) else "list"
    if (url := roles.get("url")) is not None:
        first = tables.first_text(shard.path, url)
        return "list" if "://" in first and not tables.is_address(first) else "urls"
    if "embedding" in roles:
        return VECTORS
    raise ConfigError(
        f"input: {shard.given}: none of its columns is known to hold images, URLs or embeddings. Name one with "
        f"read.image_column, read.url_column or read.embedding_column. It has {has}."
    )
