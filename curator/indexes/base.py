"""What an index is to the rest of Curator: vectors and columns under ids, in the space of one model.

`About` is its `index.json`. Writers lay `Entry`s into a `Shelf`, or build a file; a search asks an `Index`.
Knows no service and no file format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from curator.commit import commit_bytes
from curator.errors import ConfigError
from curator.indexes.where import Condition, Kind
from curator.stage import Array

ABOUT = "index.json"
EDITION = 1


@dataclass(frozen=True)
class About:
    """What `index.json` says. `model` is what embedded: stage, class, settings, space and the ids of its weights."""

    kind: str  # "faiss", "milvus" or "pinecone"
    model: Mapping[str, Any]
    count: int
    dim: int  # 0 where there is no vector
    columns: Mapping[str, Kind]
    metric: str = "cosine"  # the inner product of unit vectors
    place: Mapping[str, Any] = field(default_factory=dict)  # what finds it again: uri, collection, nprobe ...
    run: str = ""  # the identity of the run that wrote it, as in its run.json
    edition: int = EDITION

    def save(self, folder: Path) -> None:
        """Write `index.json`."""
        commit_bytes(folder / ABOUT, json.dumps(asdict(self), indent=2, ensure_ascii=False).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> About:
        """Read `index.json`. Raises ConfigError where it is not what this Curator reads."""
        try:
            told = json.loads((folder / ABOUT).read_text())
            if told.get("edition") == EDITION:
                return cls(**told)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{folder / ABOUT}: cannot be read: {error}.") from None
        raise ConfigError(
            f"{folder / ABOUT}: of edition {told.get('edition')}; this Curator reads {EDITION}. Write the index again."
        )


@dataclass(frozen=True)
class Hits:
    """What is nearest, best first: rows (K), their cosine (K,) float and vectors (K, D) float32."""

    rows: pa.Table
    similarity: Array
    vectors: Array


class Index(Protocol):
    """Something that can be searched."""

    about: About

    def nearest(self, vector: Array, k: int, where: Condition | None) -> Hits:
        """The k rows that meet `where` and are nearest to a unit vector (D,) float32; fewer where there are fewer."""

    def close(self) -> None:
        """Let go of files and connections."""


@dataclass(frozen=True)
class Entry:
    """One row on its way to a service. `hash` covers vector and columns: what has the same is not sent again."""

    id: str
    hash: str
    vector: Array  # (D,) float32, unit length
    columns: Mapping[str, Any]


class Shelf(Protocol):
    """The rows of one namespace in a service."""

    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """The hashes of those of the ids that are there."""

    def upsert(self, entries: Sequence[Entry]) -> None:
        """Put rows there, in place of those of the same id."""

    def ids(self) -> Iterator[Sequence[str]]:
        """Every id that is there, some at a time."""

    def delete(self, ids: Sequence[str]) -> None:
        """Take rows away."""


def lacking(stage: str, extra: str, modules: Sequence[str]) -> list[str]:
    """What to install for a stage, in one line; nothing where it is there."""
    if all(find_spec(name) is not None for name in modules):
        return []
    missing = " and ".join(name for name in modules if find_spec(name) is None)
    return [f"{stage}: {missing} must be installed (in Curator's folder: pip install -e '.[{extra}]')."]
