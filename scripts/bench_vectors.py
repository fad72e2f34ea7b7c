"""Precomputed vectors through NSFW, aesthetic, dedup and a keep-list: rows per second and memory of a whole run.

    python scripts/bench_vectors.py 1000000 --heads ../shared/heads/official

Vectors are generated (`vectors.py`, the set `shared`) into clip-retrieval's layout under `--folder`, 1.6 GB for a
million, and stay there. Heads are LAION's own files; scores of generated vectors mean nothing, their cost is real.
The second run re-decides with other thresholds; the third finds a finished output. Memory is PSS of all processes.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from vectors import BLOCK, SETS, VERSION, WIDTH, collection
from watch import MIB, Watch

from curator import (
    FilePartitioningStage,
    ImageAestheticFilterStage,
    ImageNSFWFilterStage,
    ImageReaderStage,
    ManifestWriterStage,
    Pipeline,
    Result,
    SemanticDeduplicationStage,
)

ROWS_PER_FILE = 98_304  # whole blocks


def folder_of(folder: Path, rows: int) -> Path:
    """clip-retrieval's layout: vectors, and a table with key, caption and URL."""
    out = folder / f"clip-retrieval-{rows}-{VERSION}"
    if (out / "done").exists():
        return out
    made = collection(folder, next(iter(SETS)), rows)
    for name in ("img_emb", "metadata"):
        (out / name).mkdir(parents=True, exist_ok=True)
    order = np.argsort(made.block)
    per_file = ROWS_PER_FILE // BLOCK
    for number, start in enumerate(range(0, len(order), per_file)):
        parts = [made.vectors.read(made.addresses[n])[0] for n in order[start : start + per_file]]
        emb_ND = np.concatenate(parts)
        first = start * BLOCK
        names = np.arange(first, first + len(emb_ND))
        np.save(out / f"img_emb/img_emb_{number:02d}.npy", emb_ND)
        table = pa.table({
            "image_path": [f"{n:09d}" for n in names], "caption": [f"a picture of thing {n % 997}" for n in names],
            "url": [f"https://example.org/{n}.jpg" for n in names],
        })  # fmt: skip
        pq.write_table(table, out / f"metadata/metadata_{number:02d}.parquet")
    (out / "done").touch()
    return out


def run(source: Path, out: Path, heads: Path, nsfw: float) -> tuple[Result, Watch]:
    """One run of the whole."""
    stages = [
        FilePartitioningStage(), ImageReaderStage(embedding_space="ViT-L-14-quickgelu/openai"),
        ImageNSFWFilterStage(model_dir=str(heads), score_threshold=nsfw),
        ImageAestheticFilterStage(model_dir=str(heads), score_threshold=0.0),
        SemanticDeduplicationStage(similarity_floor=0.95), ManifestWriterStage(),
    ]  # fmt: skip
    with Watch() as watch:
        result = Pipeline("bench", stages).run(input=source, output=out / "out", store=out / "store")
    return result, watch


def main() -> None:
    """Three runs, one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curator-bench")
    given = parser.parse_args()
    source = folder_of(given.folder, given.rows)
    work = given.folder / "vectors-run"
    shutil.rmtree(work, ignore_errors=True)
    print(f"{given.rows:,} rows of {WIDTH} columns\n")
    print("| run | seconds | rows/s | peak of all processes, MiB | kept | dropped | failed |")
    print("|---|---|---|---|---|---|---|")
    for name, nsfw in (("first", 1.0), ("another threshold", 0.99), ("the same again", 0.99)):
        result, watch = run(source, work, given.heads, nsfw)
        counts = result.counts
        print(
            f"| {name} | {watch.seconds:.1f} | {given.rows / watch.seconds:,.0f} | {watch.peak / MIB:,.0f} | "
            f"{counts['kept']:,} | {counts['dropped']:,} | {counts['failed']:,} |", flush=True,
        )  # fmt: skip
        print(f"  seconds by phase {result.run['seconds']}, by stage {result.run['stage_seconds']}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
