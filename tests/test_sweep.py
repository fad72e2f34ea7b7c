"""Multirun: the grid over one store and one cluster, one table at the end."""

from __future__ import annotations

import csv
import json

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
    assert "no image was copied. To write the setting you like: curate" in ran.out
    assert ran.err.count("local worker") == 1


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
