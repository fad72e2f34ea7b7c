"""Kill runs at random moments, in every phase, and compare what the same command then gives.

    python scripts/kill_runs.py [--kills 15] [--seed 0]

Each round starts over with a fresh store, every other one over the output of another setting; it waits until a phase is
reached (start, measure, decide, write, the swap of the output, in turn), kills the runner or a worker with SIGKILL a
random moment later, checks that no process is left, and runs the command again: `shards/` and `ledger/` must be the
undisturbed run's, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

LONGEST_S = {"start": 0.5, "measure": 2.0, "decide": 0.05, "write": 0.1, "swap": 0.002}
PHASES = tuple(LONGEST_S)
EXAMPLE = Path(__file__).resolve().parent.parent / "examples/saturation"
COMMAND = [
    sys.executable, "-m", "curator", "--config-dir", str(EXAMPLE), "stages=[partition,read,saturation,write]",
    "input=in", "output=out", "saturation.score_threshold=0.2", "partition.files_per_partition=1",
    "write.samples_per_shard=100",
]  # fmt: skip


def make(folder: Path) -> None:
    """40 tars of 40 photos' size."""
    rng = np.random.default_rng(0)
    for tar_number in range(40):
        with tarfile.open(folder / f"{tar_number:05d}.tar", "w") as tar:
            for n in range(40):
                file = io.BytesIO()
                small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                small.resize((900, 700), Image.Resampling.BICUBIC).save(file, "JPEG")
                info = tarfile.TarInfo(f"{tar_number:03d}{n:05d}.jpg")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))


def digest(folder: Path) -> str:
    """One hash over names and bytes of shards and ledger."""
    total = hashlib.sha256()
    for part in ("shards", "ledger"):
        for path in sorted((folder / "out" / part).rglob("*")):
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def reached(folder: Path, phase: str) -> bool:
    """Whether a run has come to a phase, told by what lies on the disk."""
    out, stored = folder / "out", folder / ".curator/store"
    if phase == "swap":
        return (out / ".next/run.json").exists()
    if phase == "write":
        return any((out / ".next/shards").glob("*"))
    if phase == "decide":
        return any((stored / "gathered").glob("*/*"))
    return any((stored / "saturation").glob("*/*")) if phase == "measure" else stored.exists()


def killed(folder: Path, phase: str, delay_s: float, victim: str) -> tuple[str, int]:
    """Run, kill a moment after a phase is reached; what was hit, and processes left after ten seconds."""
    run = subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and not reached(folder, phase):
        pass  # no sleep: a swap takes a few milliseconds
    time.sleep(delay_s)
    if run.poll() is not None:
        return "over before the kill", 0
    children = psutil.Process(run.pid).children(recursive=True)
    workers = [p for p in children if any("spawn_main" in part for part in p.cmdline())]
    if victim == "worker" and workers:
        workers[0].send_signal(signal.SIGKILL)
        run.wait()
        return f"{phase}, worker", 0
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    return f"{phase}, runner", len([p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    falls: Counter[str] = Counter()
    different: Counter[str] = Counter()
    left = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        make(folder / "in")
        subprocess.run(COMMAND, cwd=folder, check=True, capture_output=True)
        truth = digest(folder)
        for number in range(options.kills):
            phase = PHASES[number % len(PHASES)]
            shutil.rmtree(folder / ".curator")
            if number % 2:  # else the output of another setting stands there, to be replaced
                shutil.rmtree(folder / "out")
            else:
                other = [*COMMAND, "saturation.score_threshold=0.3"]
                subprocess.run(other, cwd=folder, check=True, capture_output=True)
                shutil.rmtree(folder / ".curator")
            delay = chance.uniform(
                0, {"start": 0.5, "measure": 2.0, "decide": 0.05, "write": 0.1, "swap": 0.002}[phase]
            )
            victim = "worker" if phase == "measure" and chance.random() < 0.5 else "runner"
            fell, remaining = killed(folder, phase, delay, victim)
            falls[fell] += 1
            left += remaining
            subprocess.run(COMMAND, cwd=folder, check=True, capture_output=True)
            different[fell] += digest(folder) != truth
    print("| killed in phase | kills | different bytes |")
    print("|---|---|---|")
    for fell in sorted(falls):
        print(f"| {fell} | {falls[fell]} | {different[fell]} |")
    print(f"\nprocesses left ten seconds after a runner's death: {left}")


if __name__ == "__main__":
    main()
