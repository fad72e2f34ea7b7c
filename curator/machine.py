"""What this machine, or the container that we run in, really has; and what of it a run takes.

Cores, memory and usable GPUs, then the `cluster` settings and the workers that follow from both. Knows nothing of Dask.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from curator.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup")
OUR_CGROUPS = Path("/proc/self/cgroup")
NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number where there is none
NO_GPU = "no GPU is to be seen here"
WORKER_BASE = 1_500_000_000  # bytes that a worker takes beside its model: torch, batches, decoders
CORES_PER_WORKER = 4
RAPIDS = ("dask_cuda", "cuml", "cudf")  # what workers on GPUs import, and the extra `gpu` brings
SIZE = r"\d+(\.\d+)?\s*([kMGT]i?)?B?"
ADDRESS = r"((tcp|tls|ucx|ws|wss)://)?[^\s/]+:\d{1,5}"


@cache
def cores() -> int:
    """Cores that we may use: the smaller of the affinity mask and the cgroup's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(cpu_quota() or allowed)))


def cpu_quota(root: Path = CGROUP, ours: Path = OUR_CGROUPS) -> float | None:
    """Cores that our cgroups allow (1.5 for `150000 100000`), None where they do not say."""
    quotas = []
    for folder in _cgroups("cpu", root, ours):
        with suppress(OSError, ValueError):  # `max` is no number, and no limit
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                quotas.append(quota_us / int((folder / "cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)


def memory_bytes(root: Path = CGROUP, ours: Path = OUR_CGROUPS) -> int:
    """Memory that we may use: the smaller of what is built in and what our cgroups allow."""
    import psutil

    limits: list[int] = [psutil.virtual_memory().total]
    for folder in _cgroups("memory", root, ours):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min(limit for limit in limits if limit < NO_LIMIT)


def _cgroups(controller: str, root: Path, ours: Path) -> Iterator[Path]:
    """The folders of our cgroup and of all around it, version 2 and 1: a limit on any of them binds us.

    In a container the path may be one that only the host sees; then the root is ours.
    """
    yield from (root, root / controller)
    with suppress(OSError):
        for line in ours.read_text().splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            parts = Path(path).parts[1:]
            if (names and controller not in names.split(",")) or ".." in parts:
                continue
            base = root / controller if names else root
            yield from (base.joinpath(*parts[:n]) for n in range(1, len(parts) + 1))


def has_gpu_device() -> bool:
    """Whether the system shows a GPU at all, usable or not; needs no torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def gpus() -> tuple[list[str], str]:
    """The GPUs that work here, as CUDA_VISIBLE_DEVICES names them, and a sentence where there is none.

    An import is no test: CUDA's own count is asked for, and that only where a device node exists.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return [], f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
    if not has_gpu_device():
        return [], NO_GPU
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:  # a driver too old, a library missing: the sentence says which
        return [], f"a GPU is there, but CUDA does not work: {error}"
    if not count:
        return [], "a GPU is there, but CUDA finds none that it can use (driver, CUDA_VISIBLE_DEVICES, torch build)"
    names = visible.split(",") if visible is not None else [str(n) for n in range(count)]
    return [name.strip() for name in names[:count]], ""


@cache
def good_at_bf16(device: str) -> bool:
    """Whether bf16 products are faster here than float32 ones."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class ClusterSettings(BaseModel):
    """Where the work is done, each key as `conf/cluster/*.yaml` explains it."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)  # a port, bytes

    kind: Literal["auto", "local", "cuda", "scheduler"] = "auto"
    n_workers: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    in_flight: int | None = Field(None, ge=1)
    decoders: int | None = Field(None, ge=1)
    memory_limit: str | None = None
    dashboard: str | None = None
    local_directory: str | None = None
    address: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    rmm_pool_size: str | None = "50%"
    cudf_spill: bool = True

    @field_validator("memory_limit", "rmm_pool_size", "address")
    @classmethod
    def _spelt(cls, given: str | None, info: ValidationInfo) -> str | None:
        pattern, example = {
            "memory_limit": (f"auto|{SIZE}", "8GiB"),
            "rmm_pool_size": (rf"{SIZE}|100%|\d{{1,2}}(\.\d+)?%", "20GB or 50%"),
            "address": (ADDRESS, "tcp://10.0.0.1:8786"),
        }[str(info.field_name)]
        if given is not None and not re.fullmatch(pattern, given):
            raise ValueError(f"must be such as {example}, not {given!r}")
        return given

    @model_validator(mode="after")
    def _whole(self) -> ClusterSettings:
        encrypted = (self.address or "").startswith(("tls://", "wss://"))
        if encrypted and not (self.tls_ca and self.tls_cert):
            raise ValueError(f"{self.address} needs tls_ca and tls_cert (and tls_key, where the certificate lacks it)")
        return self


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of."""

    kind: str
    device: str
    n_workers: int
    threads: int | None  # torch threads per worker; None: all the cores that the worker finds
    in_flight: int
    decoders: int | None
    no_gpu: str = ""  # why none is used, where one was to be expected

    def told(self, workers: int, address: str | None) -> str:
        """So many workers, in one sentence."""
        noun = "worker" if workers == 1 else "workers"
        whose = f"{noun} at {address}" if self.kind == "scheduler" else f"{self.kind} {noun} on {self.device}"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'} each" if self.threads else "with all cores"
        return f"{workers} {whose}, {threads}{f'; no GPU is used: {self.no_gpu}' if self.no_gpu else ''}"


def shape_of(settings: ClusterSettings, model_bytes: int, in_flight_per_gpu: int) -> Shape:
    """What to start: asked for, or found out. Raises ConfigError where what was asked for cannot be."""
    kind = settings.kind
    if kind == "scheduler":
        if not settings.address:
            raise ConfigError("cluster.address: must be given with cluster=scheduler, such as tcp://10.0.0.1:8786.")
        files = {name: getattr(settings, name) for name in ("tls_ca", "tls_cert", "tls_key")}
        if lost := [name for name, file in files.items() if file and not Path(file).is_file()]:
            raise ConfigError([f"cluster.{name}: there is no such file." for name in lost])  # it may be a secret
        return Shape(kind, "auto", 0, settings.threads, settings.in_flight or 2, settings.decoders)
    found, why_not = gpus() if kind in ("auto", "cuda") else ([], "")
    if found and (lacking := [name for name in RAPIDS if find_spec(name) is None]):
        found = []
        why_not = f"{' and '.join(lacking)} must be installed beside it (in Curator's folder: pip install -e '.[gpu]')"
    if kind == "cuda" and not found:
        raise ConfigError(f"cluster: cuda was asked for, but {why_not}. cluster=local runs on the processor.")
    if found:
        in_flight = settings.in_flight or in_flight_per_gpu
        n_workers = min(settings.n_workers or len(found), len(found))
        share = max(1, cores() // n_workers)
        return Shape("cuda", "cuda", n_workers, settings.threads or share, in_flight, settings.decoders or share)
    n_workers = settings.n_workers or _workers_that_fit(model_bytes)
    share = max(1, cores() // n_workers)
    no_gpu = "" if why_not == NO_GPU else why_not
    threads, decoders = settings.threads or share, settings.decoders or share
    return Shape("local", "cpu", n_workers, threads, settings.in_flight or 2, decoders, no_gpu)


def mistakes_of(settings: ClusterSettings) -> list[str]:
    """What can be said against the `cluster` settings without starting anything, or importing torch."""
    if settings.kind == "scheduler" or (settings.kind == "cuda" and not has_gpu_device()):
        try:
            shape_of(settings, 0, 1)
        except ConfigError as error:
            return error.mistakes
    return []


def _workers_that_fit(model_bytes: int) -> int:
    """A worker for every few cores, since torch uses them all at once; fewer where memory holds no more models."""
    by_memory = int(memory_bytes() * 0.8 / (WORKER_BASE + 2 * model_bytes))
    return max(1, min(cores() // CORES_PER_WORKER, by_memory))
