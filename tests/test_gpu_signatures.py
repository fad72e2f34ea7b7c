"""Every call to RAPIDS fits the signature that is installed, also where no GPU is: `make test-gpu-signatures`.

What such a call does is for a machine with a GPU to show; that its arguments exist is shown anywhere.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "curator"
CALLS = [
    ("cluster.py", "LocalCUDACluster", "dask_cuda", "LocalCUDACluster"),
    ("compute/cuda.py", "KMeans", "cuml.cluster", "KMeans"),
    ("compute/cuda.py", "fit", "cuml.cluster", "KMeans.fit"),
    ("compute/cuda.py", "DataFrame", "cudf", "DataFrame"),
    ("compute/cuda.py", "sort_values", "cudf", "DataFrame.sort_values"),
    ("compute/cuda.py", "asnumpy", "cupy", "asnumpy"),
    ("compute/cuda.py", "asarray", "cupy", "asarray"),
    ("compute/cuda.py", "arange", "cupy", "arange"),
]


def calls_in(file: str, name: str) -> list[ast.Call]:
    """Every call of a name or of an attribute of that name; of NumPy's twins only CuPy's."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of_numpy = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "np"
            if called == name and not of_numpy:
                found.append(node)
    return found


@pytest.mark.parametrize(("file", "name", "module", "path"), CALLS, ids=[f"{c[2]}.{c[3]}" for c in CALLS])
def test_a_call_to_rapids_fits_the_installed_signature(file, name, module, path):
    """A parameter that was renamed is found here, and not on the first GPU that somebody rents."""
    pytest.importorskip(
        module.partition(".")[0], reason="RAPIDS is not installed: make test-gpu-signatures installs it"
    )
    target = importlib.import_module(module)
    for part in path.split("."):
        target = getattr(target, part)
    calls = calls_in(file, name)
    assert calls, f"{file} calls no {name}: this test is out of date"
    is_method = inspect.isclass(target) or "." in path
    signature = inspect.signature(target.__init__ if inspect.isclass(target) else target)
    for call in calls:
        positional = [None] * (len(call.args) + is_method)
        keywords = {word.arg: None for word in call.keywords if word.arg is not None}
        signature.bind_partial(*positional, **keywords)


def test_what_is_used_of_a_fitted_kmeans_is_documented():
    """`cluster_centers_` is an attribute that fit sets."""
    pytest.importorskip("cuml", reason="RAPIDS is not installed: make test-gpu-signatures installs it")
    from cuml.cluster import KMeans

    assert "cluster_centers_" in (KMeans.__doc__ or "")
