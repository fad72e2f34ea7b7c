"""Duplicate groups as tables: Curator's own, the pairs as fastdup lists them, the pruning table of SemDeDup's line.

fastdup's `similarity.csv`: `from,to,distance`, where distance is the similarity, highest first. The pruning table, as
cosmos-curate writes it: `id`, `max_id`, `cosine_sim_score`; a row stays iff its score is at most `1 - eps`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.formats.keeplist import safe_cell
from curator.stage import Array


def groups_table(ledger: pa.Table) -> pa.Table:
    """A row for each member of a group: by group, the representative first, then the most similar.

    `group` is the representative's row in the ledger, null where it was kept by an earlier run. `similarity` is that
    to the representative, 1 on itself.
    """
    of = ledger.column("duplicate_of_key").combine_chunks().is_valid().to_numpy(zero_copy_only=False)
    group = ledger.column("duplicate_group").combine_chunks()
    rows = np.flatnonzero(group.is_valid().to_numpy(zero_copy_only=False) | of)
    taken = ledger.take(pa.array(rows))
    similarity = pc.if_else(pa.array(of[rows]), taken.column("duplicate_similarity"), pa.scalar(1.0, pa.float64()))
    table = pa.table(
        {
            "group": taken.column("duplicate_group"),
            "shard": taken.column("shard"),
            "key": taken.column("key"),
            "index": taken.column("index"),
            "image": taken.column("image"),
            "similarity": similarity,
            "is_representative": pa.array(~of[rows]),
            "kept": pc.equal(taken.column("status"), "kept"),
            "stage": taken.column("stage"),
            "representative_shard": pc.coalesce(taken.column("duplicate_of_shard"), taken.column("shard")),
            "representative_key": pc.coalesce(taken.column("duplicate_of_key"), taken.column("key")),
        }
    )
    return table.take(pa.array(_order(table)))


def _order(groups: pa.Table) -> Array:
    """By group (those of earlier runs last, by name), the representative first, then descending similarity."""
    shards, keys = (groups.column(f"representative_{name}").to_pylist() for name in ("shard", "key"))
    names = list(zip(shards, keys, strict=True))
    number = {name: n for n, name in enumerate(sorted(set(names)))}
    group = groups.column("group").fill_null(np.iinfo(np.int64).max).to_numpy()
    similarity, first = groups.column("similarity").to_numpy(), groups.column("is_representative").to_numpy()
    return np.lexsort((-similarity, ~first, [number[name] for name in names], group))


def pairs_of(groups: pa.Table) -> tuple[list[str], list[str], list[float]]:
    """Every member that is no representative, its representative, and their similarity, the highest first.

    Images are named `shard/image`; one that was kept by an earlier run `shard/key`.
    """
    rows = groups.to_pylist()
    names = {row["group"]: _name(row) for row in rows if row["is_representative"]}
    pairs = [
        (_name(row), names.get(row["group"]) or f"{row['representative_shard']}/{row['representative_key']}",
         row["similarity"])
        for row in rows if not row["is_representative"]
    ]  # fmt: skip
    pairs.sort(key=lambda pair: -pair[2])
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], [pair[2] for pair in pairs]


def _name(row: dict[str, Any]) -> str:
    return f"{row['shard'].rstrip('/')}/{row['image'] or row['key']}"


def write_similarity(file: IO[bytes], pairs: tuple[Sequence[str], Sequence[str], Sequence[float]]) -> None:
    """fastdup's `similarity.csv`."""
    text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["from", "to", "distance"])
    writer.writerows((safe_cell(a), safe_cell(b), f"{similarity:.6f}") for a, b, similarity in zip(*pairs, strict=True))
    text.flush()
    text.detach()


def pruning_table(groups: pa.Table, pairs: tuple[Sequence[str], Sequence[str], Sequence[float]]) -> pa.Table:
    """A representative points to itself with 0, a duplicate to its representative with their cosine."""
    firsts = [_name(row) for row in groups.to_pylist() if row["is_representative"]]
    return pa.table(
        {
            "id": pa.array([*firsts, *pairs[0]], pa.string()),
            "max_id": pa.array([*firsts, *pairs[1]], pa.string()),
            "cosine_sim_score": pa.array([*[0.0] * len(firsts), *pairs[2]], pa.float64()),
        }
    )
