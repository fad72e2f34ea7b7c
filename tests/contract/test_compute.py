"""What every twin of `compute` promises; `cpu` runs everywhere, `cuda` where a GPU is."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from curator import here
from curator.compute import compute_for
from curator.compute.cpu import CpuCompute
from curator.desk import Desk
from curator.errors import ClusterError
from curator.machine import gpus
from curator.pairs import search as near
from curator.pairs.found import NEAR, Found
from curator.pairs.search import Wanted, search
from curator.store import Store
from tests.test_search import clustered, stored


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def compute(request):
    """A twin; that of a GPU only where one works."""
    if request.param == "cuda":
        if not gpus()[0]:
            pytest.skip(f"needs a GPU: {gpus()[1]}")
        pytest.importorskip("cuml", reason="a GPU is here, but RAPIDS is not: pip install -e '.[gpu]'")
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
    """On a processor to the bit; cuML adds in any order (its issue 5731), so there as good ones."""
    rows = clustered(4, 700)
    one, other = compute.fit(rows, 20, 3), compute.fit(rows, 20, 3)
    if isinstance(compute, CpuCompute):
        assert np.array_equal(one, other)
    assert spread(rows, other) == pytest.approx(spread(rows, one), rel=0.25)


def test_centroids_lie_where_the_rows_are(compute):
    """Far nearer to them than rows drawn by chance are, which is where the search would start without a fit."""
    rows = clustered(4, 3000)
    chance = rows[np.random.default_rng(1).permutation(len(rows))[:40]].astype(np.float32)
    assert spread(rows, compute.fit(rows, 40, 0)) < 0.8 * spread(rows, chance)


def spread(rows, centroids):
    """Mean squared distance to the nearest centroid, in float64."""
    wide, centres = rows.astype(np.float64), centroids.astype(np.float64)
    return ((wide[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).mean()


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
    """The guarantee needs no good cells: cuML's, this one's, or none that anybody would choose.

    What they are held against is found on a processor, in one cell.
    """
    emb = clustered(7, 900)
    vectors = stored(tmp_path / "store", emb)
    whole = Found(search(vectors, map, Wanted(0.85)).table()).of_kind(NEAR)
    monkeypatch.setattr(here._here, "device", "cpu" if isinstance(compute, CpuCompute) else "cuda")
    if cells != "fitted":
        rng = np.random.default_rng(0)
        given = clustered(8, 900)[:25].astype(np.float32) if cells == "random" else rng.normal(size=(25, 32)) / 20 - 0.5
        monkeypatch.setattr(type(compute), "fit", lambda *_: given.astype(np.float32))
    desk = Desk(Store(tmp_path / "store"), f"other-{cells}")
    other = search(type(vectors)(vectors.store, "embed", vectors.addresses, desk), map, Wanted(0.85, cells=25))
    assert Found(other.table()).of_kind(NEAR).equals(whole)
    assert whole.num_rows > 50


def test_coordinates_that_lie_on_the_device_as_a_whole_give_the_same_pairs(tmp_path, monkeypatch):
    """As on a GPU, where rows are taken from there and not sent each time."""
    emb = clustered(7, 900)
    whole = Found(search(stored(tmp_path / "store", emb), map, Wanted(0.85, cells=25)).table())

    class Resident(near.Comparison):
        def __init__(self, unit, device):
            super().__init__(unit, device)
            self.whole = near.as_tensor(self.leads, device)

    monkeypatch.setattr(near, "Comparison", Resident)
    other = Found(search(stored(tmp_path / "other", emb), map, Wanted(0.85, cells=25)).table())
    assert other.of_kind(NEAR).equals(whole.of_kind(NEAR))


def test_a_search_that_began_anew_takes_no_coordinates_of_the_one_before(tmp_path, monkeypatch):
    """cuML does not give the same cells twice: under the same name rows may lie in another order."""
    vectors = stored(tmp_path / "store", clustered(7, 900))
    keys = []

    class Told(near.Comparison):
        def __init__(self, unit, device):
            super().__init__(unit, device)
            keys[-1].add(self._written())

    monkeypatch.setattr(near, "Comparison", Told)
    monkeypatch.setattr(near, "TASK_PAIRS", 50_000)
    for _ in range(2):
        vectors.desk.clear()
        keys.append(set())
        search(vectors, map, Wanted(0.85, cells=25))
    assert [len(some) for some in keys] == [1, 1]
    assert keys[0] != keys[1]


def test_where_memory_of_a_gpu_is_short_blocks_are_halved_and_nothing_is_lost(tmp_path, monkeypatch):
    """It is said in one line, with the setting to lower."""
    emb, wanted = clustered(7, 900), Wanted(0.85, cells=25, block_rows=64)
    whole = Found(search(stored(tmp_path / "store", emb), map, wanted).table())
    real, said = near.candidates, []

    def short(a, b, *rest):
        if a is not b and len(a) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(a, b, *rest)

    monkeypatch.setattr(near, "candidates", short)
    vectors = stored(tmp_path / "other", emb)
    desk = Desk(vectors.store, "desk", said.append)
    other = search(type(vectors)(vectors.store, "embed", vectors.addresses, desk), map, wanted)
    assert Found(other.table()).of_kind(NEAR).equals(whole.of_kind(NEAR))
    assert "a GPU's memory was short" in said[-1]
    assert "try a smaller dedup.block_rows" in said[-1]


def test_a_gpu_without_rapids_is_a_sentence_that_says_what_to_do(monkeypatch):
    """Workers that somebody started by hand are not looked at before they have a task."""
    monkeypatch.setitem(sys.modules, "curator.compute.cuda", None)
    with pytest.raises(ClusterError, match=r"extra `gpu`.*CUDA_VISIBLE_DEVICES=-1"):
        compute_for("cuda")
