"""The third phase: kept rows go to the writers, which copy the bytes that came in. Decodes nothing, knows no format."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator import address
from curator.errors import InputChanged, OutsideError, StoreError
from curator.formats import reader_of
from curator.formats.base import Member, Sample, Shard
from curator.ledger import OUTPUT
from curator.phases import inputs
from curator.phases.book import with_output
from curator.phases.inputs import Known, Members
from curator.stage import Array, Each, Mask
from curator.store import Store, vectors_of
from curator.units import readable
from curator.wiring import Plan

SAMPLES_AT_ONCE = 1024


class StoredSource:
    """The samples of a run, as their shards were indexed, and what embedded them. Pickles as a description."""

    def __init__(self, store: Store, shards: Sequence[Known], plan: Plan, run: str = "", output: str = "") -> None:
        self.store, self.shards, self.run, self.output = store, list(shards), run, output
        self.feeds = {stage: (feed, plan.keys[feed]) for stage, feed in plan.feeds.items()}
        self.embeddings = {feed: plan.embedding(feed) for feed in set(plan.feeds.values())}
        self.ledger: Any = None
        self._members: tuple[str, Members] | None = None
        self._window: tuple[str, int, list[Sample]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ledger": None, "_members": None, "_window": None}

    @cached_property
    def _known(self) -> dict[str, Known]:
        return {known.shard.given: known for known in self.shards}

    def shard(self, given: str) -> Shard:
        """The shard that the ledger calls by this name."""
        return self._known[given].shard

    def sample(self, shard: str, index: int) -> Sample:
        """One sample by its place; cheap when asked in order. Of vectors that came alone, one without members."""
        if self.shard(shard).format == "vectors":
            return Sample(b"", ())
        window = self._window
        if window is None or window[0] != shard or not window[1] <= index < window[1] + len(window[2]):
            first = index - index % SAMPLES_AT_ONCE
            window = self._window = (shard, first, self._load(shard).samples(first, first + SAMPLES_AT_ONCE))
        return window[2][index - window[1]]

    def _load(self, shard: str) -> Members:
        if self._members is None or self._members[0] != shard:
            members = inputs.members_of(self.store, self.shard(shard))
            if members is None:
                raise InputChanged(f"{shard}: what was known of it went missing; run the same command again.")
            self._members = (shard, members)
        return self._members[1]

    def read(self, shard: str, members: Iterable[Member]) -> Iterator[bytes]:
        """The bytes of some members of a shard, in order."""
        yield from reader_of(self.shard(shard)).read(self.shard(shard), members)

    def vectors(self, stage: str, rows: pa.Table) -> Iterator[tuple[Array, Mask]]:
        """The embeddings that a stage is fed, piece by piece in the order of the rows."""
        feed, key = self.feeds[stage]
        shards, indices = rows.column("shard").to_pylist(), rows.column("index").to_numpy()
        for given, places in groupby(zip(shards, indices.tolist(), strict=True), lambda place: place[0]):
            known = self._known[given]
            at = np.array([index for _, index in places], np.int64)
            pieces = np.searchsorted(known.starts, at, side="right") - 1
            for begin, end in _runs(pieces):
                content = known.contents[pieces[begin]]
                stored = self.store.get(feed, address.measurement(key, str(content)))
                if stored is None:
                    raise StoreError(f"{given}: its vectors went missing; run the same command again.")
                emb_ND, has = vectors_of(stored.table)
                here = at[begin:end] - known.starts[pieces[begin]]
                yield emb_ND[here], has[here]

    def embedded_by(self, stage: str) -> dict[str, Any]:
        """What made the embeddings that a stage is fed."""
        return self.embeddings[self.feeds[stage][0]]

    def check(self, shard: str) -> None:
        """Raise InputChanged where the file is not the one that was measured; the next run looks at it again."""
        known = self._known[shard]
        try:
            stamp = reader_of(known.shard).stamp(known.shard)
        except OSError as error:
            stamp = str(error)
        if stamp != known.stamp:
            self.forget(shard)
            raise InputChanged(
                f"{shard}: changed since it was measured; nothing was replaced. Run the same command again to "
                "measure it."
            )

    def forget(self, shard: str) -> None:
        """Do not trust what was remembered of this file."""
        inputs.forget(self.store, self._known[shard].shard)


def write(
    ledger: pa.Table, writers: Sequence[Any], source: StoredSource, folder: Path, each: Each
) -> tuple[pa.Table, dict[str, Any]]:
    """Run the writers over the rows that they take; the ledger with `output_shard` and `output_key`, facts by writer.

    A writer with `include_dropped` takes dropped rows as well; failed ones have no image to be written.
    """
    status = ledger.column("status")
    kept = np.flatnonzero(pc.equal(status, "kept").to_numpy())
    sound = np.flatnonzero(pc.not_equal(status, "failed").to_numpy())
    places = {name: np.full(ledger.num_rows, None, object) for name in OUTPUT.names}
    facts: dict[str, Any] = {}
    source.ledger = ledger
    for writer in writers:
        taken = sound if getattr(writer, "include_dropped", False) else kept
        rows = ledger.take(pa.array(taken))
        if writer.copies_images:
            _check_space(rows, folder)
        try:
            given, facts[writer.name] = writer.write(rows, source, folder, each)
        except InputChanged as error:
            if error.shard is not None:
                source.forget(error.shard)
            raise
        for name in given.keys() & places.keys():
            free = np.array([had is None for had in places[name][taken]], bool)  # the ledger names the first place
            places[name][taken[free]] = np.asarray(given[name], object)[free]
    return with_output(ledger, places), facts


def statuses_written(writers: Sequence[Any]) -> list[str]:
    """The statuses whose rows have an output place once these writers are through."""
    copying = [w for w in writers if w.copies_images]
    dropped = any(getattr(w, "include_dropped", False) for w in copying)
    return (["kept", "dropped"] if dropped else ["kept"]) if copying else []


def _runs(numbers: Array) -> Iterator[tuple[int, int]]:
    """Where equal neighbours begin and end."""
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return pairwise(borders)


def _check_space(rows: pa.Table, folder: Path) -> None:
    needed = int(pc.sum(rows.column("bytes")).as_py() or 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutsideError(
            f"{folder.parent}: the images take {readable(needed)}, and {readable(free)} are free. "
            "All earlier work is safe: free some space, or name another place with output=... and run again."
        )
