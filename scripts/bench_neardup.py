"""How many altered copies are found and how many of those found are copies, by threshold; beside a plain pHash's.

    python scripts/bench_neardup.py ../shared/data/neardup

The folder holds tars and `truth.csv`, which gives each image's group: the copies of one photo, or one photo alone. The
images go through the whole pipeline with EfficientNet-Lite0 (`examples/lite`), once; each threshold is then decided
again over what is stored.

pairs      unordered pairs of images that are at or above the threshold, whoever is dropped for whom
precision  of these pairs, the share whose images are of one group
recall     of all pairs of images of one group, the share that is among them
kept       images that stay (Curator: the run's ledger; pHash: the same rule over its own pairs, the same ranks)
for a copy of the dropped images, the share that is dropped for one of their own group
one kept   groups of several images of which exactly one stays; `lost` are those of which none does

pHash: 32 x 32 grey pixels, their DCT, its 8 x 8 lowest frequencies against their median: 64 bits, of which at most so
many may differ.
"""

from __future__ import annotations

import csv
import io
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from curator import Pipeline, SemanticDeduplicationStage
from curator.custom import stage_class
from curator.pairs.found import NEAR, SAME, Found
from curator.pairs.ranking import ranks
from curator.pairs.representatives import Pairs, keep_representatives
from curator.store import Store
from curator.voice import Voice

THRESHOLDS = (0.95, 0.90, 0.85, 0.80, 0.775, 0.75, 0.725, 0.70, 0.65, 0.60)
DISTANCES = (0, 4, 8, 10, 12, 14, 16, 20)  # odd ones there are none: half of each image's bits are set
EXAMPLE = Path(__file__).resolve().parent.parent / "examples/lite"
SIDE, LOW = 32, 8


def decided(source: Path, place: Path, threshold: float) -> pa.Table:
    """The ledger at a threshold; the first call measures, and finds every pair down to the lowest threshold."""
    lite = stage_class("lite.Lite", "lite", EXAMPLE)()
    dedup = SemanticDeduplicationStage(similarity_floor=min(THRESHOLDS), similarity_threshold=threshold)
    voice = Voice(brief=True) if threshold == THRESHOLDS[0] else Voice(quiet=True)
    settings = {"output": place / "out", "store": place / "store", "write_images": False, "overwrite": True}
    return Pipeline("neardup", [lite, dedup]).run(input=f"{source}/*.tar", voice=voice, **settings).ledger


def found_similarity(store: Path, count: int) -> np.ndarray:
    """(N, N) the cosines that dedup found and stored; 0 below the floor, where it looks for none."""
    (path,) = (store / "dedup").glob("*/*")
    table = Store(store).get("dedup", path.name, path.parent.name).table
    near, same = (Found(table).of_kind(kind) for kind in (NEAR, SAME))
    if np.asarray(table.column("piece_a")).any():
        raise SystemExit("more images than one piece holds: rows of pieces are not the ledger's")
    a, b = (near.column(f"row_{side}").to_numpy() for side in "ab")
    similarity = np.eye(count)
    similarity[a, b] = similarity[b, a] = near.column("similarity").to_numpy()
    first = np.arange(count)  # images with one vector: dedup lists the pairs of the first of them
    first[same.column("row_b").to_numpy()] = same.column("row_a").to_numpy()
    return similarity[np.ix_(first, first)]


def perceptual_hashes(source: Path, keys: list[str]) -> np.ndarray:
    """(N, 64) bits."""
    waves = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5))  # DCT-II, up to scale
    found = {}
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith((".jpg", ".png")):
                    image = Image.open(io.BytesIO(tar.extractfile(info).read())).convert("L")
                    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
                    low = waves @ grey @ waves.T
                    found[info.name.partition(".")[0]] = (low > np.median(low)).ravel()
    return np.stack([found[key] for key in keys])


def line(name: str, near: np.ndarray, group: np.ndarray, dropped_by: np.ndarray) -> str:
    """One row of the table, of (N, N) who is near whom and (N,) who is dropped for whom (-1: it stays)."""
    upper = np.triu(np.ones_like(near), 1)
    copies, near = upper & (group[:, None] == group), upper & near
    right = int((near & copies).sum())
    dropped = np.flatnonzero(dropped_by >= 0)
    for_a_copy = (group[dropped] == group[dropped_by[dropped]]).mean() if len(dropped) else np.nan
    names, size = np.unique(group, return_counts=True)
    stay = np.array([(dropped_by[group == name] < 0).sum() for name in names[size > 1]])
    shares = (right / near.sum(), right / copies.sum())
    return (
        f"| {name} | {near.sum():,} | {shares[0]:.3f} | {shares[1]:.3f} | {len(group) - len(dropped)} | "
        f"{for_a_copy:.3f} | {(stay == 1).sum()} | {(stay == 0).sum()} |"
    )


def main() -> None:
    """Print one table."""
    source = Path(sys.argv[1]).resolve()
    with open(source / "truth.csv", newline="") as file:
        truth = {row["key"]: row["group"] for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        ledgers = {threshold: decided(source, place, threshold) for threshold in THRESHOLDS}
        ledger = ledgers[THRESHOLDS[0]]
        keys = ledger.column("key").to_pylist()
        similarity = found_similarity(place / "store", len(keys))
    group = np.array([truth[key] for key in keys])
    _, size = np.unique(group, return_counts=True)
    told = f"{(size > 1).sum()} groups and {(size == 1).sum()} alone, {(size * (size - 1) // 2).sum():,} pairs to find"
    print(f"| {len(keys)} images: {told} | pairs | precision | recall | kept | for a copy | one kept | lost |")
    print("|---|---|---|---|---|---|---|---|")
    number = {key: row for row, key in enumerate(keys)}
    for threshold, decision in ledgers.items():
        by = np.array([number.get(key, -1) for key in decision.column("duplicate_of_key").to_pylist()])
        print(line(f"Curator, cosine >= {threshold:g}", similarity >= threshold, group, by))
    bits = perceptual_hashes(source, keys).astype(np.int64)
    distance = bits @ (1 - bits).T + (1 - bits) @ bits.T
    rank = ranks({n: ledger.column(n).to_numpy() for n in ("width", "height", "bytes")}, None, len(keys))
    for most in DISTANCES:
        a, b = np.nonzero(np.triu(distance <= most, 1))
        by, _ = keep_representatives(len(keys), Pairs.of(a, b, -distance[a, b].astype(float), rank), rank)
        print(line(f"pHash, distance <= {most}", distance <= most, group, by))


if __name__ == "__main__":
    main()
