"""Arithmetic that differs by device: k-means. What torch does alike on both is in `pairs`, with a device argument."""

from __future__ import annotations

from curator.compute.base import Compute


def compute_for(device: str) -> Compute:
    """The twin for a device. RAPIDS is imported where there is a GPU, and only there."""
    if device == "cuda":
        from curator.compute.cuda import CudaCompute

        return CudaCompute()
    from curator.compute.cpu import CpuCompute

    return CpuCompute()
