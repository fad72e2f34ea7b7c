"""Every call to RAPIDS fits the signature that is installed, also where no GPU is: `make test-gpu-signatures`.

The GPU twin's own lines run here: NumPy, pandas and scikit-learn do the work behind the signatures of CuPy, cuDF and
cuML. What those do themselves is for a machine with a GPU to show (tests/contract/test_compute.py).
"""

from __future__ import annotations

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from curator.machine import ClusterSettings, Shape

DOCS = Path(__file__).parent.parent / "docs"
LACKING = "RAPIDS is not installed here: make test-gpu-signatures installs it"


def rapids(name):
    """A module of RAPIDS, or the test is skipped."""
    pytest.importorskip(name.partition(".")[0], reason=LACKING)
    return import_module(name)


def bound(real, works):
    """`works` behind the signature of `real`: a call that does not fit it raises TypeError."""
    signature = inspect.signature(real)

    def called(*given, **words):
        signature.bind(*given, **words)
        return works(*given, **words)

    return called


@pytest.fixture
def twin(monkeypatch):
    """The GPU twin, with the processor's arithmetic below it."""
    cupy, cudf, cuml = rapids("cupy"), rapids("cudf"), rapids("cuml.cluster")
    pandas, sklearn = rapids("pandas"), rapids("sklearn.cluster")
    cuda = import_module("curator.compute.cuda")

    class Table(pandas.DataFrame):
        sort_values = bound(cudf.DataFrame.sort_values, lambda *a, **words: pandas.DataFrame.sort_values(*a, **words))

    class Means(cuml.KMeans):
        def __init__(self, **words):
            inspect.signature(cuml.KMeans).bind(**words)
            self.words = {n: w for n, w in words.items() if n not in ("init", "output_type")}

        def fit(self, *given, **words):
            inspect.signature(cuml.KMeans.fit).bind(self, *given, **words)
            self.cluster_centers = sklearn.KMeans(**self.words, n_init=1).fit(*given, **words).cluster_centers_

        cluster_centers_ = property(lambda self: self.cluster_centers)

    works = {"asarray": np.asarray, "asnumpy": np.asarray, "arange": np.arange}
    monkeypatch.setattr(
        cuda, "cupy", SimpleNamespace(**{n: bound(getattr(cupy, n), work) for n, work in works.items()})
    )
    monkeypatch.setattr(cuda, "cudf", SimpleNamespace(DataFrame=bound(cudf.DataFrame, Table)))
    monkeypatch.setattr(cuda, "KMeans", Means)
    return cuda


def rows_of(count, seed=0):
    """(count, 32) float16 unit rows."""
    rows = np.random.default_rng(seed).normal(size=(count, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize(("rows", "k"), [(500, 12), (5, 12), (1, 3), (64, 1)])
@pytest.mark.filterwarnings("ignore")  # what scikit-learn says of few rows
def test_fitting_calls_cuml_as_it_wants_to_be_called(twin, rows, k):
    """Never more clusters than rows, which cuML refuses; float32 comes back."""
    centroids = twin.CudaCompute().fit(rows_of(rows), k, 0)
    assert (centroids.shape, centroids.dtype) == ((min(k, rows), 32), np.float32)


@pytest.mark.parametrize("block_bytes", [1, 100_000, 1 << 30])
def test_homes_are_the_nearest_centroids_whatever_the_size_of_a_block(twin, monkeypatch, block_bytes):
    """Row by row, some at once, all at once."""
    monkeypatch.setattr(twin, "BLOCK_BYTES", block_bytes)
    rows, centroids = rows_of(700), rows_of(20, 1).astype(np.float32) * np.linspace(0.1, 1, 20, dtype=np.float32)[:, None]
    distance = ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    home = twin.CudaCompute().assign(rows, centroids)
    assert home.dtype == np.int32
    assert (distance[np.arange(len(rows)), home] - distance.min(axis=1)).max() < 1e-6


def test_rows_are_sorted_as_the_processors_twin_sorts_them(twin):
    """By cell, known ones first, then as they came."""
    rng = np.random.default_rng(0)
    cell, new = rng.integers(0, 9, 1000).astype(np.int32), rng.integers(0, 2, 1000).astype(np.uint8)
    order = twin.CudaCompute().order(cell, new)
    assert order.dtype == np.int64
    assert order.tolist() == np.lexsort((np.arange(1000), new, cell)).tolist()


def test_what_is_used_of_arrays_and_of_a_fitted_kmeans_is_there():
    """Methods of CuPy's arrays have no signature to be read; their documentation has one."""
    array = rapids("cupy").ndarray
    for name, words in {"astype": ["dtype", "copy"], "argmax": ["axis"], "sum": ["axis"]}.items():
        first = (getattr(array, name).__doc__ or "").splitlines()[0]
        assert all(word in first for word in words), first
    assert "cluster_centers_" in (rapids("cuml.cluster").KMeans.__doc__ or "")
    assert isinstance(rapids("cudf").Series.values, property)


@pytest.mark.parametrize("settings", [{}, {"dashboard": "8787", "rmm_pool_size": None, "memory_limit": "8GiB"}])
def test_dask_cuda_knows_each_argument_that_it_is_given(monkeypatch, tmp_path, settings):
    """Also those that it hands on to Dask, which would hand an unknown one to the workers."""
    dask_cuda, distributed = rapids("dask_cuda"), rapids("distributed")
    cluster = import_module("curator.cluster")
    signature, told = inspect.signature(dask_cuda.LocalCUDACluster), {}
    monkeypatch.setattr(dask_cuda, "LocalCUDACluster", lambda **words: told.update(words))
    monkeypatch.setattr(cluster.machine, "gpus", lambda: (["0", "GPU-1"], ""))
    shape = Shape("cuda", "cuda", 2, 4, 4, 4)
    cluster._cuda_cluster(ClusterSettings(kind="cuda", **settings), shape, str(tmp_path))
    handed_on = signature.bind(**told).arguments.pop("kwargs", {})
    assert set(handed_on) <= set(inspect.signature(distributed.LocalCluster).parameters)
    parse = rapids("dask_cuda.utils").parse_cuda_visible_device
    assert [parse(name) for name in told["CUDA_VISIBLE_DEVICES"]] == [0, "GPU-1"]


@pytest.mark.parametrize(("text", "size"), [("50%", 40e9), ("100%", 80e9), ("20GB", 20e9), ("20 GiB", 20 << 30), ("2000000", 1_999_872)])
def test_a_pool_is_as_large_as_was_written(monkeypatch, text, size):
    """A share of the GPU, here of 80 GB, or a size in whole 256 bytes."""
    utils, cluster = rapids("dask_cuda.utils"), import_module("curator.cluster")
    monkeypatch.setattr(utils, "has_device_memory_resource", lambda *_: True)
    monkeypatch.setattr(utils, "get_device_total_memory", lambda *_: 80_000_000_000)
    pool = cluster._pool(ClusterSettings(rmm_pool_size=text).rmm_pool_size)
    assert utils.parse_device_bytes(pool, 0, 256) == size


def test_the_page_for_gpu_hosts_starts_workers_with_options_that_there_are():
    """`dask cuda worker`, as docs/gpu.md has it."""
    lines = re.findall(r"^dask cuda worker .*$", (DOCS / "gpu.md").read_text(), re.MULTILINE)
    assert lines
    known = {name for option in rapids("dask_cuda.cli").worker.params for name in (*option.opts, *option.secondary_opts)}
    for line in lines:
        assert {word for word in shlex.split(line, comments=True) if word.startswith("--")} <= known
