"""Images that were kept before, elsewhere: new ones are compared with them, and never take their place.

Nothing of them is embedded again: an earlier run's vectors lie in its store, its ledger says which are kept; a folder
of `.npy` or `.npz` files holds vectors alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curator import address, ledger
from curator.errors import ConfigError
from curator.formats import vectors
from curator.formats.base import Shard
from curator.phases import inputs
from curator.phases.columns import unit_float16
from curator.remote import is_url
from curator.stage import Array, Mask
from curator.store import Store, StoredVectors, vectors_of
from curator.wording import meant

AT_ONCE = 1 << 16  # rows of a file that are made unit length together


@dataclass(frozen=True)
class Outside:
    """One piece of what was kept before: where its vectors lie, and which of its rows count."""

    source: StoredVectors | Shard  # an object of a store, or a file of vectors
    at: str  # the object's address; of a file, its SHA-256
    rows: Array  # (n,) rows that are kept
    shard: Sequence[str]  # (n,) what the ledger calls them
    key: Sequence[str]
    told: str  # what a person calls it
    width: int | None  # its columns, where it has rows

    @property
    def name(self) -> str:
        """What stands for it among the addresses of a collection: its content and which rows of it."""
        return address.tagged("outside", [2, self.at, hashlib.sha256(self.rows.astype(np.int64).tobytes()).hexdigest()])

    def read(self) -> tuple[Array, Mask]:
        """(N, D) float16 and (N,) True for the rows that count."""
        if isinstance(self.source, Shard):
            count = len(self.rows)
            parts = [vectors.rows_of(self.source, n, min(n + AT_ONCE, count)) for n in range(0, count, AT_ONCE)]
            emb_ND = np.concatenate([unit_float16(part) for part in parts])
        else:
            emb_ND, _ = self.source.read(self.at)
        has = np.zeros(len(emb_ND), bool)
        has[self.rows] = True
        return emb_ND, has


@dataclass(frozen=True)
class Joined:
    """A collection's own vectors and those of outside, as the search sees them. Pickles as a description."""

    own: StoredVectors
    outside: dict[str, Outside]
    addresses: Sequence[str] = ()
    desk: Any = None
    known: Any = None

    def read(self, at: str) -> tuple[Array, Mask]:
        """One piece, wherever it lies."""
        return self.outside[at].read() if at in self.outside else self.own.read(at)

    def only(self, addresses: Sequence[str]) -> Joined:
        """The same with fewer pieces."""
        few = {a: o for a, o in self.outside.items() if a in set(addresses)}
        return replace(self, outside=few, addresses=tuple(addresses), known=None)


@dataclass(frozen=True)
class Earlier:
    """All that was kept before: its pieces by name, and its rows as the ledger names them."""

    pieces: dict[str, Outside] = field(default_factory=dict)

    def rows(self, addresses: Sequence[str]) -> pa.Table:
        """piece, row, shard and key of every row, pieces by their number among sorted addresses."""
        number = {at: n for n, at in enumerate(addresses)}
        parts = [(np.full(len(o.rows), number[name]), o.rows, o.shard, o.key) for name, o in self.pieces.items()]
        columns = [np.concatenate([np.asarray(part[n]) for part in parts]) for n in range(4)]
        return pa.table(
            {
                "piece": columns[0].astype(np.int64), "row": columns[1].astype(np.int64),
                "shard": pa.array(columns[2].tolist(), pa.string()), "key": pa.array(columns[3].tolist(), pa.string()),
            }
        )  # fmt: skip


@dataclass(frozen=True)
class These:
    """The vectors that are compared with what was kept before: what they are, and where they lie."""

    space: str
    stage: str  # that embedded them
    key: str  # its key, the same in every store
    addresses: Sequence[str]
    width: int | None  # their columns, where there are any


def earlier(paths: Sequence[str], where: str, these: These) -> Earlier:
    """What was kept at each path. Raises ConfigError, `where` being the setting, for what holds no such vectors."""
    pieces: dict[str, Outside] = {}
    for path in paths:
        for piece in _pieces(path, where, these):
            if these.width is not None and piece.width not in (None, these.width):
                raise ConfigError(
                    f"{where}: {piece.told} has vectors of {piece.width} columns, and these have {these.width}: "
                    "another model's."
                )
            if len(piece.rows):
                pieces[piece.name] = piece
    return Earlier(pieces)


def mistakes_of(paths: Sequence[str], where: str, space: str, output: Path | str | None) -> list[str]:
    """What is wrong with the paths, one line each, as far as it can be told without reading all vectors.

    `output` is where this run's result goes.
    """
    lines = []
    for path in paths:
        try:
            if isinstance(output, Path) and os.path.realpath(path) == str(output):
                raise ConfigError(
                    f"{where}: {path} is this run's own output, which would be compared with itself and replaced by "
                    "what is left. Name another output."
                )
            found = _kind(path, where, space)
            if isinstance(found, list):
                for file in found:
                    _width(_shard(file), where)
        except ConfigError as error:
            lines += error.mistakes
    return lines


def _kind(given: str, where: str, space: str) -> dict[str, Any] | list[tuple[str, str]] | Store:
    """The run.json of an output; or files of vectors, each with the table beside it; or a store."""
    if is_url(given):
        raise ConfigError(f"{where}: {given} is a URL; what was kept before is read from a folder. Copy it here first.")
    path = Path(given)
    if not path.exists():
        near = meant(path.name, os.listdir(path.parent) if path.parent.is_dir() else [])
        raise ConfigError(f"{where}: {given}: there is no such folder.{near}")
    if (path / "run.json").is_file():
        run: dict[str, Any] = json.loads((path / "run.json").read_text())
        if space not in run.get("spaces", {}).values():
            told = ", ".join(run.get("spaces", {}).values()) or "none"
            raise ConfigError(f"{where}: {given} has vectors of the space {told}, and these are of {space}.")
        return run
    if path.is_file() and path.suffix in vectors.SUFFIXES:
        return [(given, vectors.beside_of(given))]
    if path.is_dir() and (files := vectors.files_of(given) or [(str(p), "") for p in sorted(path.glob("**/*.npy"))]):
        return files
    if (path / "FORMAT").is_file():
        return Store(path)
    raise ConfigError(
        f"{where}: {given} is neither the output of a run, nor a store, nor a folder of .npy or .npz files."
    )


def _shard(file: tuple[str, str]) -> Shard:
    """One file of vectors, named so that files of two folders are told apart."""
    return Shard(file[0], os.path.abspath(file[0]), "vectors", beside=file[1] and os.path.abspath(file[1]))


def _width(shard: Shard, where: str) -> int:
    """Columns of a file of vectors. Raises ConfigError where it holds none."""
    try:
        return vectors.shape_of(shard)[1]
    except ConfigError as error:
        raise ConfigError([line.replace("input:", f"{where}:", 1) for line in error.mistakes]) from error
    except OSError as error:
        raise ConfigError(f"{where}: {shard.given} cannot be read: {error}.") from error


def _pieces(given: str, where: str, these: These) -> Iterator[Outside]:
    found = _kind(given, where, these.space)
    if isinstance(found, list):
        yield from (_of_file(_shard(file), where) for file in found)
    elif isinstance(found, Store):
        yield from _of_store(given, found, where, these)
    else:
        yield from _of_run(Path(given), found, where, these.space)


def _of_store(given: str, store: Store, where: str, these: These) -> Iterator[Outside]:
    """Every vector that a store has of the same stage, but for those that are compared with it: nobody knows there
    what was kept."""
    held, seen = StoredVectors(store, these.stage, ()), set(these.addresses)
    found = False
    for known in inputs.all_known(store):
        for number, content in enumerate(known.contents):
            at = address.measurement(these.key, str(content))
            stored = store.get(these.stage, at) if at not in seen else None
            seen.add(at)
            found |= stored is not None
            if stored is None:
                continue
            _, has = vectors_of(stored.table)
            rows = np.flatnonzero(has)
            first, _ = known.bounds(number)
            keys = [known.keys.get(first + row, str(first + row)) for row in rows.tolist()]
            width = stored.table.column("embedding").type.list_size if len(rows) else None
            yield Outside(held, at, rows, [known.path] * len(rows), keys, given, width)
    if not found:
        raise ConfigError(
            f"{where}: the store {given} has no other vectors that {these.stage} made with these settings."
        )


def _of_file(shard: Shard, where: str) -> Outside:
    width = _width(shard, where)
    shard = vectors.with_roles(shard, {})
    count = vectors.shape_of(shard)[0]
    for start in range(0, count, AT_ONCE):
        some = np.asarray(vectors.rows_of(shard, start, min(start + AT_ONCE, count)), np.float32)
        lengths = np.einsum("nd,nd->n", some, some)
        if len(wrong := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
            raise ConfigError(
                f"{where}: row {start + wrong[0]:,} of {shard.given} is no vector: zeros, or not finite. Take it out."
            )
    with open(shard.path, "rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    keys, _ = vectors.facts_of(shard, 0, count)
    return Outside(shard, content, np.arange(count), [shard.given] * count, keys, shard.given, width)


def _of_run(path: Path, run: dict[str, Any], where: str, space: str) -> Iterator[Outside]:
    stage = next(name for name, its in run["spaces"].items() if its == space)
    held = StoredVectors(Store(run["store"]), stage, ())
    table = ledger.read(path / "ledger").select(["shard", "key", "index", "status"])
    table = table.filter(table.column("index").is_valid())
    kept = table.column("status").to_numpy() == "kept"
    shards, keys = table.column("shard").to_pylist(), table.column("key").to_pylist()
    begin = 0
    for given in run["inputs"]:
        for content in given["contents"]:
            at = address.measurement(run["keys"][stage], content)
            stored = held.store.get(stage, at)
            if stored is None:
                raise ConfigError(
                    f"{where}: the vectors of {path} are no longer in its store, {run['store']}. Run it again there."
                )
            _, has = vectors_of(stored.table)
            rows = np.flatnonzero(kept[begin : begin + len(has)] & has)
            named = [(shards[begin + row], keys[begin + row]) for row in rows.tolist()]
            width = stored.table.column("embedding").type.list_size if stored.table.num_rows else None
            yield Outside(held, at, rows, [n[0] for n in named], [n[1] for n in named], str(path), width)
            begin += len(has)
