"""What this machine, or the container that we run in, really has: cores, memory, usable GPUs."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number where there is none


@cache
def cores() -> int:
    """Cores that we may use: the smaller of the affinity mask and the cgroup's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(cpu_quota() or allowed)))


def cpu_quota(root: Path = CGROUP) -> float | None:
    """Cores that the cgroup allows (1.5 for `150000 100000`), None where it does not say."""
    with suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((root / "cpu" / "cpu.cfs_period_us").read_text())
    return None


def memory_bytes(root: Path = CGROUP) -> int:
    """Memory that we may use: the smaller of what is built in and what the cgroup allows."""
    import psutil

    limits: list[int] = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int((root / name).read_text()))
    return min(limit for limit in limits if limit < NO_LIMIT)


def gpus() -> tuple[list[str], str]:
    """The GPUs that work here, as CUDA_VISIBLE_DEVICES names them, and a sentence where there is none.

    An import is no test: CUDA's own count is asked for, and that only where a device node exists.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return [], f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return [], "no GPU is to be seen here"
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:  # a driver too old, a library missing: the sentence says which
        return [], f"a GPU is there, but CUDA does not work: {error}"
    if not count:
        return [], "a GPU is there, but CUDA finds none that it can use (driver, CUDA_VISIBLE_DEVICES, torch build)"
    names = visible.split(",") if visible is not None else [str(n) for n in range(count)]
    return names[:count], ""
