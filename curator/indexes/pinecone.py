"""Pinecone, through its own client. The one file that knows it.

It has been held against the service's documented requests and answers, on a server of our own; not against the service.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from curator.errors import ConfigError, OutsideError
from curator.indexes.base import About, Entry, Hits
from curator.indexes.rows import hits_of
from curator.indexes.where import Comparison, Condition
from curator.stage import Array

KEY = "PINECONE_API_KEY"
HASH, OUTPUT = "curator_hash", "curator_output"
MOST = 1000
"""Rows that one question may ask for, vectors included."""
FETCHED = 100
"""Ids of one request: they stand in its address."""
LARGEST_BYTES = 1_500_000
"""Of one request; the service takes 2 MB."""
_BYTES_PER_NUMBER, _BYTES_PER_ROW = 22, 4096
_SIGNS = {"==": "$eq", "!=": "$ne", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}


def batch_for(dim: int) -> int:
    """Rows of one request, so that it stays below what the service takes."""
    return max(1, min(1000, LARGEST_BYTES // (dim * _BYTES_PER_NUMBER + _BYTES_PER_ROW)))


def mistakes_of_host(host: str | None, index: str | None, where: str) -> Iterator[str]:
    """What is wrong with the address of an index, before anything is sent to it."""
    if not host and not index:
        yield f"{where}.host: must be given: the index's address, as Pinecone's console shows it; or {where}.index."
    elif host and host.startswith("http://") and urlsplit(host).hostname not in ("127.0.0.1", "localhost", "::1"):
        yield f"{where}.host: {host} would send the key unencrypted; say https://."
    if not os.environ.get(KEY):
        yield f"{where}: the environment has no {KEY}, and the key is taken from nowhere else."


@contextmanager
def connected(host: str | None, index: str | None) -> Iterator[Any]:
    """A client of one index. Raises OutsideError, in a sentence, for whatever the service says meanwhile."""
    import httpx
    from pinecone import Pinecone
    from pinecone.errors.exceptions import PineconeError

    place = host or index
    try:
        client = Pinecone(api_key=os.environ.get(KEY, ""))
        with client.index(host=host) if host else client.index(index or "") as found:
            yield found
    except (PineconeError, httpx.HTTPError) as error:
        said = " ".join([str(error), *getattr(error, "__notes__", [])])
        told = said.replace(os.environ.get(KEY) or "\0", "(the key)")
        raise OutsideError(f"{place}: Pinecone says: {told}") from error


class PineconeShelf:
    """The rows of one namespace of an index."""

    def __init__(self, client: Any, place: str, namespace: str, dim: int) -> None:
        self.client, self.namespace = client, namespace
        there = client.describe_index_stats().dimension
        if dim and there is not None and int(there) != dim:
            raise ConfigError(f"{place}: is an index of {there} dimensions, and these vectors have {dim}.")

    def model(self) -> tuple[str, str] | None:
        """Space and weights of what the namespace holds; None where it is empty."""
        return model_in(self.client, self.namespace)

    def owner(self, output: str) -> str | None:
        """Another output that wrote the namespace, by its first row, if there is one."""
        return owner_in(self.client, self.namespace, output)

    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """The hashes of those of the ids that are there."""
        found: dict[str, str] = {}
        for start in range(0, len(ids), FETCHED):
            answer = self.client.fetch(ids=list(ids[start : start + FETCHED]), namespace=self.namespace)
            found |= {id_: str((row.metadata or {}).get(HASH, "")) for id_, row in answer.vectors.items()}
        return found

    def upsert(self, entries: Sequence[Entry]) -> None:
        """Put rows there, in place of those of the same id."""
        rows = [
            {"id": e.id, "values": e.vector.tolist(), "metadata": {**e.columns, HASH: e.hash}} for e in entries
        ]
        self.client.upsert(vectors=rows, namespace=self.namespace)

    def ids(self) -> Iterator[Sequence[str]]:
        """Every id of the namespace."""
        for page in self.client.list(namespace=self.namespace):
            yield [row.id for row in page.vectors]

    def delete(self, ids: Sequence[str]) -> None:
        """Take rows away."""
        self.client.delete(ids=list(ids), namespace=self.namespace)


def model_in(client: Any, namespace: str) -> tuple[str, str] | None:
    """Space and weights of what a namespace holds; None where it is empty."""
    told = _first_row(client, namespace)
    return None if told is None else (str(told.get("curator_space", "?")), str(told.get("curator_weights", "?")))


def owner_in(client: Any, namespace: str, besides: str) -> str | None:
    """The output that wrote a namespace's first row, where it is not `besides`."""
    there = (_first_row(client, namespace) or {}).get(OUTPUT)
    return str(there) if there not in (None, besides) else None


def count_in(client: Any, namespace: str) -> int | None:
    """How many rows the service counts in a namespace, a little late at times; None where it does not say."""
    summary = (client.describe_index_stats().namespaces or {}).get(namespace)
    return None if summary is None else int(summary.vector_count)


def _first_row(client: Any, namespace: str) -> Mapping[str, Any] | None:
    page = client.list_paginated(namespace=namespace, limit=1)
    for row in page.vectors:
        for vector in client.fetch(ids=[row.id], namespace=namespace).vectors.values():
            return vector.metadata or {}
    return None


def filter_of(condition: Condition) -> dict[str, Any]:
    """A condition in Pinecone's own words; a value that is not there meets none."""
    if isinstance(condition, Comparison):
        asked: dict[str, Any] = {condition.column: {_SIGNS[condition.sign]: condition.value}}
        if condition.sign == "!=":
            return {"$and": [asked, {condition.column: {"$exists": True}}]}
        return asked
    return {"$and" if condition.how == "all" else "$or": [filter_of(part) for part in condition.parts]}


class PineconeIndex:
    """One namespace of an index, to be searched."""

    def __init__(self, client: Any, about: About) -> None:
        self.client, self.about = client, about

    def nearest(self, vector: Array, k: int, where: Condition | None) -> Hits:
        """As `Index.nearest`; at most 1,000."""
        asked: Mapping[str, Any] = {} if where is None else {"filter": filter_of(where)}
        found = self.client.query(
            vector=vector.tolist(), top_k=min(k, MOST), namespace=self.about.place["namespace"],
            include_values=True, include_metadata=True, **asked,
        ).matches  # fmt: skip
        return hits_of(((hit.id, hit.values, hit.metadata or {}) for hit in found), vector)

    def close(self) -> None:
        """The connection is closed by who opened it."""
