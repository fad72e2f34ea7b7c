"""Where an index is: a run's output, a folder in it, a Milvus database by its address; or the store's own vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curator import ledger as ledgers
from curator.custom import BUILT_IN
from curator.errors import ConfigError
from curator.indexes import milvus
from curator.indexes.base import ABOUT, About, Index, lacking
from curator.indexes.sync import weights_of
from curator.indexes.where import Kind, kind_of_value
from curator.store import Store
from curator.wording import meant

KINDS = ("faiss", "milvus", "pinecone")
"""Which is asked where a run wrote several; `index=out/milvus` asks another."""
COLLECTION = "curator"


@dataclass(frozen=True)
class Opened:
    """An index, and the run that it is of, where there is one: its folder and its run.json."""

    index: Index
    name: str  # as the user gave it
    folder: Path | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""  # what a person should know before trusting the answer

    @property
    def image_columns(self) -> dict[str, str]:
        """For each list among the run's inputs, the column of results that says which image a line is of."""
        found = [i.get("found", {}) for i in self.run.get("inputs", [])]
        lists = [f for f in found if f.get("format") in ("list", "urls")]
        return {f["given"]: f"in_{column}" for f in lists for role, column in f["roles"] if role in ("image", "url")}


@contextmanager
def opened(given: str, collection: str | None, namespace: str | None, embedding: str | None) -> Iterator[Opened]:
    """Open what `index=` names. Raises ConfigError where that is none, or is not of the run that it lies in."""
    is_database = milvus.is_server(given) or given.endswith(".db")
    _check_meant(given, is_database, collection, namespace)
    if is_database:
        _check_packages("milvus", given)
        if not milvus.is_server(given) and not Path(given).exists():
            raise ConfigError(f"index: there is no {given}.")
        with milvus.connected(given) as client:
            about = _found(client, given, collection or COLLECTION, namespace)
            yield Opened(milvus.MilvusIndex(client, about), given)
        return
    folder = Path(given)
    place = folder if (folder / ABOUT).is_file() else None
    output = folder.parent if place is not None else folder
    run = _run_of(output)
    if place is None and not run:
        raise ConfigError(_nothing(folder))
    places = [place] if place is not None else _indexes(output, run)
    if places:
        if embedding is not None:
            raise ConfigError(
                f"embedding: says which vectors of the store are compared; {places[0]} is an index, of "
                f"{About.load(places[0]).model['stage']}. Leave it out."
            )
        _check_run(places[0], run)
        with _of_kind(places[0]) as (index, remark):
            yield Opened(index, given, output if run else None, run, remark)
        return
    yield Opened(_stored(output, run, embedding), given, output, run)


def _check_meant(given: str, is_database: bool, collection: str | None, namespace: str | None) -> None:
    """An index of a run knows where its rows are: what would say so has no effect."""
    if not is_database:
        said = [n for n, v in (("collection", collection), ("namespace", namespace)) if v is not None]
        if said:
            raise ConfigError(
                [f"{n}: is of a Milvus database that index= names itself; {given} is none. Leave it out." for n in said]
            )


def _run_of(output: Path) -> dict[str, Any]:
    try:
        run = json.loads((output / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def _nothing(folder: Path) -> str:
    if (folder / ".next" / "run.json").is_file():
        return f"index: {folder} is being put in place; run the command that made it again to finish that."
    if folder.exists() and not folder.is_dir():
        return f"index: {folder} is a file; name the output of a run."
    if not folder.is_dir():
        near = meant(folder.name, [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else [])
        return f"index: there is no {folder}.{near}"
    return (
        f"index: {folder} holds neither a run of Curator nor an index of one. Name an output, a folder in it such as "
        "out/faiss, or a Milvus database."
    )


def _indexes(output: Path, run: Mapping[str, Any]) -> list[Path]:
    """The folders of the run that hold an index, the one to be asked first."""
    places = [output / part for part in run.get("parts", []) if (output / part / ABOUT).is_file()]
    return sorted(places, key=lambda place: (KINDS.index(About.load(place).kind), place.name))


def _check_run(place: Path, run: Mapping[str, Any]) -> None:
    """An index that was copied to another run's place would answer with that run's images."""
    about = About.load(place)
    model = about.model
    ours = run.get("embeddings", {}).get(model["stage"], model)
    if ours["key"] != model["key"]:
        raise ConfigError(
            f"index: {place} was made with {named(model)}, and the run that it lies in with {named(ours)}: what is "
            "near in one space says nothing about the other. Write the index again."
        )
    if run and about.run != run.get("identity"):
        raise ConfigError(
            f"index: {place} was written by another run than the one that it lies in, and would answer with that run's "
            "images. Write the index again."
        )


def named(model: Mapping[str, Any]) -> str:
    """A model in a sentence: its space, and the weights by the first digits of their ids."""
    weights = " ".join(w[:16] for w in model["weights"])
    return f"{model['space']}{f' (weights {weights})' if weights else ''}"


@contextmanager
def _of_kind(place: Path) -> Iterator[tuple[Index, str]]:
    """The index of a folder, open, and a remark on it."""
    about = About.load(place)
    uri = str(about.place.get("uri") or place / "vectors.db")
    _check_packages(about.kind, uri)
    if about.kind == "faiss":
        from curator.indexes.faiss import FaissIndex

        yield FaissIndex(place), ""
    elif about.kind == "milvus":
        if not milvus.is_server(uri) and not Path(uri).exists():
            raise ConfigError(
                f"index: {place}: its database {uri} is not there. Where it was moved, ask it itself: index=PATH.db."
            )
        with milvus.connected(uri) as client:
            index = milvus.MilvusIndex(client, replace(about, place={**about.place, "uri": uri}))
            remark = ""
            if about.count:
                _check_service(place, about, milvus.model_in(client, index.collection))
                remark = _met(
                    place, about, milvus.owner_in(client, index.collection, index.namespace, about.place["output"]),
                    milvus.count_in(client, index.collection, index.namespace),
                )  # fmt: skip
            yield index, remark
    else:
        from curator.indexes import pinecone

        host, name, namespace = (about.place.get(key) for key in ("host", "index", "namespace"))
        if mistakes := list(pinecone.mistakes_of_host(host, name, "index")):
            raise ConfigError(mistakes)
        with pinecone.connected(host, name) as client:
            remark = ""
            if about.count:
                _check_service(place, about, pinecone.model_in(client, str(namespace)))
                owner = pinecone.owner_in(client, str(namespace), about.place["output"])
                remark = _met(place, about, owner, pinecone.count_in(client, str(namespace)))
            yield pinecone.PineconeIndex(client, about), remark


def _check_packages(kind: str, uri: str) -> None:
    modules = {"milvus": ["pymilvus", *["milvus_lite"] * (not milvus.is_server(uri))]}
    if lines := lacking("index", kind, modules.get(kind, [kind])):
        raise ConfigError(lines)


def _check_service(place: Path, about: About, there: tuple[str, str] | None) -> None:
    if there is not None and there != (about.model["space"], weights_of(about.model)):
        raise ConfigError(
            f"index: {place} was made with {named(about.model)}, and the service holds vectors of {there[0]} (weights "
            f"{there[1][:16]}) by now. Write the index again."
        )


def _met(place: Path, about: About, owner: str | None, count: int | None) -> str:
    """A remark where a namespace holds another number of rows. Raises ConfigError where none is the run's any more."""
    namespace = about.place["namespace"]
    if owner is not None:
        raise ConfigError(
            f"index: {place}: the rows of the namespace {namespace} were replaced by those of the output {owner}. Ask "
            "that one, or write this index again under another namespace."
        )
    if count == 0:
        raise ConfigError(
            f"index: {place}: the namespace {namespace} held {about.count:,} rows and is empty now. Write the index "
            "again under another namespace."
        )
    if count in (None, about.count):
        return ""
    return f"{place}: the namespace {namespace} holds {count:,} rows, and its run wrote {about.count:,}"


def _found(client: Any, uri: str, collection: str, namespace: str | None) -> About:
    """What a Milvus collection says of itself, without the run that wrote it."""
    if not client.has_collection(collection):
        there = client.list_collections()
        raise ConfigError(
            f"collection: {uri} has no {collection}.{meant(collection, there)} There are {', '.join(there) or 'none'}."
        )
    client.load_collection(collection)
    names = milvus.namespaces_in(client, collection)
    if namespace is not None and namespace not in names:
        near, there = meant(namespace, names), ", ".join(names) or "none"
        raise ConfigError(f"namespace: {collection} in {uri} has no {namespace}.{near} There are {there}.")
    if namespace is None and len(names) > 1:
        raise ConfigError(f"namespace: {uri} holds {', '.join(names)}; say which with namespace=NAME.")
    namespace = namespace or (names[0] if names else "")
    rows = client.query(collection, filter=milvus.in_namespace(namespace), limit=1000, output_fields=["*"])
    columns: dict[str, Kind] = {}
    for row in rows:
        told = {n: v for n, v in row.items() if n != "vector" and not n.startswith("curator_")}
        columns |= {n: kind_of_value(v) for n, v in told.items() if isinstance(v, str | int | float)}
    space, weights = (rows[0].get(f"curator_{n}", "?") for n in ("space", "weights")) if rows else ("?", "?")
    model, _, pretrained = space.partition("/")
    settings = {"model": model, "pretrained": pretrained}
    made = {"stage": "embed", "target": BUILT_IN["embed"], "settings": settings, "space": space, "key": "",
            "weights": weights.split(), "read": {}}  # fmt: skip
    where = {"uri": uri, "collection": collection, "namespace": namespace}
    count = milvus.count_in(client, collection, namespace)
    return About("milvus", made, count, len(rows[0]["vector"]) if rows else 0, columns, place=where)


def _stored(output: Path, run: Mapping[str, Any], embedding: str | None) -> Index:
    """The vectors that the run measured and no writer took."""
    from curator.indexes.stored import StoredIndex

    offered = run.get("embeddings", {})
    if not offered:
        raise ConfigError(
            f"index: the run in {output} embedded no image, so there is nothing to compare. Run it with embed among "
            "its stages, or recipe=image_search."
        )
    if embedding is None and len(offered) > 1:
        raise ConfigError(f"embedding: {' and '.join(offered)} both embed. Say which with embedding=NAME.")
    if embedding is not None and embedding not in offered:
        near = meant(embedding, offered)
        there = ", ".join(offered)
        raise ConfigError(f"embedding: no stage of the run is called {embedding}.{near} There are {there}.")
    store = Path(run["store"])
    if not store.is_dir():
        raise ConfigError(
            f"index: {output} has no index, and the store {store}, where its vectors lay, is gone. Run it again with "
            "faiss among its stages."
        )
    ledger = ledgers.read(output / "ledger")
    return StoredIndex(Store(store), ledger, run["inputs"], offered[embedding or next(iter(offered))])
