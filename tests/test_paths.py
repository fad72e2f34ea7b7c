"""What an input names: braces and wildcards as in a shell, odd file names, and what is said of what is not read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import FilePartitioningStage
from curator.errors import ConfigError
from curator.formats.paths import braces
from tests.conftest import make_image, make_shard

PARTITION = FilePartitioningStage()


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """The folder in which paths of a test are relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*paths: str) -> None:
    """Tars with one picture, and pictures, by suffix."""
    for path in paths:
        if path.endswith(".tar"):
            make_shard(Path(path), {"a.jpg": make_image(1)})
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(make_image(1))


def listed(*inputs: str, skip: tuple[str, ...] = ()) -> list[str]:
    """Shards as they were given, with a slash behind folders."""
    shards = PARTITION.list(inputs, [Path(os.path.realpath(s)) for s in skip])
    return [s.given + ("/" if s.format == "folder" else "") for s in shards]


def mistakes(*inputs: str) -> list[str]:
    """What is said about inputs that are not as they should be."""
    with pytest.raises(ConfigError) as error:
        PARTITION.list(inputs)
    return error.value.mistakes


def test_output_and_store_are_passed_over_where_they_lie_under_an_input(inside):
    """`curate input=. output=out store=st`, run twice, must not take its own shards in; nor may `input=*`."""
    touch("in/a.tar", "out/shards/00000.tar", "st/x.tar", ".hidden/y.tar")
    assert listed(".", skip=("out", "st")) == ["./in/a.tar"]
    assert listed("*", skip=("out", "st")) == ["in/a.tar"]
    assert listed("out", skip=("out", "st")) == ["out/shards/00000.tar"]  # named outright: said as a mistake elsewhere


def test_missing_files_of_a_brace_pattern_are_named_and_counted(inside):
    """One missing shard of a hundred is a mistake to be told before any work, not a smaller dataset."""
    touch(*(f"s/{n:05d}.tar" for n in range(10) if n not in {3, 7}))
    (text,) = mistakes("s/{00000..00009}.tar")
    assert "s/00003.tar, s/00007.tar" in text
    assert "2 of 10" in text
    assert str(inside / "s") in text
    (text,) = mistakes("s/{00000..00099}.tar")
    assert "and 87 more" in text
    assert "92 of 100" in text


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("nothing/here.tar", "no such file or folder"),
        ("*.tar", "nothing is there"),
        ("s3:///a.tar", "names no bucket"),
        ("HTTPS://host/a.tar", "Of URLs, s3://"),
        ("one.jpg", "name its folder"),
    ],
)
def test_what_this_version_does_not_read_is_said_plainly(inside, wanted, said):
    """One line, with what was looked for."""
    touch("one.jpg")
    (text,) = mistakes(wanted)
    assert said in text
    assert wanted in text


def test_a_name_that_is_not_utf8_is_shown_escaped_and_opened_by_its_bytes(inside):
    """Arrow holds no such text, and a run must not end in a traceback for a file name."""
    touch("f/plain.tar")
    os.rename(b"f/plain.tar", b"f/caf\xe9.tar")
    (shard,) = PARTITION.list(["f"])
    assert shard.given == "f/caf\\xe9.tar"
    assert os.path.exists(shard.path)


def test_a_path_with_braces_in_its_name_is_that_path(inside):
    """`{a}` is no pattern where a file is called so, nor anywhere else."""
    touch("{a}.tar", "x{b}1.tar", "[1]/0.tar", "[1]/1.tar")
    assert listed("{a}.tar", "x{b}{1..1}.tar", "[1]/{0..1}.tar") == ["{a}.tar", "x{b}1.tar", "[1]/0.tar", "[1]/1.tar"]


@pytest.mark.parametrize(
    "pattern",
    "{0..10} {00..2} {-1..1} {01..-1} {a..c} {1..010} {5..1..2} x{abc}y{1,2} {x{1,2},y} {a,{b,c}}-{0..1} { }{ {a"
    " {a{1,2}} {,a}b {e..a} {} {a}{0..1} {1..3..-1} a{b,c{1..2}d}e".split(),
)
def test_braces_mean_what_a_shell_means(pattern):
    """The same names in the same order as the shell gives, so that quoting the pattern changes nothing."""
    shell = subprocess.run(["bash", "-c", f'printf "%s\\n" {pattern}'], capture_output=True, text=True, check=True)
    assert list(braces(pattern)) == shell.stdout.split("\n")[:-1]


@given(st.text(alphabet="{},.019ab", max_size=14))
@settings(max_examples=300, deadline=None)
def test_no_text_makes_braces_loop_or_raise(text):
    """Whatever stands in a path."""
    assert len(list(braces(text))) >= 1
