"""An installed wheel, used outside the checkout: the configs are in it, and so is everything that a user needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT, make_samples, make_shard


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built from a copy of the checkout and unpacked where nothing else of it is."""
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".curator", "curated", ".*_cache")
    shutil.copytree(ROOT, place / "source", ignore=ignored, symlinks=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(place / "source")]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(place / "site")
    shutil.rmtree(place / "source")
    return place


def run(installed, cwd, *arguments):
    """The command of the installed wheel."""
    env = {**os.environ, "PYTHONPATH": str(installed / "site")}
    code = "import curator, sys; assert 'site' in curator.__file__; from curator.cli import main; sys.exit(main())"
    (cwd / "run.py").write_text(f"if __name__ == '__main__':\n    {code}\n")
    return subprocess.run(
        [sys.executable, "run.py", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_a_stage_and_a_recipe_of_ones_own_work_with_an_installed_wheel(installed, tmp_path):
    """One file, one YAML, `recipe=mine` with --config-dir, in a folder that knows nothing of the checkout."""
    shutil.copytree(ROOT / "examples/saturation", tmp_path / "my")
    (tmp_path / "my/recipe").mkdir()
    (tmp_path / "my/recipe/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /stages: [partition, read, saturation, write]\nname: mine\n"
        "saturation:\n  score_threshold: 0.05\n"
    )
    make_shard(tmp_path / "a.tar", make_samples(5))
    done = run(installed, tmp_path, "--config-dir", "my", "recipe=mine", "input=a.tar", "output=out")
    assert done.returncode == 0, done.stderr
    assert "5 in = 5 kept" in done.stdout


def test_what_ships_is_all_there(installed):
    """Configs, the demo's model with its card, types; no tests and no scripts."""
    package = installed / "site/curator"
    for name in ("conf/config.yaml", "conf/stages/embed.yaml", "conf/recipe/demo.yaml", "demo/MODEL_CARD.md",
                 "demo/curator-demo.safetensors", "demo/curator-demo.json", "demo/nsfw.safetensors", "py.typed"):  # fmt: skip
        assert (package / name).exists(), name
    assert not (installed / "site/tests").exists()
