"""Killed anywhere, finished by the same command, to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage, SemanticDeduplicationStage
from tests.conftest import ROOT, make_image, make_samples, make_shard, tree
from tests.stages import Brightness, Tiny

SCRIPT = f"""\
import sys
sys.path.insert(0, {str(ROOT)!r})
from curator import Pipeline, ImageWriterStage, SemanticDeduplicationStage, FilePartitioningStage, ImageReaderStage
from tests.stages import Brightness, Tiny
if __name__ == "__main__":
    stages = [FilePartitioningStage(files_per_partition=1), ImageReaderStage(), Tiny(), Brightness(score_threshold=0.4),
              SemanticDeduplicationStage(), ImageWriterStage(samples_per_shard=50)]
    Pipeline("kill", stages).run(input="in", output="out", store=sys.argv[1])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An input of 12 shards and the truth: what an undisturbed run makes of it."""
    place = tmp_path_factory.mktemp("kill")
    for n in range(12):
        members = {name: make_image(i + 40 * n, (900, 700)) for i, name in enumerate(f"{k:04d}.jpg" for k in range(40))}
        make_shard(place / f"in/{n:02d}.tar", {**members, f"x{n}.txt": b"no picture"})
    (place / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "script.py", "store-0"], cwd=place, check=True, capture_output=True)
    return place, tree(place / "out", "shards", "ledger")


def start(place: Path, store: str) -> subprocess.Popen[bytes]:
    """The script in its own process group, its output elsewhere."""
    return subprocess.Popen(
        [sys.executable, "script.py", store], cwd=place, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes that a run has started, and their children."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for_objects(place: Path, store: str, count: int, stage: str = "tiny") -> None:
    """Until so many measurements are stored."""
    for _ in range(600):
        if sum(1 for _ in (place / store).glob(f"{stage}/*/*")) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("nothing was measured")


def test_a_runner_killed_while_measuring_leaves_no_process_and_is_finished_by_the_same_command(place):
    """SIGKILL of the runner: workers and decoders stop by themselves, what was measured is kept, the bytes are the same."""
    folder, truth = place
    run = start(folder, "store-1")
    wait_for_objects(folder, "store-1", 3)
    children = family(run)
    assert len(children) >= 3
    run.send_signal(signal.SIGKILL)
    run.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    had = sum(1 for _ in (folder / "store-1").glob("tiny/*/*"))
    assert 3 <= had < 12
    assert start(folder, "store-1").wait() == 0
    assert tree(folder / "out", "shards", "ledger") == truth
    del gone


def test_a_worker_killed_while_measuring_costs_only_its_tasks(place):
    """SIGKILL of a worker: Dask starts another, the run ends well, the bytes are the same."""
    folder, truth = place
    run = start(folder, "store-2")
    wait_for_objects(folder, "store-2", 2)
    workers = [p for p in family(run) if any("spawn_main" in part for part in p.cmdline())]
    assert workers
    os.kill(workers[0].pid, signal.SIGKILL)
    assert run.wait(timeout=120) == 0
    assert tree(folder / "out", "shards", "ledger") == truth


def test_ctrl_c_ends_a_run_quickly_and_leaves_no_process(place):
    """Exit 130, one line, no traceback, and nothing hangs."""
    folder, _ = place
    command = ["--config-dir", str(ROOT / "examples/saturation"), "stages=[partition,read,saturation]", "input=in"]
    run = subprocess.Popen(
        [sys.executable, "-m", "curator", *command, "output=out-3", "store=store-3", "partition.files_per_partition=1"],
        cwd=folder, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_objects(folder, "store-3", 1, "saturation")
    children = family(run)
    begin = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, said = run.communicate(timeout=30)
    assert time.monotonic() - begin < 15
    assert run.returncode == 130
    assert "interrupted; what was stored is kept" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_tasks_that_complete_in_another_order_change_no_byte(pipeline, tmp_path):
    """Two workers with several partitions in flight each, against one task after the other."""
    from curator.cluster import Cluster, ClusterSettings, inline
    from curator.pipeline import Pipeline
    from curator.voice import Voice

    class Backwards:
        """A cluster of one process that does the last task first."""

        def each(self, fn, items, **_):
            return inline(fn, reversed(list(items)))

        def describe(self):
            return {"line": "backwards"}

        def probe(self, paths):
            return None

    for n in range(6):
        make_shard(tmp_path / f"in/{n}.tar", make_samples(11, start=11 * n))
    stages = [
        FilePartitioningStage(files_per_partition=1), ImageReaderStage(), Tiny(), Brightness(score_threshold=0.45),
        SemanticDeduplicationStage(block_rows=16), ImageWriterStage(samples_per_shard=9),
    ]  # fmt: skip
    trees = []
    with Cluster(ClusterSettings(kind="local", n_workers=2, in_flight=3)) as two:
        for number, started in enumerate((two, Backwards())):
            settings = {"input": tmp_path / "in", "output": tmp_path / f"o{number}", "store": tmp_path / f"s{number}"}
            Pipeline("x", stages).run(started=lambda _, it=started: it, voice=Voice(quiet=True), **settings)
            trees.append(tree(tmp_path / f"o{number}", "shards", "ledger"))
    assert trees[0] == trees[1]
