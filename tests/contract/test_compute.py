"""What every twin of `compute` promises; `cpu` runs everywhere, `cuda` where a GPU is."""

from __future__ import annotations

import numpy as np
import pytest

from curator.compute import compute_for
from curator.desk import Desk
from curator.machine import gpus
from curator.pairs.found import NEAR, Found
from curator.pairs.search import Wanted, search
from curator.store import Store
from tests.test_search import clustered, stored


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def compute(request):
    """A twin; that of a GPU only where one works."""
    if request.param == "cuda" and not gpus()[0]:
        pytest.skip(f"needs a GPU: {gpus()[1]}")
    return compute_for(request.param)


@pytest.mark.parametrize(("rows", "k"), [(500, 12), (5, 12), (1, 3), (64, 1)])
def test_centroids_are_as_many_as_were_asked_for_or_there_are_rows(compute, rows, k):
    """Of float16 rows, in float32, finite, of no length beyond that of a unit row."""
    centroids = compute.fit(clustered(1, max(rows, 10))[:rows], k, 0)
    assert (centroids.shape, centroids.dtype) == ((min(k, rows), 32), np.float32)
    assert np.isfinite(centroids).all()
    assert np.linalg.norm(centroids, axis=1).max() < 1.01


def test_rows_that_are_all_the_same_have_cells_all_the_same(compute):
    """Cells that stay empty are no fault."""
    rows = np.repeat(clustered(1, 10)[:1], 300, axis=0)
    centroids = compute.fit(rows, 7, 0)
    home = compute.assign(rows, centroids)
    assert len(set(home.tolist())) == 1
    assert np.allclose(centroids[home[0]], rows[0].astype(np.float32), atol=5e-3)


def test_the_same_seed_gives_the_same_centroids(compute):
    """On one device, to the bit."""
    rows = clustered(4, 700)
    assert np.array_equal(compute.fit(rows, 20, 3), compute.fit(rows, 20, 3))


def test_a_home_is_the_nearest_centroid_but_for_near_ties(compute):
    """Against distances in float64."""
    rows = clustered(2, 2000)
    centroids = compute.fit(rows, 50, 0)
    home = compute.assign(rows, centroids)
    assert home.dtype == np.int32
    wide = rows.astype(np.float64)
    distance = ((wide[:, None] - centroids[None].astype(np.float64)) ** 2).sum(axis=2)
    lost = distance[np.arange(len(rows)), home] - distance.min(axis=1)
    assert lost.max() < 0.02
    assert (lost > 0).mean() < 0.02


def test_rows_are_sorted_by_cell_then_by_whether_they_are_new_then_as_they_came(compute):
    """Stable: the layout on disk hangs on it."""
    rng = np.random.default_rng(0)
    cell, new = rng.integers(0, 9, 1000), rng.integers(0, 2, 1000).astype(np.uint8)
    expected = sorted(range(1000), key=lambda row: (cell[row], new[row], row))
    assert compute.order(cell, new).tolist() == expected


@pytest.mark.parametrize("cells", ["fitted", "random", "all far away"])
def test_whichever_centroids_drive_the_search_it_finds_the_same_pairs(tmp_path, monkeypatch, compute, cells):
    """The guarantee needs no good cells: cuML's, this one's, or none that anybody would choose."""
    emb = clustered(7, 900)
    vectors = stored(tmp_path / "store", emb)
    whole = Found(search(vectors, map, Wanted(0.85)).table()).of_kind(NEAR)
    if cells != "fitted":
        rng = np.random.default_rng(0)
        given = clustered(8, 900)[:25].astype(np.float32) if cells == "random" else rng.normal(size=(25, 32)) / 20 - 0.5
        monkeypatch.setattr(type(compute), "fit", lambda *_: given.astype(np.float32))
    desk = Desk(Store(tmp_path / "store"), "other")
    other = search(type(vectors)(vectors.store, "embed", vectors.addresses, desk), map, Wanted(0.85, cells=25))
    assert Found(other.table()).of_kind(NEAR).equals(whole)
    assert whole.num_rows > 50
