"""Pieces through a whole run: a sample is what its shard says, whatever is in the store and whoever ran before."""

from __future__ import annotations

import os
from pathlib import Path

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage
from tests.conftest import make_image, make_shard, tar_members
from tests.stages import Brightness
from tests.tars import tar_of

STAGES = (FilePartitioningStage(), ImageReaderStage(), ImageWriterStage())


def lay(folder: Path, **files: bytes) -> Path:
    """A folder of files; `__` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def test_the_same_files_in_a_tar_and_in_a_folder_are_each_read_by_their_own_rule(pipeline, tmp_path):
    """Two images of one key are one sample in a tar and two in a folder; the store must not take one for the other."""
    images = {"a.x.jpg": make_image(1), "a.y.jpg": make_image(2)}
    tar = make_shard(tmp_path / "a.tar", images)
    folder = lay(tmp_path / "in", a__x__jpg=images["a.x.jpg"], a__y__jpg=images["a.y.jpg"])
    for given, expected in ((tar, ["a"]), (folder, ["a.x", "a.y"]), (tar, ["a"])):
        result = pipeline(STAGES, input=given, overwrite=True)
        assert result.ledger.column("key").to_pylist() == expected


def test_a_key_is_that_of_its_shard_and_not_of_a_like_file_read_before(pipeline, tmp_path):
    """`v1.cat.jpg` has the key v1 in a tar and v1.cat in a folder."""
    tar = make_shard(tmp_path / "a.tar", {"v1.cat.jpg": make_image(1)})
    folder = lay(tmp_path / "in", v1__cat__jpg=make_image(1))
    assert pipeline(STAGES, input=tar).ledger.column("key").to_pylist() == ["v1"]
    assert pipeline(STAGES, input=folder).ledger.column("key").to_pylist() == ["v1.cat"]


def test_notes_of_a_shard_do_not_hang_on_what_was_read_before(pipeline, tmp_path):
    """The same samples in one archive and in two that were joined: only the second is noted, in any order of runs."""
    members = [(f"{n}.jpg", make_image(n)) for n in range(4)]
    (tmp_path / "plain.tar").write_bytes(tar_of(members))
    (tmp_path / "joined.tar").write_bytes(tar_of(members[:2]) + tar_of(members[2:]))
    for given, notes in (("plain", [""] * 4), ("joined", ["", "", *["joined_archive"] * 2]), ("plain", [""] * 4)):
        result = pipeline(STAGES, input=tmp_path / f"{given}.tar", overwrite=True)
        assert result.ledger.column("notes").to_pylist() == notes


def test_a_copied_tar_is_recognised_and_so_is_the_same_set_as_a_folder(pipeline, tmp_path):
    """Where the samples are the same in both, nothing is decoded again: content counts, not where it lies."""
    images = {f"{n}.jpg": make_image(n) for n in range(3)}
    assert pipeline(STAGES, input=make_shard(tmp_path / "a.tar", images)).run["work"]["decoded"] == 3
    (tmp_path / "copy.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    assert pipeline(STAGES, input=tmp_path / "copy.tar").run["work"]["decoded"] == 0
    folder = lay(tmp_path / "in", **{name.replace(".", "__"): content for name, content in images.items()})
    assert pipeline(STAGES, input=folder).run["work"]["decoded"] == 0


def test_equal_names_in_sub_folders_are_rows_of_their_own(pipeline, tmp_path):
    """CASES 15 [Duplicate-Image-Finder #33]: as files and as tars; each output key leads back to one input."""
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        lay(tmp_path / "files" / name, x__jpg=make_image(seed))
        make_shard(tmp_path / f"tars/{name}.tar", {"x.jpg": make_image(seed)})
    result = pipeline(STAGES, input=tmp_path / "files")
    assert result.ledger.column("output_key").to_pylist() == ["a/x", "b/x", "c/x"]
    result = pipeline(STAGES, input=tmp_path / "tars", overwrite=True)
    assert len(set(zip(*(result.ledger.column(c).to_pylist() for c in ("shard", "key", "index")), strict=True))) == 3
    assert result.ledger.column("output_key").to_pylist() == ["x", "x-1", "x-2"]
    assert list(tar_members(tmp_path / "out/shards/00000.tar").values()) == [
        make_image(1),
        make_image(2),
        make_image(1),
    ]


def test_a_tar_whose_name_is_not_utf8_is_read_and_written(pipeline, tmp_path):
    """Its name is escaped in the ledger; a run must not end in a traceback for it."""
    make_shard(tmp_path / "in/a.tar", {"x.jpg": make_image(1)})
    os.rename(os.fsencode(tmp_path) + b"/in/a.tar", os.fsencode(tmp_path) + b"/in/caf\xe9.tar")
    result = pipeline(STAGES, input=tmp_path / "in")
    assert result.ledger.column("shard").to_pylist() == [f"{tmp_path}/in/caf\\xe9.tar"]
    assert result.counts["kept"] == 1


def test_a_glob_that_also_means_the_output_can_be_run_again(curate, tmp_path):
    """`curate 'input=*' output=out`, twice: the second time the output lies among what `*` means."""
    make_shard(tmp_path / "in/a.tar", {"x.jpg": make_image(1)})
    command = ("stages=[partition,read,write]", "input=*", "output=out", "cluster=local", "cluster.n_workers=1")
    first, second = curate(*command), curate(*command, "write.samples_per_shard=7")
    assert (first.code, second.code) == (0, 0), second.said
    assert "1 in = 1 kept" in second.out


def test_a_stage_under_another_name_over_the_same_store_has_columns_of_its_own(pipeline, tmp_path):
    """What is gathered bears the names of its stages: the same class as `vivid` must not be read as `saturation`."""
    make_shard(tmp_path / "a.tar", {f"{n}.jpg": make_image(n) for n in range(3)})
    for name in ("brightness", "light"):
        stages = (FilePartitioningStage(), ImageReaderStage(), Brightness(name=name, score_threshold=0.0))
        assert pipeline(stages, input=tmp_path / "a.tar", overwrite=True).counts["kept"] == 3
