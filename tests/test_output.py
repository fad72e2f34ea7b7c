"""How an output is replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage, Pipeline, ProcessingStage
from curator.errors import ConfigError, OutsideError
from curator.output import Output
from curator.voice import Voice
from tests.conftest import make_samples, make_shard, tree
from tests.stages import Brightness

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder and its text."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def make(output: Output, word: str, parts: tuple[str, ...]) -> None:
    """A run that writes these parts."""
    folder = output.begin()
    for part in parts:
        (folder / part).mkdir()
        (folder / part / "file").write_text(word)
    output.commit({"word": word})


class Killed(BaseException):
    """Stands for SIGKILL at one system call: nothing behind it happens."""


def test_a_swap_killed_at_every_step_is_finished_by_the_next_command(tmp_path, monkeypatch):
    """Whatever rename, unlink or sync a kill falls on, the output is the old one or, after recovery, the new one."""
    output = Output(tmp_path / "out")
    with output.locked():
        make(output, "old", ("shards", "ledger", "gone"))
    shutil.copytree(output.folder, tmp_path / "before")
    seen = set()
    for step in range(200):
        shutil.rmtree(output.folder)
        shutil.copytree(tmp_path / "before", output.folder)
        if _killed_at(step, output, monkeypatch):
            with output.locked():
                found = state(output.folder)
            words = {text for name, text in found.items() if name != "run.json"}
            assert len(words) == 1
            assert output.run is not None
            assert words == {output.run["word"]}
            assert not (output.folder / ".next").exists()
            seen |= words
        else:
            break
    assert seen == {"old", "new"}
    assert step > 12
    assert sorted(os.listdir(output.folder)) == ["ledger", "run.json", "shards"]


def _killed_at(step: int, output: Output, monkeypatch: pytest.MonkeyPatch) -> bool:
    count = 0

    def dying(call):
        def wrapped(*args, **options):
            nonlocal count
            count += 1
            if count > step:
                raise Killed
            return call(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "fsync", "mkdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        try:
            with output.locked():
                make(output, "new", ("shards", "ledger"))
        except Killed:
            return True
    return False


def test_two_runs_do_not_write_to_one_output_at_once(tmp_path):
    """The second one is told, and touches nothing."""
    with Output(tmp_path).locked(), pytest.raises(OutsideError, match="another run"), Output(tmp_path).locked():
        pass


def test_a_folder_that_was_made_for_a_run_that_wrote_nothing_goes_again(tmp_path):
    """A failed run leaves no empty folder behind."""
    with Output(tmp_path / "out").locked():
        pass
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_foreign_and_one_of_ours_is_not(tmp_path):
    """That is what overwrite=true is asked for."""
    (tmp_path / "thesis.doc").write_text("mine")
    assert Output(tmp_path).is_foreign
    output = Output(tmp_path / "out")
    assert not output.is_foreign
    with output.locked():
        make(output, "x", ("ledger",))
    assert not output.is_foreign


def test_an_output_that_holds_something_else_is_not_touched(pipeline, tmp_path):
    """overwrite=true is asked for, and then what is foreign stays beside the result."""
    make_shard(tmp_path / "a.tar", make_samples(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.doc").write_text("mine")
    with pytest.raises(ConfigError, match="overwrite=true"):
        pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar", overwrite=True)
    assert (tmp_path / "out/thesis.doc").read_text() == "mine"
    with pytest.raises(ConfigError, match="overwrite=true to lose them"):
        pipeline([*SOURCES, Brightness()], input=tmp_path / "a.tar")


def test_shards_are_not_lost_to_a_run_that_keeps_nothing(pipeline, tmp_path):
    """A threshold set too high must not delete a finished dataset: exit 2, unless overwrite=true; measured once."""
    make_shard(tmp_path / "a.tar", make_samples(4))
    make_shard(tmp_path / "bad.tar", {"x.jpg": b"", "y.jpg": b"no image"})
    pipeline([*SOURCES, Brightness(), ImageWriterStage()], input=tmp_path / "a.tar")
    before = tree(tmp_path / "out")
    nothing = [*SOURCES, Brightness(score_threshold=2.0), ImageWriterStage()]
    with pytest.raises(
        ConfigError, match="holds the shards of 4 images, and this run keeps none of 4 inputs: 4 dropped"
    ):
        pipeline(nothing, input=tmp_path / "a.tar")
    with pytest.raises(ConfigError, match=r"2 failed \(empty_file 1, not_an_image 1\)"):
        pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "bad.tar")
    assert tree(tmp_path / "out") == before
    assert pipeline(nothing, input=tmp_path / "a.tar", overwrite=True).run["work"]["decoded"] == 0
    assert not (tmp_path / "out/shards").exists()


class FullDisk(ProcessingStage):
    """A writer that meets a fault outside."""

    version: ClassVar[int] = 1

    def write(self, kept, source, folder, each):
        """Nothing is written."""
        raise OutsideError("the disk is full")


def test_a_run_that_fails_while_it_writes_does_not_say_that_it_replaces(pipeline, tmp_path):
    """What it would have replaced stays, and the line comes with the run that does replace it."""
    make_shard(tmp_path / "a.tar", make_samples(4))
    pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / "a.tar")
    before = tree(tmp_path / "out")
    places = {"input": tmp_path / "a.tar", "output": tmp_path / "out", "store": tmp_path / "store"}
    failing, replacing = Voice(quiet=True), Voice(quiet=True)
    with pytest.raises(OutsideError, match="the disk is full"):
        Pipeline("test", [*SOURCES, ImageWriterStage(), FullDisk()]).run(voice=failing, **places)
    assert tree(tmp_path / "out") == before
    assert "replaces the run" not in "".join(failing.lines)
    Pipeline("test", [*SOURCES, ImageWriterStage(samples_per_shard=2)]).run(voice=replacing, **places)
    assert "replaces the run" in "".join(replacing.lines)


def test_zero_kept_rows_leave_no_empty_tar(pipeline, tmp_path):
    """CASES 17 (webdataset #376)."""
    make_shard(tmp_path / "a.tar", make_samples(4))
    result = pipeline([*SOURCES, Brightness(score_threshold=2.0), ImageWriterStage()], input=tmp_path / "a.tar")
    assert result.counts["kept"] == 0
    assert not (tmp_path / "out/shards").exists()


def test_include_dropped_writes_what_is_dropped_and_never_what_failed(pipeline, tmp_path):
    """The ledger says which they are, and where each lies."""
    make_shard(tmp_path / "a.tar", make_samples(4) | {"x.jpg": b"no image"})
    stages = [*SOURCES, Brightness(score_threshold=2.0), ImageWriterStage(include_dropped=True)]
    rows = pipeline(stages, input=tmp_path / "a.tar").ledger.to_pylist()
    assert [(row["status"], row["output_shard"]) for row in rows] == [("dropped", "00000.tar")] * 4 + [("failed", None)]
    beside = pq.read_table(tmp_path / "out/shards/00000.parquet")  # as docs/outputs.md says: status is img2dataset's
    assert set(beside.column("status").to_pylist()) == {"success"}
    assert set(beside.column("in_status").to_pylist()) == {"dropped"}
