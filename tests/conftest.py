"""The shared cast: pictures, shards made by other programs, and ways to run Curator. Nothing of ours is mocked."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curator.cluster import Cluster, ClusterSettings
from curator.pipeline import Pipeline, Result
from curator.voice import Voice

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
DEMO = ("embed.model=curator-demo", "embed.pretrained=curator-demo", "nsfw.head=demo", "aesthetic.head=demo")


def shared(name: str) -> Path:
    """A path in the shared data; skips, and says so, where that is not laid beside the project."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} of the shared data, which lies beside the project's folder")
    return path


def make_image(seed: int = 0, size: tuple[int, int] = (64, 48), form: str = "JPEG", **options: Any) -> bytes:
    """A smooth coloured picture, another for each seed, as an encoded file."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def make_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of members in the given order, written by Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_samples(count: int, start: int = 0) -> dict[str, bytes]:
    """So many samples of a picture and a caption."""
    members: dict[str, bytes] = {}
    for n in range(start, start + count):
        members[f"{n:06d}.jpg"] = make_image(n)
        members[f"{n:06d}.txt"] = f"picture {n}".encode()
    return members


def tar_members(*paths: Path) -> dict[str, bytes]:
    """Every regular member of some tars, as tarfile reads them."""
    found: dict[str, bytes] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for info in tar:
                if info.isreg():
                    file = tar.extractfile(info)
                    assert file is not None
                    found[info.name] = file.read()
    return found


def tree(folder: Path, *parts: str) -> dict[str, bytes]:
    """Every file below some parts of a folder, by relative path."""
    roots = [folder / part for part in parts] if parts else [folder]
    return {
        str(p.relative_to(folder)): p.read_bytes() for root in roots for p in sorted(root.rglob("*")) if p.is_file()
    }


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.out + self.err


def run_command(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 240, module: str = "curator"
) -> Ran:
    """`python -m curator` with these arguments, as a user would type them."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def curate(tmp_path: Path) -> Callable[..., Ran]:
    """The command, run in a temporary folder."""

    def run(*arguments: str, **options: Any) -> Ran:
        return run_command(*arguments, cwd=options.pop("cwd", tmp_path), **options)

    return run


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One real Dask cluster of worker processes for all tests that do not look at clusters themselves."""
    with Cluster(ClusterSettings(kind="local")) as started:
        yield started


@pytest.fixture
def pipeline(cluster: Cluster, tmp_path: Path) -> Callable[..., Result]:
    """`pipeline(stages, input=..., ...)`: a run through the Python API over the shared cluster, its store in tmp_path."""

    def run(stages: Any, **settings: Any) -> Result:
        given = {"output": tmp_path / "out", "store": tmp_path / "store", **settings}
        return Pipeline("test", stages).run(started=lambda _: cluster, voice=Voice(quiet=True), **given)

    return run
