"""What this machine, or the container that we run in, really has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from curator import machine
from tests.conftest import ROOT

TOTAL = psutil.virtual_memory().total


def tell(code: str, **environment: str) -> str:
    """What a process of its own prints: nothing is cached in it, and no torch is imported yet."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.check_output([sys.executable, "-c", code], env=env, text=True, cwd=ROOT).strip()


def cgroups(root: Path, line: str, **files: str) -> tuple[Path, Path]:
    """A tree of cgroups as the kernel shows it, and the file that says which of them is ours."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ours = root / "self"
    ours.write_text(line)
    return root, ours


def test_a_limit_on_any_cgroup_around_ours_binds(tmp_path):
    """Version 2: a service's slice is limited, its own group is not (systemd's MemoryMax=, CPUQuota=)."""
    place = cgroups(
        tmp_path, "0::/user.slice/run.scope\n",
        user_DOT_slice__cpu_DOT_max="150000 100000\n", user_DOT_slice__memory_DOT_max="2147483648\n",
        user_DOT_slice__run_DOT_scope__cpu_DOT_max="max 100000\n",
        user_DOT_slice__run_DOT_scope__memory_DOT_max="max\n",
    )  # fmt: skip
    assert machine.cpu_quota(*place) == 1.5
    assert machine.memory_bytes(*place) == min(2 << 30, TOTAL)


def test_the_old_kind_of_cgroup_is_read_as_well(tmp_path):
    """Version 1: a tree per controller, microseconds, and a huge number for `no limit`."""
    place = cgroups(
        tmp_path, "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
        cpu__docker__abc__cpu_DOT_cfs_quota_us="50000\n",
        cpu__docker__abc__cpu_DOT_cfs_period_us="100000\n",
        cpu__cpu_DOT_cfs_quota_us="-1\n",
        cpu__cpu_DOT_cfs_period_us="100000\n",
        memory__docker__abc__memory_DOT_limit_in_bytes="1073741824\n",
        memory__memory_DOT_limit_in_bytes="9223372036854771712\n",
    )  # fmt: skip
    assert machine.cpu_quota(*place) == 0.5
    assert machine.memory_bytes(*place) == min(1 << 30, TOTAL)


def test_in_a_container_the_path_may_be_the_hosts_and_the_root_is_ours(tmp_path):
    """The path leads nowhere here, or out of the namespace: what the root says holds."""
    for line in ("0::/docker/elsewhere\n", "0::/../../other\n", ""):
        place = cgroups(tmp_path, line, cpu_DOT_max="400000 100000\n", memory_DOT_max="1000000000\n")
        assert machine.cpu_quota(*place) == 4.0
        assert machine.memory_bytes(*place) == min(1_000_000_000, TOTAL)


def test_where_nothing_is_limited_the_machine_is_ours(tmp_path):
    """No cgroup at all, or only `max`."""
    assert machine.cpu_quota(tmp_path / "none", tmp_path / "none") is None
    assert machine.memory_bytes(tmp_path / "none", tmp_path / "none") == TOTAL
    place = cgroups(tmp_path, "0::/\n", cpu_DOT_max="max 100000\n", memory_DOT_max="max\n")
    assert machine.cpu_quota(*place) is None
    assert machine.memory_bytes(*place) == TOTAL


def test_taskset_is_respected():
    """CASES 21: fewer cores than the machine has, by affinity."""
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); from curator import machine; print(machine.cores())"
    assert tell(code) == "1"


@pytest.mark.parametrize("visible", ["", "-1", " ", "GPU-123e4567-e89b-12d3-a456-426614174000", "99", "MIG-1/2/3", "x"])
def test_gpus_that_are_hidden_or_unknown_are_none_and_a_sentence_says_why(visible):
    """CASES 22: by index, UUID, slice, empty, -1 and nonsense; never an exception."""
    names, why = tell(
        "from curator import machine; names, why = machine.gpus(); print(names, '|', why)", CUDA_VISIBLE_DEVICES=visible
    ).split(" | ")
    assert names == "[]"
    assert why
    if visible.strip() in ("", "-1"):
        assert why == f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"


def test_torch_is_not_imported_to_find_that_there_is_no_gpu():
    """It takes a second, and a re-decide has no use for it."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("a GPU is here")
    assert tell("import sys; from curator import machine; machine.gpus(); print('torch' in sys.modules)") == "False"


def test_workers_are_told_in_a_sentence_that_reads_well():
    """Of a scheduler nothing is known but its address."""
    local, theirs = machine.Shape("local", "cpu", 1, 1, 2, 1), machine.Shape("scheduler", "auto", 0, None, 2, None)
    assert local.told(1, None) == "1 local worker on cpu, 1 thread each"
    assert theirs.told(2, "tcp://10.0.0.1:8786") == "2 workers at tcp://10.0.0.1:8786, with all cores"
