"""Dask as Curator uses it: real schedulers and workers in processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil
import pytest
from pydantic import ValidationError

import curator.cluster
from curator import machine
from curator.cluster import Cluster, ClusterSettings, inline, shape_of
from curator.errors import ClusterError, ConfigError
from curator.here import keep, report, this_worker
from tests.conftest import ROOT, make_samples, make_shard

LOCAL = ClusterSettings(kind="local")
IMPORTABLE = {**os.environ, "PYTHONPATH": str(ROOT)}


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
    raise {"config": ConfigError(["one thing", "another"]), "late": TimeoutError("its own")}.get(kind) or ValueError(
        "a bug"
    )


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
    with pytest.raises(TimeoutError, match="its own"):  # not taken for Dask's, which would be waited out
        list(cluster.each(fail, ["late"]))


def listening() -> set[str]:
    """The addresses on which this process and its children listen."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [c for process in family for c in process.net_connections("tcp")]
    return {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}


def test_everything_listens_on_loopback_only(cluster):
    """Dask's default dashboard listens to the world; a scheduler is unauthenticated."""
    list(cluster.each(square, [1]))
    assert listening() <= {"127.0.0.1", "::1"}


def test_a_dashboard_by_port_alone_is_on_loopback_too():
    """Who wants it seen from elsewhere names an address."""
    with Cluster(ClusterSettings(kind="local", dashboard=f":{free_port()}")):
        assert listening() <= {"127.0.0.1", "::1"}


def test_a_lost_workers_task_runs_again_and_one_that_loses_three_ends_the_run(tmp_path):
    """The last names its item and says what to try."""
    with Cluster(LOCAL) as cluster:
        assert list(cluster.each(die_once, [str(tmp_path / "mark")])) == ["done"]
        with pytest.raises(ClusterError, match="3 workers died of the same task") as told:
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


def test_workers_follow_the_cores_and_the_memory_that_are_allowed(monkeypatch):
    """CASES 21: a container's limits, not the host's; a large model means fewer workers."""
    monkeypatch.setattr(machine, "cores", lambda: 32)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 << 30)
    assert shape_of(LOCAL, 0, 4).n_workers == 8
    assert shape_of(LOCAL, 10 << 30, 4).n_workers == 2


def eat(n_bytes: int) -> int:
    """Take so much memory, and hold it for a while."""
    held = b"x" * n_bytes
    time.sleep(5)
    return len(held)


def test_a_worker_over_the_memory_limit_is_restarted_and_the_end_says_what_to_try():
    """Without cluster.memory_limit Dask kills nothing; with it, a task that always needs more ends the run."""
    with (
        Cluster(ClusterSettings(kind="local", memory_limit="500MiB")) as cluster,
        pytest.raises(ClusterError, match=r"3 workers died of the same task.*Is memory short"),
    ):
        list(cluster.each(eat, [900 << 20]))


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"memory_limit": "lots"}, "must be such as 8GiB, not 'lots'"),
        ({"rmm_pool_size": "half"}, "must be such as 20GB or 50%, not 'half'"),
        ({"rmm_pool_size": "150%"}, "must be such as 20GB or 50%, not '150%'"),
        ({"address": "http://10.0.0.1:8786"}, "must be such as tcp://10.0.0.1:8786"),
        ({"address": "tcp://10.0.0.1"}, "must be such as tcp://10.0.0.1:8786"),
        ({"address": "tls://10.0.0.1:8786"}, "needs tls_ca and tls_cert"),
    ],
)
def test_a_setting_that_dask_would_choke_on_is_told_before_any_work(given, answer):
    """Dask answers these with a traceback of its own, some of them after the run has begun."""
    with pytest.raises(ValidationError, match=answer):
        ClusterSettings(kind="scheduler", **given)


def test_certificates_that_are_not_there_are_told_by_setting_and_never_by_value():
    """What was typed into the wrong setting, or came from the environment, may be a secret."""
    files = {name: f"/nowhere/{name}-hunter2" for name in ("tls_ca", "tls_cert", "tls_key")}
    with pytest.raises(ConfigError) as told:
        shape_of(ClusterSettings(kind="scheduler", address="tls://10.0.0.1:8786", **files), 0, 4)
    assert told.value.mistakes == [f"cluster.{name}: there is no such file." for name in files]
    assert shape_of(ClusterSettings(kind="local", **files), 0, 4).kind == "local"


def test_sizes_and_addresses_as_people_write_them_are_taken():
    """With and without a unit's `B`, a space, a scheme."""
    for size in ("8GiB", "8 GB", "500M", "8000000000", 8000000000, "auto", "1.5GiB"):
        ClusterSettings(memory_limit=size)
    for pool in ("50%", "20GB", None):
        ClusterSettings(rmm_pool_size=pool)
    for address in ("10.0.0.1:8786", "tcp://[::1]:8786", "tcp://a.b.example:8786"):
        ClusterSettings(address=address)
    assert ClusterSettings(dashboard=8787).dashboard == "8787"  # as a command line hands it over


def test_a_place_that_cannot_hold_temporary_files_is_a_sentence():
    """Exit 4, and the setting to look at."""
    with pytest.raises(ClusterError, match=r"did not start: .*/proc/none.*cluster.local_directory"):
        Cluster(ClusterSettings(kind="local", local_directory="/proc/none")).__enter__()


def test_a_gpu_without_the_packages_for_it_says_what_to_install(monkeypatch):
    """A GPU is there, RAPIDS is not: cuda refuses with the command, auto runs on the processor and says why."""
    monkeypatch.setattr(machine, "gpus", lambda: (["0"], ""))
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "cuml" else name)
    with pytest.raises(ConfigError, match=r"but cuml must be installed .*pip install -e '\.\[gpu\]'"):
        shape_of(ClusterSettings(kind="cuda", rmm_pool_size=None, cudf_spill=False), 0, 4)
    assert "pip install" in Cluster(ClusterSettings()).describe()["line"]


def test_auto_tells_why_it_uses_no_gpu_only_where_one_was_to_be_expected(monkeypatch):
    """CASES 22: one line for hidden GPUs; none on a machine that never had one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "no GPU is used: CUDA_VISIBLE_DEVICES='-1' hides" in Cluster(ClusterSettings()).describe()["line"]
    assert "GPU" not in Cluster(LOCAL).describe()["line"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if machine.gpus()[1] == machine.NO_GPU:
        assert "GPU" not in Cluster(ClusterSettings()).describe()["line"]


def test_importing_the_cluster_imports_neither_dask_nor_torch():
    """A re-decide and `--help` stay fast."""
    code = "import sys, curator.cluster; print({'dask', 'distributed', 'torch', 'rich'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "set()"


STARTS = """\
from curator.cluster import Cluster, ClusterSettings
if __name__ == "__main__":
    for _ in range(2):  # the second finds Dask's own settings as the first found them
        with Cluster(ClusterSettings(kind="local")) as cluster:
            print(list(cluster.each(abs, [-1])), flush=True)
"""


def test_one_cluster_after_the_other_in_one_process(tmp_path):
    """What the first one set is undone, and nothing more: a process that never imported Dask before."""
    (tmp_path / "starts.py").write_text(STARTS)
    done = subprocess.run(
        [sys.executable, "starts.py"], cwd=tmp_path, env=IMPORTABLE, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[1]\n[1]\n", "", 0)


@pytest.mark.parametrize("after_s", [0.7, 1.1, 1.5])
def test_ctrl_c_while_workers_start_leaves_no_process_and_no_traceback_of_theirs(tmp_path, after_s):
    """A terminal sends it to all: workers that are just importing must not feel it."""
    (tmp_path / "starts.py").write_text(STARTS)
    run = subprocess.Popen(
        [sys.executable, "starts.py"], cwd=tmp_path, env=IMPORTABLE, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(after_s)
    family = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert said.count("KeyboardInterrupt") <= 1  # ours, the script's own; a command turns it into a line
    assert "AssertionError" not in said
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_inline_gives_every_result_with_any_number_of_threads():
    """The same verb without Dask."""
    for threads in (1, 3):
        assert sorted(n for n, _ in inline(square, range(50), threads=threads)) == [n * n for n in range(50)]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Own:
    """A `dask scheduler` and a `dask worker`, each a process."""

    address: str
    scheduler: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]


@contextmanager
def own_scheduler(before: str = "") -> Iterator[Own]:
    """Started as a person would, in processes of their own; `before` is code that each runs first."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    commands = (
        ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        ["worker", address, "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1", "--no-nanny"],
    )
    code = f"{before}\nimport sys; sys.argv[0] = 'dask'\nfrom dask.__main__ import main; main()"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": IMPORTABLE}
    started = [subprocess.Popen([sys.executable, "-c", code, *command], **quiet) for command in commands]
    try:
        yield Own(address, *started)
    finally:
        for process in started:
            process.kill()
            process.wait(20)


@pytest.fixture
def scheduler():
    """The address of a scheduler of one's own, with one worker."""
    with own_scheduler() as own:
        yield own.address


def nap(n: int) -> int:
    """Work that takes a while."""
    time.sleep(0.3)
    return n


def test_a_scheduler_that_is_lost_ends_the_run_in_words(capfd, monkeypatch):
    """ClusterError within seconds, and nothing of Dask's own on the terminal."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # of handlers that other tests left behind
    with own_scheduler() as own, Cluster(ClusterSettings(kind="scheduler", address=own.address)) as cluster:
        results = cluster.each(nap, range(100))
        next(results)
        own.scheduler.kill()
        with pytest.raises(ClusterError, match="the cluster was lost: its scheduler no longer answers"):
            list(results)
    assert "Traceback" not in capfd.readouterr().err


def test_workers_that_all_go_and_do_not_come_back_end_the_run(monkeypatch):
    """Dask would wait for a worker for ever, without a word."""
    monkeypatch.setattr(curator.cluster, "NO_WORKER_S", 2.0)
    monkeypatch.setattr(curator.cluster, "LOOK_EVERY_S", 1.0)
    with own_scheduler() as own, Cluster(ClusterSettings(kind="scheduler", address=own.address)) as cluster:
        results = cluster.each(nap, range(100))
        next(results)
        own.worker.kill()
        with pytest.raises(ClusterError, match="no worker has been there for 2 s"):
            list(results)


def test_what_the_machines_of_a_cluster_lack_is_told_by_machine(scheduler, tmp_path):
    """A path that a worker does not see; one that it does see is no problem."""
    with Cluster(ClusterSettings(kind="scheduler", address=scheduler)) as cluster:
        cluster.probe([str(tmp_path)])
        with pytest.raises(ClusterError, match=r"worker tcp://.* does not see /nowhere/store: use a path that all"):
            cluster.probe([str(tmp_path), "/nowhere/store"])


def test_machines_without_curator_are_told_so():
    """Dask says `Error during deserialization of the task graph`."""
    with (
        own_scheduler("import sys; sys.modules['curator'] = None") as own,
        Cluster(ClusterSettings(kind="scheduler", address=own.address)) as cluster,
        pytest.raises(ClusterError, match=r"cannot run Curator: .*Install the same Curator on every machine"),
    ):
        cluster.probe([])


def test_something_else_that_answers_at_the_address_is_no_scheduler():
    """What it says is read as Dask's: a size of some exabytes, a MemoryError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9), daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="no scheduler with workers answers"):
            Cluster(ClusterSettings(kind="scheduler", address=address)).__enter__()


def test_a_run_over_a_scheduler_of_ones_own(scheduler, curate, tmp_path):
    """cluster=scheduler cluster.address=...; the same result as anywhere."""
    make_shard(tmp_path / "a.tar", make_samples(10))
    ran = curate(
        "--config-dir", str(ROOT / "examples/saturation"), "stages=[partition,read,saturation,write]", "input=a.tar",
        "output=out", "cluster=scheduler", f"cluster.address={scheduler}",
    )  # fmt: skip
    assert ran.code == 0, ran.said
    assert "1 worker at tcp://" in ran.err
    assert "10 in = " in ran.out


def test_a_scheduler_that_is_not_there_is_said_in_seconds(curate, tmp_path):
    """Exit 4, one line, what to start."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    nobody = f"cluster.address=tcp://127.0.0.1:{free_port()}"
    ran = curate("stages=[partition,read]", "input=a.tar", "output=out", "cluster=scheduler", nobody, timeout=60)
    assert ran.code == 4
    assert "no scheduler with workers answers" in ran.err
    assert "Traceback" not in ran.err
