"""The page on outputs: its commands and its Python, run as they are written, one after another."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from curator.demo.draw import draw_demo
from tests.conftest import DEMO, ROOT, run_command, tar_members

PAGE = (ROOT / "docs/outputs.md").read_text()


def test_the_pages_commands_write_every_file_that_it_names_and_its_python_runs_on_them(tmp_path):
    """Over the demo's pictures, each block a script of its own in the folder where the commands were typed."""
    draw_demo(tmp_path / "drawn", seed=11, count=40)
    (tmp_path / "photos").mkdir()
    for name, content in tar_members(*sorted((tmp_path / "drawn").glob("*.tar"))).items():
        (tmp_path / "photos" / name).write_bytes(content)
    for command in re.findall(r"^curate .*$", PAGE, re.MULTILINE):
        demo = DEMO if "nsfw" in command else [setting for setting in DEMO if not setting.startswith("nsfw")]
        ran = run_command(*shlex.split(command)[1:], *demo, cwd=tmp_path)
        assert ran.code == 0, ran.said
    for pattern in (
        "shards/*/00000.tar", "shards/*/00000.parquet", "shards/*/00000_stats.json", "folder/metadata.parquet",
        "folder/*.jpg", "manifest/manifest.parquet", "embeddings/img_emb/img_emb_0.npy",
        "embeddings/metadata/metadata_0.parquet", "groups/groups.parquet", "groups/similarity.csv",
        "groups/pruning.parquet",
    ):  # fmt: skip
        assert list((tmp_path / "out").glob(pattern)), pattern
    assert not list((tmp_path / "decided").glob("shards"))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for code in blocks:
        script = [sys.executable, "-c", code]
        done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        assert done.stdout, code
