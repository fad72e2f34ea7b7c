"""Between measuring and deciding: the columns of all pieces as one table, and what collection stages find among them.

Both are stored under the address of what they gather, so that a re-decide opens one file and not ten thousand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from curator import address
from curator.custom import identity_of
from curator.desk import Desk
from curator.pairs.found import NOTHING
from curator.pairs.known import Known
from curator.phases.against import Earlier, Joined, Outside, These, earlier
from curator.phases.columns import READ_SCHEMA, Found, Samples, carried_columns
from curator.phases.measure import Census
from curator.stage import Array, Each, ProcessingStage, Role
from curator.store import Object, Store, StoredVectors
from curator.units import counted
from curator.wiring import Plan

FOLDER = "gathered"


class Missing(Exception):
    """An object that was there is gone or damaged: measure again."""


def gather(plan: Plan, store: Store, census: Census) -> Samples:
    """The columns of every sample, from one object if this was gathered before."""
    stages = [plan.read, *plan.images]
    addresses = [[address.measurement(plan.keys[s.name], content) for s in stages] for content in census.contents]
    place = address.gathered([s.name for s in stages], addresses)
    stored = store.get(FOLDER, place)
    stored = stored or _gathered(store, stages, addresses, place)
    table = stored.table
    census.provenance = stored.header["measured_with"]
    census.is_open = bool(stored.header.get("open"))
    counts = [known.samples for known in census.shards]
    shard = np.repeat(np.arange(len(counts)), counts)
    starts = np.repeat(np.cumsum([0, *counts[:-1]]) if counts else [], counts).astype(np.int64)
    return Samples(table, shard, np.arange(len(shard)) - starts)


def _gathered(store: Store, stages: Sequence[Any], addresses: Sequence[Sequence[str]], place: str) -> Object:
    open_rows = False
    parts = []
    provenance: dict[str, set[str]] = {stage.name: set() for stage in stages}
    for places in addresses:
        columns: dict[str, Any] = {}
        for stage, at in zip(stages, places, strict=True):
            stored = store.get(stage.name, at)
            if stored is None:
                raise Missing(stage.name)
            open_rows |= bool(stored.header.get("open"))
            provenance[stage.name].add(stored.header["measured_with"])
            columns |= _columns_of(stage, stored.table)
        parts.append(pa.table(columns))
    if parts:
        table = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    else:
        table = pa.table(_no_columns(stages))
    carried = table.column("carried").to_pylist()
    for name, column in carried_columns(carried).items() if any(carried) else ():
        table = table.append_column(name, column)
    table = table.drop_columns("carried")
    told = {name: sorted(with_what) for name, with_what in provenance.items()}
    header = {"measured_with": told, "open": open_rows}
    if not open_rows:  # what rests on an open row must not be trusted by the run that closes it
        store.put(FOLDER, place, table, header)
    return Object(table, header)


def _columns_of(stage: Any, table: pa.Table) -> dict[str, Any]:
    if stage.has("index"):
        return {name: table.column(name) for name in table.column_names if name != "embedding"}
    columns = {name: table.column(name) for name in stage.gives if name != "embedding"}
    return {**columns, **{f"{stage.name}.{name}": table.column(name) for name in ("cause", "detail")}}


def _no_columns(stages: Sequence[Any]) -> dict[str, Any]:
    columns = {field.name: pa.nulls(0, field.type) for field in READ_SCHEMA}
    for stage in stages[1:]:
        columns |= {name: pa.nulls(0, pa.float32()) for name in stage.gives if name != "embedding"}
        columns |= {f"{stage.name}.{name}": pa.nulls(0, pa.string()) for name in ("cause", "detail")}
    return columns


def find(plan: Plan, store: Store, census: Census, stage: Any, each: Each, voice: Any) -> Found:
    """What a stage with the verb `find` finds among the census's embeddings: stored, or found now."""
    feed = plan.feeds[stage.name]
    inputs = _addresses(plan, feed, census.contents)
    own = sorted(set(inputs))
    before = _earlier(plan, store, stage, own, voice.say)
    distinct = sorted({*own, *before.pieces})
    collection, shelf, place = _where(plan, stage, distinct)
    stored = _stored(store, stage, shelf, place, collection)
    compared = 0
    if stored is None:
        held = {at: _vectors_in(store, feed, at) for at in own}
        known = _known(store, stage, shelf, own)
        kind = [place, speeds_of(stage), sorted(known.addresses) if known is not None else []]
        desk = Desk(store.on_disk(), address.tagged("desk", kind)[:32], voice.say, voice)
        with desk.held():
            stored = _stored(store, stage, shelf, place, collection)  # by another run, while this one waited
            if stored is None:
                vectors = _vectors(store, feed, distinct, desk, before, known)
                compared_before = set(vectors.known.addresses if vectors.known else ())
                compared = sum(held[at] for at in inputs if at not in compared_before)
                others = sum(held[at] for at in inputs if at in compared_before)
                for line in _told(compared, others, before):
                    voice.say(f"{stage.name}: {line}")
                begin = time.monotonic()
                table = stage.find(vectors, partial(each, on_progress=voice.heard))  # type: ignore[call-arg]
                census.seconds[stage.name] += time.monotonic() - begin
                is_open = any(not store.has(feed, a) for a in own)
                header = {
                    "floor": getattr(stage, "similarity_floor", None), "collection": collection, "open": is_open,
                    "pieces": distinct,
                }  # fmt: skip
                store.put(stage.name, place, table, header, shelf)
                desk.clear()
    table = table if stored is None else stored.table
    outside = before.rows(distinct) if before.pieces else None
    return Found(table, *_places(census, inputs, distinct), compared, outside, tuple(sorted(before.pieces)))


def is_found(plan: Plan, store: Store, stage: Any, contents: Sequence[str]) -> bool:
    """Whether the store has what a stage finds among pieces of these contents."""
    own = sorted(set(_addresses(plan, plan.feeds[stage.name], contents)))
    distinct = sorted({*own, *_earlier(plan, store, stage, own).pieces})
    collection, shelf, place = _where(plan, stage, distinct)
    return _stored(store, stage, shelf, place, collection) is not None


def _addresses(plan: Plan, feed: str, contents: Sequence[str]) -> list[str]:
    return [address.measurement(plan.keys[feed], content) for content in contents]


def _where(plan: Plan, stage: Any, distinct: Sequence[str]) -> tuple[str, str, str]:
    """What stands for a collection; the shelf and the address of what is found in it."""
    collection = address.found("collection", distinct)
    return collection, shelf_of(plan, stage), address.found(plan.keys[stage.name], distinct)


def _columns(store: Store, feed: str, addresses: Sequence[str]) -> int | None:
    """The columns of the vectors at some addresses; None where there are none."""
    for at in addresses:
        stored = store.get(feed, at)
        if stored is not None and stored.table.column("embedding").null_count < stored.table.num_rows:
            return int(stored.table.column("embedding").type.list_size)
    return None


def _earlier(
    plan: Plan, store: Store, stage: Any, own: Sequence[str], say: Callable[[str], None] | None = None
) -> Earlier:
    """What was kept before, where the stage is told to compare with it; a path without any is said."""
    given, feed = getattr(stage, "against", None) or (), plan.feeds[stage.name]
    these = These(plan.space_of(stage), feed, plan.keys[feed], own, _columns(store, feed, own))
    pieces: dict[str, Outside] = {}
    for path in [given] if isinstance(given, str) else given:
        found = earlier([path], f"{stage.name}.against", these).pieces
        if not found and say is not None:
            say(f"{stage.name}.against: {path} holds no kept image, so nothing is compared with it")
        pieces |= found
    return Earlier(pieces)


def _vectors(store: Store, feed: str, distinct: Sequence[str], desk: Desk, before: Earlier, known: Known | None) -> Any:
    """What is searched; what was kept before counts as compared among itself."""
    if not before.pieces:
        return StoredVectors(store, feed, distinct, desk, known)
    own = StoredVectors(store, feed, ())
    return Joined(own, before.pieces, distinct, desk, Known(NOTHING, sorted(before.pieces)))


def _told(compared: int, others: int, before: Earlier) -> Iterator[str]:
    """What is compared with what; nothing where there is nothing to compare."""
    kept = sum(len(outside.rows) for outside in before.pieces.values())
    whom = ["each other"] if compared > 1 else []
    whom += [f"{counted(n, 'image')} {how} before" for n, how in ((others, "compared"), (kept, "kept")) if n]
    if compared and whom:
        yield f"comparing {counted(compared, 'image')} with {' and with '.join(whom)}"


def _known(store: Store, stage: Any, shelf: str, distinct: Sequence[str]) -> Known | None:
    """Of what was found among parts of this collection, at this floor or a lower one, that of the largest part."""
    best: Known | None = None
    if not hasattr(stage, "similarity_floor"):
        return None
    for candidate in store.shelf(stage.name, shelf):
        stored = store.get(stage.name, candidate, shelf)
        if stored is None or stored.header["open"] or stored.header["floor"] > stage.similarity_floor:
            continue
        pieces = stored.header["pieces"]
        if set(pieces) <= set(distinct) and len(pieces) > len(best.addresses if best else ()):
            best = Known(stored.table, pieces)
    return best


def _vectors_in(store: Store, feed: str, at: str) -> int:
    """Rows of a piece that have a vector. Raises Missing where it is gone."""
    stored = store.get(feed, at)
    if stored is None:
        raise Missing(f"{feed} {at}")
    column = stored.table.column("embedding")
    return int(len(column) - column.null_count)


def speeds_of(stage: ProcessingStage) -> dict[str, Any]:
    """The settings that change how a search is cut into tasks, and so what of it lies on its desk."""
    names = {n for n in type(stage).model_fields if stage.role_of(n) is Role.SPEEDS}
    return stage.model_dump(mode="json", include=names)


def _places(census: Census, inputs: Sequence[str], distinct: Sequence[str]) -> tuple[Array, Array]:
    """Where each row of the run stands among the distinct pieces."""
    numbers = {at: n for n, at in enumerate(distinct)}
    lengths = [last - first for k in census.shards for first, last in (k.bounds(p) for p in range(len(k.starts)))]
    piece = np.repeat(np.array([numbers[at] for at in inputs], np.int64), lengths)
    row = np.concatenate([np.arange(n) for n in lengths]) if lengths else np.zeros(0, np.int64)
    return piece, row


def shelf_of(plan: Plan, stage: ProcessingStage) -> str:
    """The folder of everything this stage found with other floors or among other collections."""
    fields = {k: v for k, v in stage.measure_fields().items() if k != "similarity_floor"}
    keys = [plan.keys[name] for name in plan.inputs_of(stage)]
    return address.stage_key(identity_of(type(stage)), fields, [], keys)[:32]


def _stored(store: Store, stage: Any, shelf: str, place: str, collection: str) -> Object | None:
    """Pairs of this collection for this floor, or for a lower one: those serve as well."""
    for candidate in dict.fromkeys([place, *store.shelf(stage.name, shelf)]):
        stored = store.get(stage.name, candidate, shelf)
        if stored is None or stored.header["open"] or stored.header["collection"] != collection:
            continue
        if stored.header["floor"] is None or stored.header["floor"] <= stage.similarity_floor:
            return stored
    return None
