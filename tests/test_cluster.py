"""Dask as Curator uses it: real schedulers and workers in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from curator import machine
from curator.cluster import Cluster, ClusterSettings, inline, shape_of
from curator.errors import ClusterError, ConfigError
from curator.here import keep, report, this_worker
from tests.conftest import ROOT, make_samples, make_shard

LOCAL = ClusterSettings(kind="local")


def square(n: int) -> tuple[int, int]:
    """n squared, and where."""
    report(done=1)
    return n * n, os.getpid()


def die(item: tuple[str, int]) -> None:
    """What an out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: str) -> str:
    """Die the first time, work the second."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def fail(kind: str) -> None:
    """A user's mistake, or a bug."""
    raise ConfigError(["one thing", "another"]) if kind == "config" else ValueError("a bug")


def where(_: int) -> tuple[str, int, bool]:
    """What a task knows of its worker; and whether what is kept is made once."""
    made = keep("token", object)
    return this_worker().device, this_worker().threads, made is keep("token", object)


def test_every_item_comes_back_and_progress_is_heard(cluster):
    """In order of completion, from worker processes; counts arrive at the runner."""
    heard: list[int] = []
    results = list(cluster.each(square, range(40), on_progress=lambda counts: heard.append(counts["done"])))
    assert sorted(n for n, _ in results) == [n * n for n in range(40)]
    assert os.getpid() not in {pid for _, pid in results}
    time.sleep(0.5)
    assert sum(heard) <= 40


def test_items_are_pulled_as_they_are_needed(cluster):
    """A million tasks are never sent at once."""
    pulled = 0

    def items():
        nonlocal pulled
        for n in range(1000):
            pulled += 1
            yield n

    first = next(iter(cluster.each(square, items())))
    assert first[1] > 0
    assert pulled < 20


def test_a_worker_is_told_what_it_is_and_makes_heavy_things_once(cluster):
    """Device, threads; one model per process."""
    assert set(cluster.each(where, range(6))) == {("cpu", machine.cores(), True)}


def test_mistakes_come_through_as_they_are(cluster):
    """A ConfigError raised by a worker is the same error here; a bug keeps its own type."""
    with pytest.raises(ConfigError) as told:
        list(cluster.each(fail, ["config"]))
    assert told.value.mistakes == ["one thing", "another"]
    with pytest.raises(ValueError, match="a bug"):
        list(cluster.each(fail, ["bug"]))


def test_everything_listens_on_loopback_only(cluster):
    """Dask's default dashboard listens to the world; a scheduler is unauthenticated."""
    list(cluster.each(square, [1]))
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::1"), connection


def test_a_lost_workers_task_runs_again_and_one_that_loses_three_ends_the_run(tmp_path):
    """The last names its item and says what to try."""
    with Cluster(LOCAL) as cluster:
        assert list(cluster.each(die_once, [str(tmp_path / "mark")])) == ["done"]
        with pytest.raises(ClusterError, match="three workers died of the same task") as told:
            list(cluster.each(die, [("poison", 7)]))
        assert "7" in str(told.value)


def test_cuda_without_a_gpu_is_one_line_and_auto_runs_on_the_processor(monkeypatch):
    """CASES 22: UUIDs, empty, -1, unknown: auto falls back, cuda refuses."""
    for visible in ("", "-1", "GPU-123e4567-e89b-12d3-a456-426614174000", None):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        if machine.gpus()[0]:
            continue
        with pytest.raises(ConfigError, match=r"cuda was asked for, but .*cluster=local"):
            shape_of(ClusterSettings(kind="cuda"), 0, 4)
        assert shape_of(ClusterSettings(), 0, 4).kind == "local"


def test_workers_follow_the_cores_and_the_memory_that_are_allowed(tmp_path, monkeypatch):
    """CASES 21: a container's limits, not the host's; a large model means fewer workers."""
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    assert machine.memory_bytes(tmp_path) == 2 << 30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cpu_quota(tmp_path) is None
    assert machine.cpu_quota(tmp_path / "none") is None
    monkeypatch.setattr(machine, "cores", lambda: 32)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 << 30)
    assert shape_of(LOCAL, 0, 4).n_workers == 8
    assert shape_of(LOCAL, 10 << 30, 4).n_workers == 2


def test_inline_gives_every_result_with_any_number_of_threads():
    """The same verb without Dask."""
    for threads in (1, 3):
        assert sorted(n for n, _ in inline(square, range(50), threads=threads)) == [n * n for n in range(50)]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def scheduler():
    """A `dask scheduler` and a `dask worker`, started as a person would, in processes of their own."""
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address = f"tcp://127.0.0.1:{port}"
    commands = (
        ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        ["worker", address, "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1"],
    )
    started = [subprocess.Popen([sys.executable, "-m", "dask", *command], **quiet) for command in commands]
    yield address
    for process in started:
        process.terminate()
        process.wait(20)


def test_a_run_over_a_scheduler_of_ones_own(scheduler, curate, tmp_path):
    """cluster=scheduler cluster.address=...; the same result as anywhere."""
    make_shard(tmp_path / "a.tar", make_samples(10))
    ran = curate(
        "--config-dir", str(ROOT / "examples/saturation"), "stages=[partition,read,saturation,write]", "input=a.tar",
        "output=out", "cluster=scheduler", f"cluster.address={scheduler}",
    )  # fmt: skip
    assert ran.code == 0, ran.said
    assert "1 scheduler worker" in ran.err
    assert "10 in = " in ran.out


def test_a_scheduler_that_is_not_there_is_said_in_seconds(curate, tmp_path):
    """Exit 4, one line, what to start."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    ran = curate(
        "stages=[partition,read]", "input=a.tar", "output=out", "cluster=scheduler",
        f"cluster.address=tcp://127.0.0.1:{free_port()}", timeout=60,
    )  # fmt: skip
    assert ran.code == 4
    assert "no scheduler with workers answers" in ran.err
    assert "Traceback" not in ran.err
