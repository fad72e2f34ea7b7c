"""Kill runs at random moments, in every phase, and compare what the same command then gives.

    python scripts/kill_runs.py [--kills 12] [--seed 0]

Each round starts over with a fresh store, kills the runner or a worker with SIGKILL at a moment drawn over the whole
length of an undisturbed run (measuring, deciding, writing and the swap of the output among them), checks that no
process is left, and runs the command again: `shards/` and `ledger/` must be the undisturbed run's, byte for byte.
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


def phase(folder: Path) -> str:
    """Where a run stands, told by what lies on the disk."""
    out = folder / "out"
    if (out / ".next/run.json").exists() or (out / ".old").exists():
        return "swap"
    if (out / ".next/ledger").exists() or (out / ".next/shards").exists():
        return "write"
    stored = len(list((folder / ".curator/store/saturation").glob("*/*")))
    return "start" if not stored else "measure" if stored < 40 else "decide"


def killed(folder: Path, moment_s: float, victim: str) -> tuple[str, int]:
    """Run, kill at a moment, wait; the phase that it fell into, and processes left after ten seconds."""
    run = subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + moment_s
    while time.monotonic() < end and run.poll() is None:
        time.sleep(0.002)
    children = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
    fell = phase(folder) if run.poll() is None else "over"
    workers = [p for p in children if p.is_running() and any("spawn_main" in part for part in p.cmdline())]
    if victim == "worker" and workers:
        workers[0].send_signal(signal.SIGKILL)
        run.wait()
        return f"{fell}, worker", 0
    if run.poll() is None:
        os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    return f"{fell}, runner", len([p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=12)
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
        begin = time.monotonic()
        subprocess.run(COMMAND, cwd=folder, check=True, capture_output=True)
        length, truth = time.monotonic() - begin, digest(folder)
        for number in range(options.kills):
            if number % 2 == 0:  # else the store and the old output stay: the kill falls into deciding and the swap
                shutil.rmtree(folder / ".curator")
                shutil.rmtree(folder / "out", ignore_errors=True)
            else:
                subprocess.run(
                    [*COMMAND, "saturation.score_threshold=0.3"], cwd=folder, check=True, capture_output=True
                )
            moment = chance.uniform(0.3, length if number % 2 == 0 else 1.6)
            fell, remaining = killed(folder, moment, chance.choice(["runner", "runner", "worker"]))
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
