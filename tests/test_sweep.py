"""Multirun: the grid over one store and one cluster, one table at the end."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, make_image, make_samples, make_shard, tree

SATURATION = ("--config-dir", str(ROOT / "examples/saturation"), "stages=[partition,read,saturation,write]")


@pytest.fixture
def shards(tmp_path):
    """Two small tars."""
    for n in range(2):
        make_shard(tmp_path / f"in/{n}.tar", make_samples(6, start=6 * n))
    return tmp_path


def rows_of(path):
    """A sweep's table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_measures_once_copies_nothing_and_ends_in_a_table(curate, shards):
    """Jobs after the first decode nothing; each has a plain folder with its ledger; sweep.csv has a row per setting."""
    ran = curate(
        "-m", *SATURATION, "input=in/", "output=sweep", "saturation.score_threshold=0.1,0.5,0.6", "max_failed=1,0.5"
    )
    assert ran.code == 0, ran.said
    rows = rows_of(shards / "sweep/sweep.csv")
    assert len(rows) == 6
    kept = [int(row["kept"]) for row in rows if row["max_failed"] == "1"]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) > 1
    works = []
    for row in rows:
        assert set(row["folder"]) <= set("abcdefghijklmnopqrstuvwxyz_.=-0123456789")
        run = json.loads((shards / "sweep" / row["folder"] / "run.json").read_text())
        works.append(run["work"]["decoded"])
        assert run["job"]["overrides"]["saturation.score_threshold"] == row["saturation.score_threshold"]
        assert not (shards / "sweep" / row["folder"] / "shards").exists()
    assert works == [12, 0, 0, 0, 0, 0]
    assert "no image was copied. To write the setting you like, such as the last: curate" in ran.out
    assert ran.err.count("local worker") == 1


def test_the_table_of_a_sweep_is_not_cut_inside_words_and_has_no_column_of_nothing(curate, shards):
    """Names break at dots and underscores; a stage that dropped nothing, and exit codes that are all 0, are left out."""
    make_shard(shards / "in/2.tar", {"bad.jpg": make_image(1)[:100]})
    swept = ("saturation.score_threshold=0.1,0.6", "read.decode_timeout_s=10,20", "max_failed=1,0.9")
    ran = curate("-m", *SATURATION, "input=in/", "output=sweep", *swept, env={"COLUMNS": "70"})
    assert ran.code == 0, ran.said
    table = ran.out.partition("the table is in")[0]
    words = set(table.split())
    assert {"saturation.", "score_", "threshold", "decode_", "timeout_", "dropped", "by", "saturation"} <= words
    assert max(map(len, table.splitlines())) <= 70
    assert "exit" not in words
    assert "dropped by read" not in (shards / "sweep/sweep.csv").read_text()


def test_what_stages_only_flag_is_counted_in_the_table(curate, shards):
    """A column for each stage that flagged any, beside what others dropped."""
    ran = curate("-m", *SATURATION, "input=in/", "output=sweep", "saturation.action=drop,flag", "saturation.score_threshold=1")
    assert ran.code == 0, ran.said
    rows = rows_of(shards / "sweep/sweep.csv")
    assert [(row["kept"], row["dropped by saturation"], row["flagged by saturation"]) for row in rows] == [
        ("0", "12", "0"), ("12", "0", "12"),
    ]  # fmt: skip
    assert "flagged" in ran.out.partition("the table is in")[0]


def test_a_multirun_of_one_job_is_a_sweep_without_settings(curate, shards):
    """`job 1`, and no colon with nothing behind it."""
    ran = curate("-m", "stages=[partition,read]", "input=in/", "output=sweep")
    assert ran.code == 0, ran.said
    assert "job 1\n" in ran.err


def test_sweep_write_writes_every_job(curate, shards):
    """sweep.write=true."""
    ran = curate("-m", *SATURATION, "input=in/", "saturation.score_threshold=0,0.2", "sweep.write=true")
    assert ran.code == 0, ran.said
    folders = sorted((shards / "multirun/training_dataset").glob("sat*"))
    assert [len(list((f / "shards").glob("*.tar"))) for f in folders] == [1, 1]


def test_a_failing_job_does_not_lose_the_others_and_gives_the_exit_code(curate, shards):
    """One of two settings allows no failure: exit 3, the other is there."""
    make_shard(shards / "in/2.tar", {"bad.jpg": make_image(1)[:100]})
    ran = curate("-m", *SATURATION, "input=in/", "output=sweep", "max_failed=0,1")
    assert ran.code == 3, ran.said
    rows = rows_of(shards / "sweep/sweep.csv")
    assert [row["exit"] for row in rows] == ["3", "0"]
    assert "1 of 13 inputs failed" in rows[0]["error"]
    assert rows[1]["kept"] != ""


def test_all_jobs_are_checked_before_the_first_starts(curate, shards):
    """A mistake in the last setting: nothing runs."""
    ran = curate("-m", *SATURATION, "input=in/", "output=sweep", "saturation.score_threshold=0.1,7")
    assert ran.code == 2
    assert "saturation.score_threshold: must be at most 1" in ran.err
    assert not (shards / "sweep").exists()


def test_stage_lists_can_be_swept_with_relative_paths(curate, shards):
    """CASES 20 (hydra #533, #1832): the same rows as with absolute paths, plain folders, nothing measured twice."""
    stages = "stages=[partition,read],[partition,read,saturation]"
    arguments = ("-m", "input=in/", "store=st", "--config-dir", str(ROOT / "examples/saturation"), stages, "output=sw")
    for decoded in ([12, 12], [0, 0]):
        ran = curate(*arguments)
        assert ran.code == 0, ran.said
        folders = [shards / "sw" / row["folder"] for row in rows_of(shards / "sw/sweep.csv")]
        runs = [json.loads((f / "run.json").read_text()) for f in folders]
        if decoded == [12, 12]:
            assert [run["work"]["decoded"] for run in runs] == decoded
            first = [tree(f, "ledger") for f in folders]
    assert [tree(f, "ledger") for f in folders] == first


def test_values_that_a_recipe_sweeps_have_a_folder_each(curate, shards):
    """hydra.sweeper.params counts as if it were typed: no job takes the folder of another, and all are checked."""
    recipe = shards / "my/recipe/mine.yaml"
    recipe.parent.mkdir(parents=True)
    text = "# @package _global_\nname: mine\nhydra: {sweeper: {params: {max_failed: 'VALUES'}}}\n"
    recipe.write_text(text.replace("VALUES", "0.5,1"))
    given = (
        "--config-dir",
        "my",
        "-m",
        "recipe=mine",
        "stages=[partition,read]",
        "input=in/",
        "fingerprint=stat,content",
    )
    ran = curate(*given)
    assert ran.code == 0, ran.said
    rows = rows_of(shards / "multirun/mine/sweep.csv")
    assert len({row["folder"] for row in rows}) == 4
    assert {(row["max_failed"], row["fingerprint"]) for row in rows} == {
        (failed, how) for failed in ("0.5", "1") for how in ("stat", "content")
    }
    recipe.write_text(text.replace("VALUES", "0.5,7"))
    assert "max_failed: must be at most 1.0, not 7" in curate(*given).err


def test_the_command_at_the_end_writes_the_setting(curate, shards):
    """It can be pasted as it stands, the folder of one's own stages in it."""
    ran = curate("-m", *SATURATION, "input=in/", "saturation.score_threshold=0,0.2")
    command = shlex.split(ran.out.partition("such as the last: ")[2])
    assert command[0] == "curate"
    assert curate(*command[1:]).code == 0
    assert list((shards / "out/shards").glob("*.tar"))


def test_a_dry_run_of_a_sweep_leaves_nothing(curate, shards):
    """It says what each job would do, and makes no table of zeros."""
    ran = curate("-m", "stages=[partition,read]", "input=in/", "output=sweep", "max_failed=0.5,1", "dry_run=true")
    assert ran.code == 0, ran.said
    assert ran.said.count("dry run: nothing was done") == 2
    assert not (shards / "sweep").exists()


def test_weights_that_cannot_be_had_end_a_sweep_once_and_before_its_first_job(curate, shards):
    """All that are missing, each with its files; not the same wall of text for every job."""
    nowhere = {"CURATOR_WEIGHTS_URL": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(shards / "none"), "HOME": str(shards)}
    ran = curate("-m", "input=in/", "output=sweep", "aesthetic.score_threshold=0.4,0.5,0.6", env=nowhere)
    assert ran.code == 4, ran.said
    assert "job 1" not in ran.said
    for stage in ("embed", "nsfw", "aesthetic"):
        assert ran.err.count(f"curate: {stage}: http://127.0.0.1:9/") == 1


def test_a_sweep_does_not_mix_its_folders_with_something_else(curate, shards):
    """A foreign folder and a finished run are refused; an earlier sweep's folder is where a sweep belongs."""
    (shards / "mine").mkdir()
    (shards / "mine/notes.txt").write_text("keep")
    assert curate("stages=[partition,read,write]", "input=in/", "output=done").code == 0
    for output, told in (("mine", "holds something else than a sweep"), ("done", "holds a finished run")):
        ran = curate("-m", "stages=[partition,read]", "input=in/", f"output={output}", "max_failed=0.5,1")
        assert ran.code == 2, ran.said
        assert told in ran.err
    for _ in range(2):
        assert curate("-m", "stages=[partition,read]", "input=in/", "output=sweep", "max_failed=0.5,1").code == 0


SLOW = """
import time
import numpy as np
from curator import Pixels, ProcessingStage, measures


class Slow(ProcessingStage):
    version = 1
    needs = (Pixels(max_side=32),)
    gives = ("slow_score",)
    seconds: float = measures(0.0)

    def prepare(self, image):
        return np.float32(1)

    def measure(self, batch):
        time.sleep(self.seconds)
        return {"slow_score": batch.pixels}
"""


def test_an_interrupted_sweep_keeps_what_it_has_and_says_where_it_stopped(shards):
    """Ctrl-C: exit 130, the finished job's row is whole, the broken one's does not look like a success."""
    (shards / "my/stages").mkdir(parents=True)
    (shards / "my/slowly.py").write_text(SLOW)
    (shards / "my/stages/slow.yaml").write_text("# @package slow\n# Slow.\n_target_: slowly.Slow\nseconds: 0.0\n")
    arguments = ("--config-dir", "my", "-m", "stages=[partition,read,slow]", "input=in/", "output=sweep")
    command = [sys.executable, "-m", "curator", *arguments, "slow.seconds=0.0,60.0"]
    with subprocess.Popen(command, cwd=shards, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stderr is not None
            assert any("job 2" in line for line in running.stderr)
            time.sleep(1)
            running.send_signal(signal.SIGINT)
            assert "interrupted; what was stored is kept" in running.stderr.read()
            assert running.wait(60) == 130
        finally:
            running.kill()
    rows = rows_of(shards / "sweep/sweep.csv")
    assert [row["exit"] for row in rows] == ["0", "130"]
    assert rows[0]["kept"] == "12"
    assert "interrupted" in rows[1]["error"]
