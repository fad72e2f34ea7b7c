"""Milvus: a server by its address, or Milvus Lite in a folder here; the same code. The one file that knows it.

A row has the id, the vector, `curator_namespace`, `curator_hash` and every column that has a value.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curator.errors import ConfigError, OutsideError
from curator.indexes.base import About, Entry, Hits
from curator.indexes.rows import hits_of
from curator.indexes.where import Comparison, Condition, kind_of_value
from curator.stage import Array

TOKEN = "MILVUS_TOKEN"
NAMESPACE, HASH, OUTPUT = "curator_namespace", "curator_hash", "curator_output"
MOST = 16_384
"""Rows that one question may ask for."""
AT_ONCE = 1000


def is_server(uri: str) -> bool:
    """Whether a uri is a server's address, and not a place on this machine."""
    return "://" in uri


@contextmanager
def connected(uri: str, make: bool = False) -> Iterator[Any]:
    """A client; `make`: a database of this machine is made where it is not there.

    Raises OutsideError, in a sentence, for whatever the service says meanwhile, ConfigError where nothing is there.
    """
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they log what they raise, with a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)  # and pymilvus, imported, sets its own level
    if not is_server(uri) and not make and not Path(uri).exists():
        raise ConfigError(f"{uri}: there is no such database.")

    client: Any = None
    try:
        if not is_server(uri):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        client = MilvusClient(uri=uri, token=os.environ.get(TOKEN, ""))
        yield client
    except MilvusException as error:
        told = f"{uri}: Milvus says: {error.message}."
        if client is None and not is_server(uri):
            told = _not_opened(uri)
        raise OutsideError(" ".join([told, *getattr(error, "__notes__", [])])) from error
    finally:
        if client is not None:
            client.close()
        if not is_server(uri):
            _released(uri)


def _not_opened(uri: str) -> str:
    """Why a database of this machine does not open: Milvus Lite itself only says that it does not."""
    try:
        with open(Path(uri) / "LOCK", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"{uri}: another process has it open, and Milvus Lite lets in one at a time. Wait for it, and try again."
    except OSError:
        return f"{uri}: is no database of Milvus Lite, or cannot be read."
    return f"{uri}: Milvus Lite cannot open it."


def _released(uri: str) -> None:
    """Close the database itself: Milvus Lite keeps it open behind its clients, for as long as the process lives."""
    with suppress(ImportError):
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(uri)


class MilvusShelf:
    """The rows of one namespace in one collection, which is made where it is not there."""

    def __init__(self, client: Any, uri: str, collection: str, namespace: str, dim: int) -> None:
        self.client, self.uri, self.collection, self.namespace = client, uri, collection, namespace
        if not client.has_collection(collection):
            self._make(dim)
        fields: Any = client.describe_collection(collection)["fields"]
        there = next((field["params"].get("dim") for field in fields if field["name"] == "vector"), None)
        if dim and (there is None or int(there) != dim):
            raise ConfigError(
                f"{uri}: the collection {collection} holds {f'vectors of {there} numbers' if there else 'no vectors'}, "
                f"and these have {dim}. Name another collection."
            )
        client.load_collection(collection)

    def _make(self, dim: int) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field(NAMESPACE, DataType.VARCHAR, max_length=256)
        schema.add_field(HASH, DataType.VARCHAR, max_length=64)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX" if is_server(self.uri) else "FLAT", metric_type="COSINE")
        self.client.create_collection(
            self.collection, schema=schema, index_params=index, consistency_level="Strong"
        )

    def model(self) -> tuple[str, str] | None:
        """Space and weights of what the collection holds; None where it is empty."""
        return model_in(self.client, self.collection)

    def owner(self, output: str) -> str | None:
        """Another output that wrote rows of the namespace, if there is one."""
        return owner_in(self.client, self.collection, self.namespace, output)

    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """The hashes of those of the ids that are there."""
        found = self.client.get(self.collection, ids=list(ids), output_fields=["id", HASH])
        return {row["id"]: row[HASH] for row in found}

    def upsert(self, entries: Sequence[Entry]) -> None:
        """Put rows there, in place of those of the same id."""
        rows = [
            {**e.columns, "id": e.id, "vector": e.vector.tolist(), NAMESPACE: self.namespace, HASH: e.hash}
            for e in entries
        ]
        self.client.upsert(self.collection, rows)

    def ids(self) -> Iterator[Sequence[str]]:
        """Every id of the namespace."""
        asked = in_namespace(self.namespace)
        pages = self.client.query_iterator(self.collection, batch_size=AT_ONCE, filter=asked, output_fields=["id"])
        while page := pages.next():
            yield [row["id"] for row in page]
        pages.close()

    def delete(self, ids: Sequence[str]) -> None:
        """Take rows away."""
        self.client.delete(self.collection, ids=list(ids))

    def flush(self) -> None:
        """All to disk."""
        self.client.flush(self.collection)


def settled(uri: str, collection: str) -> None:
    """Let a database of this machine lay down its indexes, so that a search changes no file of it.

    In a connection of its own: one that has just written lays them down in a thread, and loading meanwhile meets half
    of a file. What a killed process left half written goes first.
    """
    for half in Path(uri).rglob("*.idx"):
        half.unlink()
    with connected(uri) as client:
        if client.has_collection(collection):
            client.load_collection(collection)


def model_in(client: Any, collection: str) -> tuple[str, str] | None:
    """Space and weights of what a collection holds; None where it is empty."""
    rows = client.query(collection, filter="", limit=1, output_fields=["curator_space", "curator_weights"])
    return (rows[0].get("curator_space", "?"), rows[0].get("curator_weights", "?")) if rows else None


def in_namespace(namespace: str) -> str:
    """The condition that only rows of a namespace meet."""
    return f"{NAMESPACE} == {json.dumps(namespace)}"


def owner_in(client: Any, collection: str, namespace: str, besides: str) -> str | None:
    """An output other than `besides` that wrote rows of a namespace; None where there is none."""
    asked = f"{in_namespace(namespace)} and {OUTPUT} != {json.dumps(besides)}"
    rows = client.query(collection, filter=asked, limit=1, output_fields=[OUTPUT])
    return rows[0].get(OUTPUT) if rows else None


def count_in(client: Any, collection: str, namespace: str) -> int:
    """How many rows a namespace holds."""
    return int(client.query(collection, filter=in_namespace(namespace), output_fields=["count(*)"])[0]["count(*)"])


def namespaces_in(client: Any, collection: str) -> list[str]:
    """Every namespace of a collection: one question for each."""
    names: list[str] = []
    while True:
        asked = f"{NAMESPACE} not in {json.dumps(names)}" if names else ""
        rows = client.query(collection, filter=asked, limit=1, output_fields=[NAMESPACE])
        if not rows:
            return sorted(names)
        names.append(rows[0][NAMESPACE])


def filter_of(condition: Condition) -> str:
    """A condition in Milvus's own words; a value that is not there meets none."""
    if isinstance(condition, Comparison):
        plain = condition.column.isidentifier() and condition.column.isascii()
        name = condition.column if plain else f"$meta[{json.dumps(condition.column)}]"
        value = condition.value
        said = str(value).lower() if kind_of_value(value) == "truth" else json.dumps(value)
        return f"{name} {condition.sign} {said}"
    return f" {'and' if condition.how == 'all' else 'or'} ".join(f"({filter_of(part)})" for part in condition.parts)


class MilvusIndex:
    """One namespace of a collection, to be searched."""

    def __init__(self, client: Any, about: About) -> None:
        self.client, self.about = client, about
        self.collection, self.namespace = about.place["collection"], about.place["namespace"]
        if not about.count:
            return
        if not client.has_collection(self.collection):
            raise ConfigError(f"{about.place['uri']}: there is no collection {self.collection} any more.")
        client.load_collection(self.collection)

    def nearest(self, vector: Array, k: int, where: Condition | None) -> Hits:
        """As `Index.nearest`; at most 16,384."""
        asked = in_namespace(self.namespace)
        if where is not None:
            asked = f"{asked} and ({filter_of(where)})"
        found = self.client.search(
            self.collection, data=[vector.tolist()], limit=min(k, MOST), filter=asked, output_fields=["*"],
            search_params={"metric_type": "COSINE"},
        )[0]  # fmt: skip
        return hits_of(((hit["id"], hit["entity"]["vector"], hit["entity"]) for hit in found), vector)

    def close(self) -> None:
        """The connection is closed by who opened it."""
