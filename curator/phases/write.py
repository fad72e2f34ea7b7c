"""The third phase: kept rows go to the writers, which copy the bytes that came in. Decodes nothing, knows no format."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.errors import InputChanged, OutsideError
from curator.formats import reader_of
from curator.formats.base import Member, Sample, Shard
from curator.phases import inputs
from curator.phases.book import with_output
from curator.phases.inputs import Known, Members
from curator.stage import Each
from curator.store import Store
from curator.units import readable

SAMPLES_AT_ONCE = 1024


class StoredSource:
    """The samples of a run, as their shards were indexed. Pickles as a description."""

    def __init__(self, store: Store, shards: Sequence[Known]) -> None:
        self.store, self.shards = store, list(shards)
        self._members: tuple[str, Members] | None = None
        self._window: tuple[str, int, list[Sample]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "shards": self.shards, "_members": None, "_window": None}

    @cached_property
    def _known(self) -> dict[str, Known]:
        return {known.shard.given: known for known in self.shards}

    def shard(self, given: str) -> Shard:
        """The shard that the ledger calls by this name."""
        return self._known[given].shard

    def sample(self, shard: str, index: int) -> Sample:
        """One sample by its place; cheap when asked in order."""
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
    """Run the writers over the kept rows; the ledger with `output_shard` and `output_key`, and facts by writer."""
    kept = np.flatnonzero(pc.equal(ledger.column("status"), "kept").to_numpy())
    rows = ledger.take(pa.array(kept))
    columns: dict[str, Sequence[Any]] = {}
    facts: dict[str, Any] = {}
    if writers:
        _check_space(rows, folder)
    for writer in writers:
        try:
            given, facts[writer.name] = writer.write(rows, source, folder, each)
        except InputChanged as error:
            if error.shard is not None:
                source.forget(error.shard)
            raise
        columns = {**given, **columns}
    return with_output(ledger, kept, columns), facts


def _check_space(rows: pa.Table, folder: Path) -> None:
    needed = int(pc.sum(rows.column("bytes")).as_py() or 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutsideError(
            f"{folder.parent}: the kept images take {readable(needed)}, and {readable(free)} are free. "
            "All earlier work is safe: free some space, or name another place with output=... and run again."
        )
