"""Images that were kept before, elsewhere: new ones are compared with them, and never take their place.

Nothing of them is embedded again: an earlier run's vectors lie in its store, its ledger says which are kept; a folder
of `.npy` files holds vectors alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curator import address, ledger
from curator.errors import ConfigError
from curator.remote import is_url
from curator.stage import Array, Mask
from curator.store import Store, StoredVectors, vectors_of


@dataclass(frozen=True)
class Outside:
    """One piece of what was kept before: where its vectors lie, and which of its rows count."""

    source: StoredVectors | Path  # an object of a store, or an .npy file
    at: str  # the object's address; of a file, its SHA-256
    rows: Array  # (n,) rows that are kept
    shard: Sequence[str]  # (n,) what the ledger calls them
    key: Sequence[str]

    @property
    def name(self) -> str:
        """What stands for it among the addresses of a collection: its content and which rows of it."""
        return address.tagged("outside", [self.at, hashlib.sha256(self.rows.astype(np.int64).tobytes()).hexdigest()])

    def read(self) -> tuple[Array, Mask]:
        """(N, D) float16 and (N,) True for the rows that count."""
        if isinstance(self.source, Path):
            emb_ND = np.load(self.source, mmap_mode="r").astype(np.float16)
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


def earlier(paths: Sequence[str], where: str, space: str) -> Earlier:
    """What was kept at each path. Raises ConfigError, `where` being the setting, for what holds no such vectors."""
    pieces: dict[str, Outside] = {}
    for path in paths:
        found = list(_pieces(_folder(path, where), where, space))
        pieces |= {piece.name: piece for piece in found if len(piece.rows)}
    return Earlier(pieces)


def mistakes_of(paths: Sequence[str], where: str, space: str) -> list[str]:
    """What is wrong with the paths, one line each, as far as it can be told without reading vectors."""
    lines = []
    for path in paths:
        try:
            _kind(_folder(path, where), where, space)
        except ConfigError as error:
            lines += error.mistakes
    return lines


def _folder(path: str, where: str) -> Path:
    if is_url(path):
        raise ConfigError(f"{where}: {path} is a URL; what was kept before is read from a folder. Copy it here first.")
    return Path(path)


def _kind(path: Path, where: str, space: str) -> dict[str, Any] | list[Path]:
    """The run.json of an output, or the .npy files of a folder."""
    if (path / "run.json").is_file():
        run: dict[str, Any] = json.loads((path / "run.json").read_text())
        if space not in run.get("spaces", {}).values():
            told = ", ".join(run.get("spaces", {}).values()) or "none"
            raise ConfigError(f"{where}: {path} has vectors of the space {told}, and these are of {space}.")
        return run
    if files := sorted(path.glob("**/*.npy")):
        return files
    raise ConfigError(f"{where}: {path} is neither the output of a run nor a folder of .npy files with vectors.")


def _pieces(path: Path, where: str, space: str) -> Iterator[Outside]:
    found = _kind(path, where, space)
    if isinstance(found, list):
        yield from (_of_file(path, file, where) for file in found)
    else:
        yield from _of_run(path, found, where, space)


def _of_file(folder: Path, file: Path, where: str) -> Outside:
    rows = np.load(file, mmap_mode="r")
    if rows.ndim != 2:
        raise ConfigError(f"{where}: {file} has the shape {rows.shape}; one row for each image is expected.")
    with open(file, "rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    name = str(file.relative_to(folder))
    keys = [str(n) for n in range(len(rows))]
    return Outside(file.absolute(), content, np.arange(len(rows)), [name] * len(rows), keys)


def _of_run(path: Path, run: dict[str, Any], where: str, space: str) -> Iterator[Outside]:
    stage = next(name for name, its in run["spaces"].items() if its == space)
    vectors = StoredVectors(Store(run["store"]), stage, ())
    table = ledger.read(path / "ledger").select(["shard", "key", "index", "status"])
    table = table.filter(table.column("index").is_valid())
    kept = table.column("status").to_numpy() == "kept"
    shards, keys = table.column("shard").to_pylist(), table.column("key").to_pylist()
    begin = 0
    for given in run["inputs"]:
        for content in given["contents"]:
            at = address.measurement(run["keys"][stage], content)
            stored = vectors.store.get(stage, at)
            if stored is None:
                raise ConfigError(
                    f"{where}: the vectors of {path} are no longer in its store, {run['store']}. Run it again there."
                )
            _, has = vectors_of(stored.table)
            rows = np.flatnonzero(kept[begin : begin + len(has)] & has)
            named = [(shards[begin + row], keys[begin + row]) for row in rows.tolist()]
            yield Outside(vectors, at, rows, [n[0] for n in named], [n[1] for n in named])
            begin += len(has)
