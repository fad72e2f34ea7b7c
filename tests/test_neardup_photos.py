"""Real photos and their altered copies through the whole pipeline, with a real image model: what is found, who stays.

`scripts/bench_neardup.py` prints the curve that the numbers here lie just below.
"""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from curator import Pipeline, SemanticDeduplicationStage
from curator.custom import stage_class
from curator.pairs.found import NEAR, SAME, Found
from curator.store import Store, vectors_of
from curator.voice import Voice
from tests.conftest import ROOT, shared

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("neardup")]

FLOOR = 0.6


@pytest.fixture(scope="module")
def photos(tmp_path_factory, cluster):
    """500 photos, measured once; `decide` gives the rows of a ledger, `found` the pairs in the store, `cosine` the truth."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="a test dependency: pip install -e '.[dev]'")
    source, place = shared("data/neardup"), tmp_path_factory.mktemp("neardup")
    lite = stage_class("lite.Lite", "lite", ROOT / "examples/lite")()

    def decide(threshold):
        dedup = SemanticDeduplicationStage(similarity_floor=FLOOR, similarity_threshold=threshold)
        result = Pipeline("neardup", [lite, dedup]).run(
            input=f"{source}/*.tar", output=place / "out", store=place / "store", write_images=False, overwrite=True,
            started=lambda _: cluster, voice=Voice(quiet=True),
        )  # fmt: skip
        assert result.counts["failed"] == 0
        return result.ledger.to_pylist()

    keys = [row["key"] for row in decide(FLOOR)]
    with open(source / "truth.csv", newline="") as file:
        truth = {row["key"]: row["group"] for row in csv.DictReader(file)}
    (pairs,), (vectors,) = ((place / "store" / stage).glob("*/*") for stage in ("dedup", "lite"))
    store = Store(place / "store")
    found = Found(store.get("dedup", pairs.name, pairs.parent.name).table)
    emb_ND, _ = vectors_of(store.get("lite", vectors.name).table)
    unit = emb_ND / np.linalg.norm(emb_ND.astype(np.float64), axis=1, keepdims=True)
    group = np.array([truth[key] for key in keys])
    return SimpleNamespace(decide=decide, found=found, cosine=unit @ unit.T, group=group, keys=keys)


@pytest.mark.parametrize(
    ("threshold", "precision", "recall"),
    [(0.9, 0.999, 0.32), (0.8, 0.994, 0.79), (0.75, 0.987, 0.89), (0.7, 0.965, 0.94)],
)
def test_pairs_of_photos_above_a_threshold_are_copies_and_copies_are_pairs(photos, threshold, precision, recall):
    """Of all pairs in 40 groups of 11 a plain pHash finds 0.31 at precision 1, and 0.40 at 0.987."""
    assert photos.found.of_kind(SAME).num_rows == 0
    pairs = photos.found.of_kind(NEAR)
    near = pairs.column("similarity").to_numpy() >= threshold
    a, b = (photos.group[pairs.column(f"row_{side}").to_numpy()[near]] for side in "ab")
    _, size = np.unique(photos.group, return_counts=True)
    copies = (size * (size - 1) // 2).sum()
    assert copies == 2200
    assert (a == b).mean() >= precision
    assert (a == b).sum() / copies >= recall


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.75, 0.8, 0.9, 0.95])
def test_every_photo_that_is_dropped_is_like_one_that_is_kept_and_no_two_kept_are_alike(photos, threshold):
    """The promise about the result, told by its ledger and checked on the vectors: nobody loses a picture to a chain."""
    rows = photos.decide(threshold)
    number = {key: n for n, key in enumerate(photos.keys)}
    kept = [n for n, row in enumerate(rows) if row["status"] == "kept"]
    dropped = [n for n, row in enumerate(rows) if row["status"] == "dropped"]
    assert len(kept) + len(dropped) == len(rows)
    assert dropped
    for n in dropped:
        stays = number[rows[n]["duplicate_of_key"]]
        assert rows[stays]["status"] == "kept"
        assert rows[n]["duplicate_similarity"] >= threshold
        assert rows[n]["duplicate_similarity"] == pytest.approx(photos.cosine[n, stays], abs=1e-9)
    among_kept = photos.cosine[np.ix_(kept, kept)] - 2 * np.eye(len(kept))
    assert among_kept.max() < threshold


@pytest.mark.parametrize("threshold", [0.7, 0.75, 0.8])
def test_no_photo_with_copies_is_lost_with_all_of_them(photos, threshold):
    """A group of which nothing stays would be a picture taken for another one."""
    stay = {photos.group[n] for n, row in enumerate(photos.decide(threshold)) if row["status"] == "kept"}
    assert stay >= {name for name in photos.group if name.startswith("g")}
