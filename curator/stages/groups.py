"""groups: which images were taken for one another, as tables. Copies no image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.commit import commit
from curator.formats.groups import groups_table, pairs_of, pruning_table, write_similarity
from curator.stage import Each, ProcessingStage, Source


class GroupWriterStage(ProcessingStage):
    """Write `groups/groups.parquet`, fastdup's `groups/similarity.csv` and SemDeDup's `groups/pruning.parquet`."""

    called: ClassVar[str] = "groups"
    version: ClassVar[int] = 1
    light: ClassVar[bool] = True

    def write(
        self, kept: pa.Table, source: Source, folder: Path, each: Each
    ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Write the groups of the whole ledger, dropped members included; no columns, and facts for run.json."""
        place = folder / self.name
        place.mkdir()
        groups = groups_table(source.ledger)
        pairs = pairs_of(groups)
        with commit(place / "groups.parquet") as file:
            pq.write_table(groups, file)
        with commit(place / "similarity.csv") as file:
            write_similarity(file, pairs)
        with commit(place / "pruning.parquet") as file:
            pq.write_table(pruning_table(groups, pairs), file)
        firsts = int(pc.sum(groups.column("is_representative")).as_py() or 0)
        remarks = [] if groups.num_rows else ["no two images were taken for one another; the tables are empty"]
        return {}, {"groups": firsts, "members": groups.num_rows, "remarks": remarks}
