"""Writing against copying: 1 GB of samples, all kept, against `cp` of the same shards, side by side in one run.

    python scripts/bench_write.py

The store is warm, so that the command only decides and writes; `cp` is followed by a sync of each file, since every
file that Curator writes is synced too. Medians of three rounds each, taken in turn.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

BYTES, SAMPLE, PER_TAR, ROUNDS = 1_000_000_000, 200_000, 500, 3


def make(folder: Path) -> None:
    """Tars of small JPEGs, each filled up to 200 kB by what stands behind its end mark."""
    rng = np.random.default_rng(0)
    for tar_number in range(BYTES // SAMPLE // PER_TAR):
        with tarfile.open(folder / f"{tar_number:05d}.tar", "w") as tar:
            for n in range(PER_TAR):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "JPEG")
                content = file.getvalue() + rng.bytes(SAMPLE - len(file.getvalue()))
                info = tarfile.TarInfo(f"{tar_number:03d}{n:05d}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def copied(folder: Path) -> float:
    """Seconds for cp and sync."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    (folder / "copy").mkdir()
    begin = time.monotonic()
    tars = sorted(str(p) for p in (folder / "in").glob("*.tar"))
    subprocess.run(["cp", *tars, str(folder / "copy")], check=True)
    for path in (folder / "copy").iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.monotonic() - begin


def written(folder: Path) -> float:
    """Seconds of the write phase, as run.json tells them."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = ["stages=[partition,read,write]", "input=in", "output=out", "write.samples_per_shard=500"]
    subprocess.run([sys.executable, "-m", "curator", *command], cwd=folder, check=True, capture_output=True)
    return float(json.loads((folder / "out/run.json").read_text())["seconds"]["write"])


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        make(folder / "in")
        written(folder)  # measures
        rounds = [(copied(folder), written(folder)) for _ in range(ROUNDS)]
    cp, curator = (statistics.median(values) for values in zip(*rounds, strict=True))
    print(f"| {BYTES / 1e9:.0f} GB of samples, medians of {ROUNDS} | seconds | ratio to cp |")
    print("|---|---|---|")
    print(f"| cp and sync | {cp:.2f} | 1.00 |")
    print(f"| curate, the write phase (each image hashed, ledger included) | {curator:.2f} | {curator / cp:.2f} |")


if __name__ == "__main__":
    main()
