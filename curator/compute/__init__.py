"""Arithmetic that differs by device: k-means. What torch does alike on both is in `pairs`, with a device argument."""

from __future__ import annotations

from curator.compute.base import Compute
from curator.errors import ClusterError


def compute_for(device: str) -> Compute:
    """The twin for a device. Raises ClusterError where a GPU is and RAPIDS is not, which is imported here alone."""
    if device == "cuda":
        try:
            from curator.compute.cuda import CudaCompute
        except ImportError as error:  # a worker that somebody started by hand: `machine` looks before it starts one
            raise ClusterError(
                f"dedup: this worker has a GPU, but RAPIDS cannot be imported beside it: {error}. Install Curator with "
                "its extra `gpu` on every machine, or start the workers with CUDA_VISIBLE_DEVICES=-1."
            ) from error
        return CudaCompute()
    from curator.compute.cpu import CpuCompute

    return CpuCompute()
