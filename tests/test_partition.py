"""partition: what an input names, in which order, each file once; what is not there is said in one line each."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import FilePartitioningStage
from curator.errors import ConfigError
from curator.formats.base import Shard
from curator.formats.paths import braces
from tests.conftest import make_image


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with tars, images and things that are neither."""
    monkeypatch.chdir(tmp_path)
    for name in ("b/1.tar", "b/0.tar", "b/deep/2.TAR", "a.tar", "c/x.jpg", "c/deep/y.png", "c/0.tar", "list.parquet"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_image() if path.suffix in (".jpg", ".png") else b"")
    return tmp_path


def found(*inputs, skip=(), **settings):
    """What these inputs name, with `/` behind a folder."""
    shards = FilePartitioningStage(**settings).list(inputs, skip)
    return [s.given + "/" * (s.format == "folder") for s in shards]


def mistakes(*inputs):
    """What is said about these inputs."""
    with pytest.raises(ConfigError) as caught:
        FilePartitioningStage().list(inputs)
    return caught.value.mistakes


def test_a_path_a_glob_and_braces_name_shards_in_the_order_given(place):
    """Lexicographic inside a glob, as written inside braces."""
    assert found("b/1.tar", "a.tar") == ["b/1.tar", "a.tar"]
    assert found("b/*.tar") == ["b/0.tar", "b/1.tar"]
    assert found("b/{1,0}.tar") == ["b/1.tar", "b/0.tar"]
    assert found("b/{0..1}.tar") == ["b/0.tar", "b/1.tar"]
    assert found("**/*.tar") == ["a.tar", "b/0.tar", "b/1.tar", "c/0.tar"]


def test_a_folder_is_searched_to_the_bottom(place):
    """Each tar is a shard, whatever the case of its suffix; all images together are another."""
    assert found("b") == ["b/0.tar", "b/1.tar", "b/deep/2.TAR"]
    assert found("c") == ["c/0.tar", "c/"]
    assert found(".") == ["./a.tar", "./b/0.tar", "./b/1.tar", "./b/deep/2.TAR", "./c/0.tar", "./"]


def test_what_is_listed_twice_is_read_once(place):
    """By another way to write it, by a link, by a glob and by its folder: the first name stays."""
    (place / "link.tar").symlink_to("a.tar")
    assert found("a.tar", "./a.tar", str(place / "a.tar"), "link.tar", "*.tar") == ["a.tar"]
    assert found("b/1.tar", "b") == ["b/1.tar", "b/0.tar", "b/deep/2.TAR"]
    assert found("c", "c/") == ["c/0.tar", "c/"]


def test_a_folder_in_a_folder_of_the_list_is_read_once(place):
    """The outer one leaves the inner one out."""
    outer, inner = (s for s in FilePartitioningStage().list(["c", "c/deep"]) if s.format == "folder")
    assert outer.skip == (str(place / "c/deep"),)
    assert inner.skip == ()


def test_dot_names_and_folders_that_are_no_input_are_not_entered(place):
    """The store lies under the working folder by default, and an output may."""
    for name in (".curator/store/s.tar", "out/shards/0.tar", ".x.tar"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"")
    assert found("b", ".", skip=[place / "out", place / "c"]) == ["b/0.tar", "b/1.tar", "b/deep/2.TAR", "./a.tar"]


def test_tables_and_notes_beside_tars_are_no_shard(place):
    """As img2dataset lays them: 00000.parquet and 00000_stats.json beside each tar; one image there is one."""
    (place / "b/0.parquet").write_bytes(b"")
    (place / "b/0_stats.json").write_bytes(b"{}")
    assert found("b") == ["b/0.tar", "b/1.tar", "b/deep/2.TAR"]
    (place / "b/cover.jpg").write_bytes(make_image())
    assert found("b")[-1] == "b/"


def test_a_name_with_signs_of_a_pattern_is_taken_as_it_stands_where_it_exists(place):
    """Folders are called `[old]` and `{1}`."""
    for name in ("[old]", "{1}", "a*"):
        shutil.copytree(place / "b", place / name)
        assert found(name)[0] == f"{name}/0.tar"
        assert found(f"{name}/0.tar") == [f"{name}/0.tar"]


def test_limit_takes_the_first_input_files(place):
    """For a first try."""
    assert found("b", "a.tar", limit=2) == ["b/0.tar", "b/1.tar"]
    assert found("b", limit=99) == ["b/0.tar", "b/1.tar", "b/deep/2.TAR"]


def test_whatever_is_wrong_with_an_input_is_said_in_one_line_each_and_all_at_once(place):
    """The path, what is the matter, and where it was looked for."""
    (place / "empty").mkdir()
    lines = mistakes("gone/x.tar", "b/{0..3}.tar", "https://host/x.tar", "c/x.jpg", "b/9*.tar")
    assert lines == [
        f"input: gone/x.tar: there is no such file or folder. The folder looked in: {place}.",
        f"input: b/2.tar, b/3.tar: nothing is there (2 of 4). The folder looked in: {place}/b.",
        "input: https://host/x.tar: https:// is not read here. Of URLs, s3://, gs://, gcs://, az://, abfs:// are.",
        "input: c/x.jpg is neither a tar nor a folder. For one image, name its folder.",
        f"input: b/9*.tar: nothing is there. The folder looked in: {place}/b.",
    ]
    assert mistakes("empty") == ["input: empty holds no tar and no image."]


def test_a_long_list_of_missing_files_is_cut_short(place):
    """A hundred thousand names on the screen say less than five."""
    (line,) = mistakes("b/{00000..99999}.tar")
    assert "b/00004.tar and 99995 more: nothing is there (100000 of 100000)" in line


@pytest.mark.parametrize(
    "pattern",
    ["a{00..12}b", "{a,b}{1..3}", "x{9..11}", "{5..1}", "{01..10..3}", "{a,{b,c}d}", "{-2..2}", "{,x}.tar", "plain"],
)
def test_braces_mean_what_they_mean_in_bash(pattern):
    """bash expands them before Curator sees them where they are not quoted: both must name the same files."""
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert list(dict.fromkeys(braces(pattern))) == said.stdout.splitlines()


SIZES = st.lists(st.integers(0, 10), max_size=30)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.none() | st.integers(1, 5), st.none() | st.integers(1, 20))
def test_groups_are_the_shards_in_order_and_within_the_limits(sizes, files, most):
    """A shard larger than the limit is a group of its own; `files_per_partition` goes before `blocksize`."""
    shards = [Shard(f"{n}.tar", f"/{n}.tar", "webdataset", size) for n, size in enumerate(sizes)]
    groups = list(FilePartitioningStage(files_per_partition=files, blocksize=most).group(shards))
    assert [shard for group in groups for shard in group] == shards
    assert all(groups)
    for group in groups:
        if files is not None:
            assert len(group) <= files
        elif most is not None:
            assert len(group) == 1 or sum(shard.bytes for shard in group) <= most
    if files is not None:
        assert len(groups) == -(-len(shards) // files)


def test_small_files_go_together_and_large_ones_alone():
    """By default up to 64 files and 256 MiB: a task is worth its start, and there are enough for all workers."""
    small = [Shard(f"{n}", f"/{n}", "webdataset", 1000) for n in range(130)]
    assert [len(group) for group in FilePartitioningStage().group(small)] == [64, 64, 2]
    large = [Shard(f"{n}", f"/{n}", "webdataset", 200 << 20) for n in range(3)]
    assert [len(group) for group in FilePartitioningStage().group(large)] == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"files_per_partition": 0}, {"blocksize": "many"}, {"blocksize": 0}])
def test_a_setting_that_can_mean_nothing_is_refused(wrong):
    """When the stage is made, not when it runs."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FilePartitioningStage(**wrong)


def test_a_tar_that_went_meanwhile_is_still_listed(place):
    """Reading it will say what is the matter, as one failed row: a listing is no check."""
    (place / "b/9.tar").symlink_to(place / "gone.tar")
    shards = FilePartitioningStage().list(["b"])
    assert [os.path.basename(s.given) for s in shards] == ["0.tar", "1.tar", "9.tar", "2.TAR"]


def test_a_hundred_thousand_small_files_are_grouped_at_once():
    """However many fit one task."""
    shards = [Shard("", "", "webdataset", 1)] * 100_000
    begin = time.process_time()
    assert len(list(FilePartitioningStage(blocksize="1GiB").group(shards))) == 1
    assert time.process_time() - begin < 5
