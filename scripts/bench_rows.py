"""The runner's memory, and a re-decide's time, at 100,000 ledger rows.

    python scripts/bench_rows.py

Tiny pictures in 100 tars; the peak is of the runner's process alone, workers and decoders not counted.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROWS, PER_TAR = 100_000, 1000
RUNNER = (
    "import resource, sys; from curator.cli import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
)
EXAMPLE = Path(__file__).resolve().parent.parent / "examples/saturation"


def make(folder: Path) -> None:
    """Tars of 8 x 8 PNGs."""
    rng = np.random.default_rng(0)
    for start in range(0, ROWS, PER_TAR):
        with tarfile.open(folder / f"{start // PER_TAR:05d}.tar", "w") as tar:
            for n in range(start, start + PER_TAR):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
                info = tarfile.TarInfo(f"{n:08d}.png")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))


def run(folder: Path, threshold: float) -> tuple[float, float]:
    """Seconds, and the runner's peak in MiB."""
    command = [
        "--config-dir",
        str(EXAMPLE),
        "stages=[partition,read,saturation]",
        "input=in",
        "output=out",
        f"saturation.score_threshold={threshold}",
    ]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    return time.monotonic() - begin, int(done.stderr.split()[-1]) / 1024


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        make(folder / "in")
        rows = [("first run: all is measured", *run(folder, 0.1)), ("re-decide: another threshold", *run(folder, 0.5))]
    print(f"| {ROWS:,} ledger rows | seconds | images/s | runner's peak, MiB |")
    print("|---|---|---|---|")
    for label, took, peak in rows:
        print(f"| {label} | {took:.1f} | {ROWS / took:,.0f} | {peak:,.0f} |")


if __name__ == "__main__":
    main()
