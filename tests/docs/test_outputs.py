"""The page on outputs: its commands and its Python, run as they are written, one after another."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from curator.demo.draw import draw_demo
from tests.conftest import DEMO, ROOT, run_command, tar_members

PAGE = (ROOT / "docs/outputs.md").read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the page's commands have been run over the demo's pictures."""
    place = tmp_path_factory.mktemp("outputs")
    draw_demo(place / "drawn", seed=11, count=40)
    (place / "photos").mkdir()
    for name, content in tar_members(*sorted((place / "drawn").glob("*.tar"))).items():
        (place / "photos" / name).write_bytes(content)
    for command in re.findall(r"^curate .*$", PAGE, re.MULTILINE):
        words = shlex.split(command)[1:]
        demo = DEMO if "nsfw" in command else [setting for setting in DEMO if not setting.startswith("nsfw")]
        ran = run_command(*words, *demo, cwd=place)
        assert ran.code == 0, ran.said
    return place


@pytest.mark.xdist_group("outputs")
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_pages_python_runs_on_what_its_commands_wrote(place, code):
    """As a script of its own, in the folder where the commands were typed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(place / "hf")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.xdist_group("outputs")
def test_every_file_that_the_page_names_is_written(place):
    """By the commands that it shows."""
    for pattern in (
        "shards/*/00000.tar", "shards/*/00000.parquet", "shards/*/00000_stats.json", "folder/metadata.parquet",
        "folder/*.jpg", "manifest/manifest.parquet", "embeddings/img_emb/img_emb_0.npy",
        "embeddings/metadata/metadata_0.parquet", "groups/groups.parquet", "groups/similarity.csv", "groups/pruning.parquet",
    ):  # fmt: skip
        assert list((place / "out").glob(pattern)), pattern
    assert not list((place / "decided").glob("shards"))
