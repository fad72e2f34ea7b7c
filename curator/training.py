"""Straight into training: `curator.open("out")` is a webdataset pipeline over what a run kept.

Over the written shards where there are any; else over the original ones, with just the kept samples in them, found by
shard and place, their members joined as Curator joins them. Ready for a PyTorch DataLoader: shards are split among
nodes and workers, each sample comes once an epoch. webdataset and torch are imported when it is called.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from curator.custom import builtin_stage
from curator.errors import ConfigError, InputChanged
from curator.formats import reader_of
from curator.formats.base import Sample, Shard
from curator.formats.keeplist import unsafe_cells
from curator.formats.outgoing import TAR, is_measured, suffixes_of
from curator.ledger import shown
from curator.output import RUN, Output
from curator.phases import inputs
from curator.phases.inputs import Members
from curator.settings import Settings
from curator.store import Store

UNIT = 256  # samples that one worker takes at a time, so that several share a huge shard
INDEXES = 8  # of shards that a worker keeps at hand
COLUMNS = ("shard", "key", "index", "image", "format", "content_hash")
LEDGER = ("status", *COLUMNS, "output_shard", "output_key")
LARGEST = 1 << 62


def open(output: str | Path, *, shardshuffle: int | bool = False, seed: int | None = None) -> Any:
    """A webdataset pipeline over the kept samples of an output folder, or of a `manifest.parquet` or `manifest.csv`.

    Samples are dicts as webdataset gives them (`__key__`, `__url__`, and the bytes of each member by its suffix);
    `.shuffle(1000).decode("pil").to_tuple("jpg;png", "json")` and the like follow. `shardshuffle`: the order of shards
    is shuffled as well, in a buffer of so many. Raises ConfigError where there is nothing to open, InputChanged when
    an original shard turns out to hold another image than was measured.
    """
    if "://" in str(output):
        raise ConfigError(f"{output}: is a URL; fetch the output first (its originals may stay where they are).")
    path = Path(output).absolute()
    if path.is_file():
        run = Output(path.parent.parent).run or {}
        return _over_originals(_listed(path), run, shardshuffle, seed)
    found = Output(path).run
    if found is None:
        raise ConfigError(f"{output}: holds no finished run ({RUN} is missing), nor is it a manifest.")
    rows = _ledger(path)
    if not pc.any(pc.equal(rows.column("status"), "kept")).as_py():
        raise ConfigError(f"{output}: this run kept no image.")
    places = rows.column("output_shard")
    if pc.any(pc.ends_with(places, ".tar")).as_py():
        return _over_written(path / "shards", rows, shardshuffle, seed)
    kept = rows.filter(pc.equal(rows.column("status"), "kept")).select(COLUMNS)
    if not kept.column("image").null_count < kept.num_rows:
        raise ConfigError(f"{output}: its input had vectors and no images, so there is nothing to train on.")
    return _over_originals(kept, found, shardshuffle, seed)


def _ledger(folder: Path) -> pa.Table:
    files = sorted((folder / "ledger").glob("*.parquet"))
    if not files:
        raise ConfigError(f"{folder}: its ledger is missing.")
    return pa.concat_tables([pq.read_table(file, columns=list(LEDGER)) for file in files])


def _listed(path: Path) -> pa.Table:
    """The kept rows of a manifest, each once; `shard` and `key` suffice, the rest is held against what is found."""
    try:
        table = _csv(path) if path.suffix.lower() == ".csv" else pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as a manifest: {error}") from None
    if not {"shard", "key"} <= set(table.column_names):
        names = ", ".join(table.column_names)
        raise ConfigError(f"{path}: no manifest, which has columns shard and key: it has {names}.")
    if "status" in table.column_names:
        table = table.filter(pc.equal(table.column("status"), "kept"))
    for name in COLUMNS:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.int64() if name == "index" else pa.string()))
    if not table.num_rows:
        raise ConfigError(f"{path}: lists no sample.")
    places = zip(*(table.column(name).to_pylist() for name in ("shard", "key", "index")), strict=True)
    first = {place: row for row, place in reversed(list(enumerate(places)))}
    return table.select(COLUMNS).take(pa.array(sorted(first.values())))


def _csv(path: Path) -> pa.Table:
    """A table whose cells are texts, as they were before a spreadsheet was kept from running them, but for `index`."""
    names = pa_csv.open_csv(path).schema.names
    types = {name: pa.int64() if name == "index" else pa.string() for name in names}
    as_written = pa_csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    table = pa_csv.read_csv(path, convert_options=as_written)
    for place, name in enumerate(table.column_names):
        if name != "index":
            table = table.set_column(place, name, unsafe_cells(table.column(name)))
    return table


def _over_written(folder: Path, rows: pa.Table, shardshuffle: int | bool, seed: int | None) -> Any:
    """The output's own tars; where dropped samples stand in them as well, just the kept ones of them."""
    import webdataset

    rows = rows.filter(rows.column("output_shard").is_valid())
    names = rows.column("output_shard").unique().to_pylist()
    paths = [folder / name for name in names]
    if gone := [str(path) for path in paths if not path.is_file()]:
        raise ConfigError(f"{gone[0]}: is gone; run the command that made {folder.parent} again.")
    if pc.all(pc.equal(rows.column("status"), "kept")).as_py():
        return webdataset.WebDataset(
            [str(path) for path in paths], shardshuffle=shardshuffle, seed=seed, empty_check=False,
            nodesplitter=webdataset.split_by_node,
        )  # fmt: skip
    shards = {name: Shard(name, str(path), TAR) for name, path in zip(names, paths, strict=True)}
    written = pa.table(
        {
            "shard": rows.column("output_shard"),
            "key": rows.column("output_key"),
            "index": pa.array(_places(rows.column("output_shard").to_pylist())),
            **{name: pa.nulls(rows.num_rows, pa.string()) for name in ("image", "format", "content_hash")},
        }
    )
    kept = written.filter(pc.equal(rows.column("status"), "kept"))
    return _pipeline(kept, shards, Samples(), shardshuffle, seed)


def _places(names: Sequence[str]) -> Sequence[int]:
    """How many of the same name stood before each: a sample's place in its tar."""
    had: dict[str, int] = {}
    places = []
    for name in names:
        places.append(had.get(name, 0))
        had[name] = places[-1] + 1
    return places


def _over_originals(rows: pa.Table, run: dict[str, Any], shardshuffle: int | bool, seed: int | None) -> Any:
    names = rows.column("shard").unique().to_pylist()
    shards = {entry["shard"]: entry["found"] for entry in run.get("inputs", []) if "found" in entry}
    found = {name: _shard(name, shards.get(name)) for name in names}
    samples = Samples(run.get("store"), (run.get("keys") or {}).get("read"))
    return _pipeline(rows, found, samples, shardshuffle, seed)


def _shard(name: str, recorded: dict[str, Any] | None) -> Shard:
    """The shard where the run found it; else, and for a manifest that stands alone, where its name says."""
    if recorded is not None:
        shard = Shard(**{key: _frozen(value) for key, value in recorded.items()})
        if "://" in shard.path or Path(shard.path).exists():
            return shard
    partition: Any = builtin_stage("partition")
    read: Any = builtin_stage("read")
    try:
        shards: list[Shard] = read.recognise(partition.list([name]), Settings().fetched_folder)
    except ConfigError as error:
        was = f" The run found it at {recorded['path']}." if recorded is not None else ""
        raise ConfigError(f"{name}: the original is not there any more.{was}") from error
    if not (found := [shard for shard in shards if shard.given == name]):
        raise ConfigError(f"{name}: is neither a tar nor a folder of images.")
    return found[0]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _pipeline(
    rows: pa.Table, shards: dict[str, Shard], samples: Samples, shardshuffle: int | bool, seed: int | None
) -> Any:
    import webdataset
    from webdataset.compat import FluidWrapper

    pipeline = FluidWrapper(list(_units(rows, shards)))
    pipeline.append(webdataset.split_by_node)
    pipeline.append(webdataset.split_by_worker)
    if shardshuffle:
        pipeline.append(webdataset.shuffle(100 if shardshuffle is True else shardshuffle, seed=seed))
    pipeline.append(samples)
    return pipeline


@dataclass(frozen=True)
class Unit:
    """Some kept rows of one shard, in order."""

    shard: Shard
    rows: pa.Table


def _units(rows: pa.Table, shards: dict[str, Shard]) -> Iterator[Unit]:
    names = rows.column("shard").combine_chunks().dictionary_encode()
    numbers = names.indices.to_numpy()
    order = np.argsort(numbers, kind="stable")
    rows, numbers = rows.take(pa.array(order)).combine_chunks(), numbers[order]
    for number, name in enumerate(names.dictionary.to_pylist()):
        begin, end = np.searchsorted(numbers, [number, number + 1]).tolist()
        for start in range(begin, end, UNIT):
            yield Unit(shards[name], rows.slice(start, min(UNIT, end - start)))


class Index:
    """The samples of one shard, by place or by key."""

    def __init__(self, given: str, members: Members) -> None:
        self.given, self.members = given, members

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = defaultdict(list)
        numbers, first = np.unique(self.members.table.column("sample").to_numpy(), return_index=True)
        keys = self.members.table.column("key").take(pa.array(first)).to_pylist()
        for number, key in zip(numbers.tolist(), keys, strict=True):
            places[shown(key)].append(number)
        return places

    def sample(self, key: str, index: int | None) -> Sample:
        """The sample of this key at this place; without a place, the only one of its key. InputChanged without one."""
        if index is None:
            places = self._places.get(key, [-1])
            if len(places) > 1:
                raise ConfigError(f"{self.given}: holds {len(places)} samples of the key {key}; list their index too.")
            index = places[0]
        found = self.members.samples(index, index + 1) if index >= 0 else []
        if not found or key not in (shown(found[0].key), found[0].key.decode("utf-8", "backslashreplace")):
            raise changed(self.given, key)
        return found[0]


@dataclass
class Samples:
    """The pipeline's step from units to samples. Pickles as a description."""

    store: str | None = None  # where the run remembered what its shards hold
    reader: str | None = None
    _indexes: OrderedDict[str, Index] = field(default_factory=OrderedDict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict()}

    def __call__(self, units: Iterable[Unit]) -> Iterator[dict[str, Any]]:
        """Every sample of the units, with all its members. Raises InputChanged where one is another by now."""
        for unit in units:
            try:
                yield from self._of(unit)
            except OSError as error:
                raise changed(unit.shard.given, str(error)) from error

    def _of(self, unit: Unit) -> Iterator[dict[str, Any]]:
        index = self._index(unit.shard)
        rows = unit.rows.to_pylist()
        samples = [index.sample(row["key"], row["index"]) for row in rows]
        contents = reader_of(unit.shard).read(unit.shard, (m for sample in samples for m in sample.members))
        for row, sample in zip(rows, samples, strict=True):
            found: dict[str, Any] = {"__key__": row["key"], "__url__": unit.shard.given}
            matched = row["content_hash"] is None
            for member, suffix in zip(sample.members, suffixes_of(sample, row["image"], row["format"]), strict=True):
                content = next(contents)
                matched = matched or (shown(member.name) == row["image"] and is_measured(content, row["content_hash"]))
                if name := suffix.decode("utf-8", "backslashreplace"):
                    found[name if name.lower() in found else name.lower()] = content
            if not matched:
                raise changed(unit.shard.given, row["key"])
            yield found

    def _index(self, shard: Shard) -> Index:
        if shard.path not in self._indexes:
            members = self._remembered(shard)
            if members is None:
                members = Members(inputs.members_table(reader_of(shard).index(shard, LARGEST).samples))
            self._indexes[shard.path] = Index(shard.given, members)
            while len(self._indexes) > INDEXES:
                self._indexes.popitem(last=False)
        return self._indexes[shard.path]

    def _remembered(self, shard: Shard) -> Members | None:
        """What the run's store knows of a shard that has not changed since."""
        if self.store is None or self.reader is None or not Path(self.store).is_dir():
            return None
        store = Store(self.store)
        known = inputs.recall(store, shard, self.reader, "stat")
        return None if known is None else inputs.members_of(store, shard)


def changed(given: str, what: str) -> InputChanged:
    """The error for an original that is not what the run measured."""
    return InputChanged(f"{given}: {what} is not what was measured. Run the command that decided it again.")
