"""Filters that measure nothing: resolution, caption, blocklist, and one of one's own; they decide from reading's columns."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from curator import (
    BlocklistFilterStage,
    CaptionFilterStage,
    Column,
    FilePartitioningStage,
    ImageReaderStage,
    ImageResolutionFilterStage,
    ProcessingStage,
    decides,
)
from curator.errors import ConfigError
from curator.stages.caption import counts_of
from tests.conftest import make_image, make_samples, make_shard
from tests.stages import Brightness

SOURCES = [FilePartitioningStage(), ImageReaderStage()]
NOTHING = {"decoded": 0, "embedded": 0, "scored": 0, "paired": 0}


def by_key(result):
    """Ledger rows by key."""
    return {row["key"]: row for row in result.ledger.to_pylist()}


def statuses(result):
    """Status by key."""
    return {key: row["status"] for key, row in by_key(result).items()}


class Wide(ProcessingStage):
    """Keeps what is wider than high, of pictures that were bright enough; remembers nothing."""

    version: ClassVar[int] = 1
    needs = (Column("width"), Column("height"), Column("caption"), Column("brightness"))

    captioned: bool = decides(False)

    def keep(self, rows):
        """By columns of reading and of another stage."""
        told = np.array([caption is not None for caption in rows["caption"]])
        return (rows["width"] > rows["height"]) & (rows["brightness"] > 0.1) & (told | (not self.captioned))

    def why(self, rows):
        """A text, or a cause and a text."""
        return [("upright", "higher than wide") if w <= h else "else" for w, h in zip(rows["width"], rows["height"], strict=True)]


def test_a_filter_may_keep_from_columns_alone(pipeline, tmp_path):
    """It is given reading's columns and those of stages before it, empty ones as None, and another setting is free."""
    make_shard(tmp_path / "a.tar", {
        "wide.jpg": make_image(1), "wide.txt": b"told", "upright.jpg": make_image(2, (40, 60)), "upright.txt": b"told",
        "silent.jpg": make_image(3), "dark.png": make_image(4, form="PNG"), "broken.jpg": b"no image",
    })  # fmt: skip
    stages = [*SOURCES, Brightness(), Wide()]
    first = pipeline(stages, input=tmp_path / "a.tar")
    assert statuses(first) == {"wide": "kept", "upright": "dropped", "silent": "kept", "dark": "kept", "broken": "failed"}
    row = by_key(first)["upright"]
    assert (row["stage"], row["cause"], row["reason"]) == ("wide", "upright", "higher than wide")
    assert first.run["stages"]["wide"] == {"in": 4, "kept": 3, "dropped": 1, "failed": 0, "flagged": 0}
    again = pipeline([*SOURCES, Brightness(), Wide(captioned=True)], input=tmp_path / "a.tar")
    assert statuses(again)["silent"] == "dropped"
    assert (by_key(again)["silent"]["cause"], by_key(again)["silent"]["reason"]) == ("filtered", "else")
    assert again.run["work"] == NOTHING
    assert again.run["cluster"]["kind"] == "none"


def test_long_and_small_pictures_are_dropped_with_what_a_model_would_see(pipeline, tmp_path):
    """Cases 13: 4000 x 40, 2000 x 1 and 1 x 1 are rows; two strips with equal middles and other ends are flagged."""
    strips = {}
    for name, seed in (("strip_a", 5), ("strip_b", 6)):
        ends = np.random.default_rng(seed).integers(0, 256, (300, 3000, 3), dtype=np.uint8)
        ends[:, 1350:1650] = 90
        strips[name] = ends
    from PIL import Image

    from tests.odd_files import encoded

    files = {name: encoded(Image.fromarray(array), "PNG") for name, array in strips.items()}
    files |= {name: make_image(n, size, "PNG") for n, (name, size) in enumerate(
        {"long": (4000, 40), "line": (2000, 1), "dot": (1, 1), "small": (300, 199), "fits": (600, 200)}.items())}  # fmt: skip
    make_shard(tmp_path / "a.tar", {f"{name}.png": content for name, content in files.items()})
    result = pipeline([*SOURCES, ImageResolutionFilterStage(min_side=0)], input=tmp_path / "a.tar")
    told = {key: (row["cause"], row["reason"]) for key, row in by_key(result).items() if row["status"] == "dropped"}
    assert told == {
        "long": ("too_long", "4000 x 40: 100 times as long as wide, 3 are allowed; the usual crop shows a model the middle 0.01 of it"),
        "line": ("too_long", "2000 x 1: 2000 times as long as wide, 3 are allowed; the usual crop shows a model the middle 0.0005 of it"),
        **dict.fromkeys(strips, ("too_long", "3000 x 300: 10 times as long as wide, 3 are allowed; the usual crop shows a model the middle 0.1 of it")),
    }  # fmt: skip
    usual = pipeline([*SOURCES, ImageResolutionFilterStage(action="flag")], input=tmp_path / "a.tar")
    flags = {key: row["flags"] for key, row in by_key(usual).items()}
    assert flags["fits"] == ""
    assert flags["small"] == "resolution: 300 x 199: the shorter side has 199 pixels, 200 are wanted"
    assert flags["dot"] == "resolution: 1 x 1: the shorter side has 1 pixels, 200 are wanted"
    assert len(usual) == len(files)
    assert usual.run["work"] == NOTHING


def test_an_unknown_size_is_not_held_against_a_picture():
    """NaN is neither small nor long."""
    rows = {"width": np.array([np.nan, 10.0]), "height": np.array([np.nan, 10.0])}
    assert ImageResolutionFilterStage().keep(rows).tolist() == [True, False]


def test_captions_that_are_missing_or_short_are_dropped(pipeline, tmp_path):
    """No caption, one of blanks, one of too few words or letters; the reason tells which."""
    captions = {"none": None, "blank": b" \n\t", "one": b"t-shirt", "two": b"red car", "letters": b"a b c", "good": b" a red car \n"}
    members = {}
    for n, (name, caption) in enumerate(captions.items()):
        members[f"{name}.jpg"] = make_image(n)
        members |= {} if caption is None else {f"{name}.txt": caption}
    make_shard(tmp_path / "a.tar", members)
    result = pipeline([*SOURCES, CaptionFilterStage()], input=tmp_path / "a.tar")
    assert {key: (row["cause"], row["reason"]) for key, row in by_key(result).items()} == {
        "none": ("no_caption", "no caption"),
        "blank": ("no_caption", "no caption"),
        "one": ("short_caption", "a caption of 1 words, 3 are wanted"),
        "two": ("short_caption", "a caption of 2 words, 3 are wanted"),
        "letters": ("short_caption", "a caption of 5 letters, 6 are wanted"),
        "good": (None, None),
    }
    lax = pipeline([*SOURCES, CaptionFilterStage(min_words=1, min_letters=0)], input=tmp_path / "a.tar")
    assert [key for key, status in statuses(lax).items() if status == "dropped"] == ["none", "blank"]
    assert lax.run["work"] == NOTHING
    assert len(pipeline([*SOURCES, CaptionFilterStage(min_words=0, min_letters=0)], input=tmp_path / "a.tar")) == 6


def test_words_are_counted_in_scripts_without_blanks_too():
    """Each sign is a word there, so that no language is dropped as a whole; letters are signs, not bytes."""
    captions = np.array(["ein Bär läuft", "一只红色的猫", "赤い car です", "no\u00a0break here", "", None], object)
    words, letters = counts_of(captions)
    assert words.tolist() == [3, 6, 5, 3, 0, 0]
    assert letters.tolist() == [13, 6, 9, 13, 0, 0]


@pytest.fixture
def listed(tmp_path):
    """A shard of five samples, and the hashes of their images."""
    members = make_samples(5)
    make_shard(tmp_path / "a.tar", members)
    return [hashlib.sha256(members[f"{n:06d}.jpg"]).hexdigest() for n in range(5)]


@pytest.mark.parametrize("form", ["text", "sha256sum", "csv", "parquet", "folder", "output"])
def test_listed_images_are_dropped_whatever_form_the_list_has(pipeline, tmp_path, listed, form):
    """One hash in each line, as sha256sum prints it, a column of a table, or another run's ledger."""
    table = pa.table({"name": ["x", "y", "z"], "sha256": [listed[1], None, listed[3].upper()]})
    path = tmp_path / {"text": "bad.txt", "sha256sum": "SUMS", "csv": "bad.csv", "parquet": "bad.parquet"}.get(form, form)
    if form == "text":
        path.write_text(f"\ufeff# what must not be in it\n{listed[1]}\r\n\n{listed[3].upper()}  # asked for\n")
    elif form == "sha256sum":
        path.write_text(f"{listed[1]}  one.jpg\n{listed[3]} *two.jpg\n")
    elif form == "csv":
        pa_csv.write_csv(table, path)
    elif form == "parquet":
        pq.write_table(table, path)
    else:
        folder = path if form == "folder" else path / "ledger"
        folder.mkdir(parents=True)
        pq.write_table(table.rename_columns(["name", "content_hash"]).slice(0, 1), folder / "part-000.parquet")
        pq.write_table(table.rename_columns(["name", "content_hash"]).slice(2), folder / "part-001.parquet")
    result = pipeline([*SOURCES, BlocklistFilterStage(file=str(path))], input=tmp_path / "a.tar")
    dropped = {key: (row["cause"], row["reason"]) for key, row in by_key(result).items() if row["status"] == "dropped"}
    assert dropped == dict.fromkeys(("000001", "000003"), ("blocked", f"its content hash is listed in {path}"))
    assert result.run["remarks"] == [f"blocklist: {path} lists 2 hashes, and 2 of 5 images had one of them"]


def test_a_list_without_a_hash_says_that_it_has_none(pipeline, tmp_path, listed):
    """Nobody is on it, and it may have been meant to be filled."""
    path = tmp_path / "bad.txt"
    path.write_text("# nothing\n")
    result = pipeline([*SOURCES, BlocklistFilterStage(file=str(path))], input=tmp_path / "a.tar")
    assert result.run["remarks"] == [f"blocklist: {path} lists 0 hashes, and 0 of 5 images had one of them"]


def test_another_list_under_the_same_name_decides_again_and_measures_nothing(pipeline, tmp_path, listed):
    """What stands in the file counts, not its path: a changed one is seen, a moved one changes nothing."""
    (tmp_path / "bad.txt").write_text(listed[0])
    stages = [*SOURCES, BlocklistFilterStage(file=str(tmp_path / "bad.txt"))]
    first = pipeline(stages, input=tmp_path / "a.tar")
    assert [key for key, status in statuses(first).items() if status == "dropped"] == ["000000"]
    assert first.run["decided_from"] == {"blocklist": [hashlib.sha256(listed[0].encode()).hexdigest()]}
    assert pipeline(stages, input=tmp_path / "a.tar").unchanged
    (tmp_path / "bad.txt").write_text(listed[4])
    second = pipeline(stages, input=tmp_path / "a.tar")
    assert [key for key, status in statuses(second).items() if status == "dropped"] == ["000004"]
    assert second.run["work"] == NOTHING
    (tmp_path / "bad.txt").rename(tmp_path / "moved.txt")
    moved = [*SOURCES, BlocklistFilterStage(file=str(tmp_path / "moved.txt"))]
    assert pipeline(moved, input=tmp_path / "a.tar").unchanged


@pytest.mark.parametrize(
    ("name", "content", "column", "expected"),
    [
        (None, "", None, r"blocklist.file: must be given: a file of SHA-256 hashes"),
        ("gone.txt", None, None, r"blocklist.file: there is no .*gone.txt"),
        ("bad.txt", "abc\nabc\n", None, r"holds 2 entries that are no SHA-256 \(64 hex digits\), such as 'abc'"),
        ("bad.csv", "name,content_hsh\nx,y\n", None, r"no column content_hash or sha256 or hash. It has name, content_hsh. Say which"),
        ("bad.csv", "name,digest\nx,y\n", "digset", r"no column digset. It has name, digest. Did you mean digest\?"),
        ("bad.parquet", "no parquet", None, r"bad.parquet cannot be read: "),
        ("x.jpg", "\udcff\udcd8", None, r"blocklist.file: .*x.jpg is no text. A list is text with a hash in each line"),
        (".", None, None, r"is a folder without Parquet in it. Name a file of hashes, the output of a run"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_used_is_said_before_any_work(pipeline, tmp_path, listed, name, content, column, expected):
    """What is wrong, in which file, and what is there instead."""
    if name and content is not None:
        (tmp_path / name).write_text(content, errors="surrogateescape")
    stage = BlocklistFilterStage(file=name and str(tmp_path / name), column=column)
    with pytest.raises(ConfigError, match=expected):
        pipeline([*SOURCES, stage], input=tmp_path / "a.tar")
    assert not (tmp_path / "store").exists()


def test_all_mistakes_of_a_command_come_at_once(curate, tmp_path):
    """A list that is not there, a limit that cannot be, and a stage without its question."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    ran = curate("stages=[partition,read,resolution,blocklist,write]", "input=a.tar", "output=out",
                 "blocklist.file=~/no such list.txt", "resolution.max_aspect=0.5", "resolution.min_sid=3")  # fmt: skip
    assert ran.code == 2
    assert "blocklist.file: there is no ~/no such list.txt" in ran.err
    assert "resolution.max_aspect: must be at least 1" in ran.err
    assert "resolution.min_sid: no such setting. Did you mean min_side?" in ran.err


def test_the_command_sweeps_over_lists_and_limits(curate, tmp_path, listed):
    """Each list is a job; only the first measures."""
    for name, n in (("one.txt", 1), ("three.txt", 3)):
        (tmp_path / name).write_text("\n".join(listed[:n]))
    ran = curate("-m", "stages=[partition,read,blocklist,write]", "input=a.tar", "output=sweep", "blocklist.file=one.txt,three.txt")
    assert ran.code == 0, ran.said
    runs = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/run.json"))]
    assert sorted(run["counts"]["kept"] for run in runs) == [2, 4]
    assert sorted(run["work"]["decoded"] for run in runs) == [0, 5]
