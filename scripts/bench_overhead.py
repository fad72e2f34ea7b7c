"""What the framework costs: 20,000 tiny samples through partition, read and write, against a plain loop.

    python scripts/bench_overhead.py

The plain loop is what a person would write: tarfile, Pillow, tarfile again, in one process. Both read, decode and
write every sample; Curator also hashes, isolates, indexes, stores and keeps a ledger. Side by side in one run.
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

SAMPLES, PER_TAR = 20_000, 1000


def make(folder: Path) -> None:
    """Tars of tiny JPEGs with captions."""
    rng = np.random.default_rng(0)
    for start in range(0, SAMPLES, PER_TAR):
        with tarfile.open(folder / f"{start // PER_TAR:05d}.tar", "w") as tar:
            for n in range(start, start + PER_TAR):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(file, "JPEG")
                for suffix, content in (("jpg", file.getvalue()), ("txt", b"a caption")):
                    info = tarfile.TarInfo(f"{n:08d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def plain(source: Path, target: Path) -> float:
    """Seconds for the plain loop."""
    begin = time.monotonic()
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as tar, tarfile.open(target / path.name, "w") as out:
            for info in tar:
                content = tar.extractfile(info).read()
                if info.name.endswith("jpg"):
                    Image.open(io.BytesIO(content)).convert("RGB").load()
                out.addfile(info, io.BytesIO(content))
    return time.monotonic() - begin


def curated(folder: Path, output: str) -> float:
    """Seconds for the command, its start included."""
    begin = time.monotonic()
    command = ["stages=[partition,read,write]", "input=in", f"output={output}"]
    subprocess.run([sys.executable, "-m", "curator", *command], cwd=folder, check=True, capture_output=True)
    return time.monotonic() - begin


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("in", "plain"):
            (folder / part).mkdir()
        make(folder / "in")
        base = plain(folder / "in", folder / "plain")
        first, again = curated(folder, "out"), curated(folder, "other")
    print(f"| {SAMPLES:,} tiny samples | seconds | ratio to the plain loop | ms a sample |")
    print("|---|---|---|---|")
    for label, took in (("plain tarfile + Pillow", base), ("curate, first run", first), ("curate, all stored", again)):
        print(f"| {label} | {took:.1f} | {took / base:.2f} | {took / SAMPLES * 1000:.3f} |")


if __name__ == "__main__":
    main()
