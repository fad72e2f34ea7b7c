"""exact: equal images by their bytes or their pixels; one of each group stays, and nothing is measured for bytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curator import (
    Choice,
    ExactDeduplicationStage,
    FilePartitioningStage,
    ImageReaderStage,
    ImageWriterStage,
    SemanticDeduplicationStage,
)
from curator.errors import ConfigError, CuratorError
from curator.wiring import wire
from tests.conftest import ROOT, make_image, make_samples, make_shard, run_command, shared, tar_members, tree
from tests.odd_files import SAVED, base, encoded
from tests.stages import Brightness, OneOfEachFormat, Tiny, Words

SOURCES = (FilePartitioningStage(), ImageReaderStage())
PIXELS = ExactDeduplicationStage(by="pixels")
NOTHING = {"decoded": 0, "embedded": 0, "scored": 0, "paired": 0}


def by_key(result):
    """Ledger rows by key."""
    return {row["key"]: row for row in result.ledger.to_pylist()}


def statuses(result):
    """Status by key."""
    return {key: row["status"] for key, row in by_key(result).items()}


def pairs_of(rows):
    """Each dropped key with the key that stays for it."""
    return {(row["key"], row["duplicate_of_key"]) for row in rows if row["status"] == "dropped"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """480 real photos through the command, and the copies among them that the data's own list names."""
    source = shared("data/photos")
    place = tmp_path_factory.mktemp("exact")
    ran = exactly(place, source)
    assert ran.code == 0, ran.said
    groups: dict[str, list[str]] = {}
    for line in (source / "exact_duplicates.csv").read_text().splitlines()[1:]:
        key, group = line.split(",")
        groups.setdefault(group, []).append(key)
    assert len(groups) == 5
    return place, source, {(second, first) for first, second in map(sorted, groups.values())}


def exactly(place, source, *more, output="out"):
    """The command, as the README has it."""
    stages = "stages=[partition,read,exact,write]"
    return run_command(stages, f"input={source}/*.tar", f"output={output}", *more, cwd=place)


@pytest.mark.xdist_group("exact")
def test_the_equal_photos_are_found_and_no_others(photos):
    """Five pairs among 480, across shards: the first of each stays, as nothing else tells them apart."""
    place, _, pairs = photos
    ledger = pq.read_table(place / "out/ledger").to_pylist()
    assert pairs_of(ledger) == pairs
    rows = {row["key"]: row for row in ledger}
    for dropped, stays in pairs:
        row = rows[dropped]
        assert (row["stage"], row["cause"], row["duplicate_similarity"]) == ("exact", "exact_duplicate", 1.0)
        assert row["reason"] == f"same bytes as {rows[stays]['shard']}/{stays}"
        assert rows[stays]["duplicate_group"] == row["duplicate_group"] is not None
    run = json.loads((place / "out/run.json").read_text())
    assert run["stages"]["exact"] == {"in": 480, "kept": 475, "dropped": 5, "failed": 0, "flagged": 0}
    assert run["work"] == {**NOTHING, "decoded": 480}
    written = tar_members(*(place / "out/shards").glob("*.tar"))
    assert {name.split(".")[0] for name in written} == set(rows) - {dropped for dropped, _ in pairs}


@pytest.mark.xdist_group("exact")
def test_another_policy_decodes_nothing(photos):
    """Who stays is decided from what is stored, with no worker."""
    place, source, pairs = photos
    ran = exactly(place, source, "exact.keep=[bytes asc,first]", output="again")
    assert ran.code == 0, ran.said
    run = json.loads((place / "again/run.json").read_text())
    assert run["work"] == NOTHING
    assert run["cluster"]["kind"] == "none"
    assert pairs_of(pq.read_table(place / "again/ledger").to_pylist()) == pairs


@pytest.mark.xdist_group("exact")
def test_photos_with_the_same_bytes_have_the_same_pixels_and_no_others_do(photos):
    """The same five pairs, and a hash of the pixels for every row of the ledger."""
    place, source, pairs = photos
    ran = exactly(place, source, "exact.by=pixels", output="pixels")
    assert ran.code == 0, ran.said
    assert "decoded 480, embedded 0, scored 0, hashed 480, compared 0" in " ".join(ran.said.split())
    ledger = pq.read_table(place / "pixels/ledger").to_pylist()
    assert pairs_of(ledger) == pairs
    assert all(re.fullmatch("[0-9a-f]{64}", row["pixel_hash"]) for row in ledger)
    assert {row["reason"].split(" as ")[0] for row in ledger if row["status"] == "dropped"} == {"same pixels"}
    again = exactly(place, source, "exact.by=pixels", "exact.keep=[bytes asc]", output="pixels2")
    assert again.code == 0, again.said
    assert json.loads((place / "pixels2/run.json").read_text())["work"] == {**NOTHING, "hashed": 0}


def test_deciding_by_content_needs_no_torch(tmp_path):
    """Nothing heavy is imported where another policy is asked for."""
    make_shard(tmp_path / "a.tar", {**make_samples(4), "copy.jpg": make_image(2)})
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from curator import ExactDeduplicationStage, Pipeline\n"
        "if __name__ == '__main__':\n"
        "    stages = [ExactDeduplicationStage(keep=sys.argv[1:] or None)]\n"
        "    result = Pipeline('x', stages).run(input='a.tar', output='out', cluster='local')\n"
        "    print(len(result), 'torch' in sys.modules, 'distributed' in sys.modules)\n"
    )
    for keep in ([], ["first"]):
        command = [sys.executable, script, *keep]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        told = done.stdout.split()[-3:]
    assert told == ["4", "False", "False"]


def test_the_same_pixels_in_other_files_are_found_by_pixels_and_not_by_content(pipeline, tmp_path):
    """PNG, BMP, TIFF and lossless WebP of one picture; the JPEG of it has other pixels."""
    picture = base("RGB")
    forms = {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "jpg": "JPEG"}
    members = {f"{suffix}.{suffix}": encoded(picture, form) for suffix, form in forms.items()}
    members["webp.webp"] = encoded(picture, "WEBP", lossless=True)
    make_shard(tmp_path / "a.tar", members)
    alike = pipeline([*SOURCES, ExactDeduplicationStage()], input=tmp_path / "a.tar")
    assert alike.counts["kept"] == 5
    stages = [*SOURCES, ExactDeduplicationStage(by="pixels", keep=("first",))]
    result = pipeline(stages, input=tmp_path / "a.tar")
    assert [key for key, status in statuses(result).items() if status == "kept"] == ["png", "jpg"]
    assert by_key(result)["bmp"]["reason"] == f"same pixels as {tmp_path / 'a.tar'}/png"
    assert result.run["stages"]["exact"] == {"in": 5, "kept": 2, "dropped": 3, "failed": 0, "flagged": 0}


def test_other_metadata_makes_no_other_picture_unless_it_turns_it(pipeline, tmp_path):
    """A camera's name in EXIF changes nothing that is seen; an orientation does."""
    named, turned = Image.Exif(), Image.Exif()
    named[0x0110], turned[0x0112] = "Camera", 6
    members = {"a.jpg": make_image(1), "b.jpg": make_image(1, exif=named), "c.jpg": make_image(1, exif=turned)}
    assert len(set(members.values())) == 3
    make_shard(tmp_path / "a.tar", members)
    stages = [*SOURCES, ExactDeduplicationStage(by="pixels", keep=("first",))]
    assert statuses(pipeline(stages, input=tmp_path / "a.tar")) == {"a": "kept", "b": "dropped", "c": "kept"}


def test_as_pillow_opens_them_equal_numbers_in_other_palettes_are_other_pictures(pipeline, tmp_path):
    """`read.exact` hands palettes and transparent colours over as they lie; what they mean counts."""
    numbers = Image.fromarray((np.arange(64 * 64) % 2).astype(np.uint8).reshape(64, 64), "L")
    members = {}
    for key, colours in {"a": (0, 0, 0, 9, 9, 9), "b": (200, 0, 0, 9, 9, 9)}.items():
        palette = numbers.copy()
        palette.putpalette(colours)
        members[f"{key}.png"] = encoded(palette, "PNG")
        members[f"{key}_again.png"] = encoded(palette, "PNG", compress_level=1)
    members["c.png"] = encoded(base("RGB"), "PNG")
    members["d.png"] = encoded(base("RGB"), "PNG", transparency=base("RGB").getpixel((0, 0)))
    make_shard(tmp_path / "a.tar", members)
    stages = [FilePartitioningStage(), ImageReaderStage(exact=True), PIXELS]
    rows = by_key(pipeline(stages, input=tmp_path / "a.tar"))
    hashes = {key: row["pixel_hash"] for key, row in rows.items()}
    assert hashes["a"] == hashes["a_again"]
    assert hashes["b"] == hashes["b_again"]
    assert len(set(hashes.values())) == 4


@pytest.mark.parametrize("exact", [False, True])
def test_every_mode_of_every_format_has_a_hash(pipeline, tmp_path, exact):
    """Grey, 16 bit, floating, palettes, CMYK, LAB: none fails for it."""
    members = {
        f"{form}_{mode.replace(';', '')}.{suffix}": encoded(base(mode), form)
        for form, (suffix, modes) in SAVED.items()
        for mode in modes
    }
    make_shard(tmp_path / "a.tar", members)
    stages = [FilePartitioningStage(), ImageReaderStage(exact=exact), PIXELS]
    result = pipeline(stages, input=tmp_path / "a.tar")
    assert result.counts["failed"] == 0, [r["reason"] for r in by_key(result).values() if r["status"] == "failed"]


@pytest.mark.parametrize(("keep", "stays"), [(None, "b"), (("bytes asc",), "c"), (("first",), "a")])
def test_of_copies_in_three_shards_the_best_by_policy_stays(pipeline, tmp_path, keep, stays):
    """By default the largest file of one picture; the others name it, wherever they lie."""
    picture = base("RGB")
    files = {
        "a.png": encoded(picture, "PNG", compress_level=0),
        "b.bmp": encoded(picture, "BMP"),
        "c.png": encoded(picture, "PNG"),
    }
    files["b.bmp"] += bytes(5_000)  # behind the picture, where nothing is read
    for name, content in files.items():
        make_shard(tmp_path / f"{name[0]}.tar", {f"other{name[0]}.jpg": make_image(ord(name[0])), name: content})
    shards = [str(tmp_path / f"{key}.tar") for key in "abc"]
    stages = [*SOURCES, ExactDeduplicationStage(by="pixels", keep=keep), ImageWriterStage()]
    rows = by_key(pipeline(stages, input=shards))
    assert [key for key in "abc" if rows[key]["status"] == "kept"] == [stays]
    assert {rows[key]["duplicate_of_key"] for key in "abc" if key != stays} == {stays}
    assert all(rows[f"other{key}"]["duplicate_group"] is None for key in "abc")


def test_copies_with_the_same_bytes_are_ranked_by_what_else_is_known_of_them(pipeline, tmp_path):
    """A column of another stage, wherever that one is listed."""
    captions = {"a": "one", "b": "one two three", "c": "one two"}
    for key, caption in captions.items():
        make_shard(tmp_path / f"{key}.tar", {f"{key}.jpg": make_image(1), f"{key}.txt": caption.encode()})
    stages = [*SOURCES, ExactDeduplicationStage(keep=("words desc",)), Words()]
    result = pipeline(stages, input=[str(tmp_path / f"{key}.tar") for key in captions])
    assert statuses(result) == {"a": "dropped", "b": "kept", "c": "dropped"}


@pytest.mark.parametrize("by", ["content", "pixels"])
def test_where_a_filter_drops_the_first_copy_the_second_stays(pipeline, tmp_path, by):
    """It chooses after all filters, also those listed behind it; a copy of a dropped image is no duplicate."""
    members = {"a.jpg": make_image(1), "a.txt": b"one", "b.jpg": make_image(1), "b.txt": b"one two",
               "c.jpg": make_image(1), "c.txt": b"one two"}  # fmt: skip
    make_shard(tmp_path / "a.tar", members)
    exact = ExactDeduplicationStage(by=by)
    result = pipeline([*SOURCES, exact, Words(score_threshold=2)], input=tmp_path / "a.tar")
    rows = by_key(result)
    assert [(row["status"], row["stage"]) for row in rows.values()] == [
        ("dropped", "words"), ("kept", None), ("dropped", "exact")
    ]  # fmt: skip
    assert rows["c"]["duplicate_of_key"] == "b"
    seen = result.run["stages"]
    assert list(seen) == ["read", "words", "exact"]
    assert seen["exact"] == {"in": 2, "kept": 1, "dropped": 1, "failed": 0, "flagged": 0}


def test_what_only_would_have_been_dropped_is_flagged(pipeline, tmp_path):
    """action=flag keeps, and says so."""
    make_shard(tmp_path / "a.tar", {"a.jpg": make_image(1), "b.jpg": make_image(1)})
    result = pipeline([*SOURCES, ExactDeduplicationStage(action="flag")], input=tmp_path / "a.tar")
    rows = by_key(result)
    assert result.counts["kept"] == 2
    assert [row["flags"] for row in rows.values()] == ["", f"exact: same bytes as {tmp_path / 'a.tar'}/a"]
    assert rows["b"]["duplicate_of_key"] is None
    assert result.run["stages"]["exact"] == {"in": 2, "kept": 2, "dropped": 0, "failed": 0, "flagged": 1}


@pytest.mark.parametrize("by", ["content", "pixels"])
def test_before_dedup_its_rows_go_over_to_the_image_that_stays_in_the_end(pipeline, tmp_path, by):
    """A larger picture stays for two small copies: all name it, at the cosine that was measured, and stand in one group."""
    small, large = make_image(1, form="PNG"), make_image(1, size=(128, 96), form="PNG")
    make_shard(tmp_path / "a.tar", {"a.png": small, "other.png": make_image(2, form="PNG"), "b.png": small})
    make_shard(tmp_path / "b.tar", {"c.png": large})
    stages = [*SOURCES, Tiny(), ExactDeduplicationStage(by=by), SemanticDeduplicationStage(), ImageWriterStage()]
    result = pipeline(stages, input=[str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
    rows = by_key(result)
    assert {key: (row["status"], row["stage"]) for key, row in rows.items()} == {
        "a": ("dropped", "dedup"), "other": ("kept", None), "b": ("dropped", "exact"), "c": ("kept", None)
    }  # fmt: skip
    assert [rows[key]["duplicate_of_key"] for key in "ab"] == ["c", "c"]
    assert {rows[key]["duplicate_group"] for key in "abc"} == {3}
    assert 0.95 <= rows["a"]["duplicate_similarity"] == rows["b"]["duplicate_similarity"] < 1
    near = rows["a"]["reason"]
    assert near == f"near-duplicate {rows['a']['duplicate_similarity']:.3f} of {tmp_path / 'b.tar'}/c"
    what = {"content": "bytes", "pixels": "pixels"}[by]
    assert rows["b"]["reason"] == f"same {what} as {tmp_path / 'a.tar'}/a, {near}"
    assert list(result.run["stages"])[-2:] == ["exact", "dedup"]


def test_before_dedup_the_same_images_stay_as_with_dedup_alone(pipeline, tmp_path):
    """Copies have the same vectors: taking them out first changes who names whom, and not who stays."""
    members = {f"{n}_{copy}.jpg": make_image(n) for copy in "ab" for n in range(5)}
    make_shard(tmp_path / "a.tar", members)
    alone = pipeline([*SOURCES, Tiny(), SemanticDeduplicationStage()], input=tmp_path / "a.tar")
    stages = [*SOURCES, Tiny(), ExactDeduplicationStage(), SemanticDeduplicationStage()]
    assert statuses(pipeline(stages, input=tmp_path / "a.tar")) == statuses(alone)


def test_bad_images_fail_and_an_empty_input_is_none(pipeline, tmp_path):
    """A row without pixels is a failed row, not a copy of another one."""
    bad = make_image(9)[:300]
    make_shard(tmp_path / "a.tar", {"a.jpg": bad, "b.jpg": bad, "c.txt": b"", "d.jpg": make_image(1)})
    for stage in (ExactDeduplicationStage(), PIXELS):
        result = pipeline([*SOURCES, stage], input=tmp_path / "a.tar")
        assert list(statuses(result).values()) == ["failed", "failed", "failed", "kept"]
    make_shard(tmp_path / "bad.tar", {"a.jpg": bad})
    make_shard(tmp_path / "none.tar", {})
    for name in ("bad.tar", "none.tar"):
        assert len(pipeline([*SOURCES, PIXELS], input=tmp_path / name, output=tmp_path / name[:3])) == 0


def test_the_bytes_of_the_result_do_not_depend_on_partitions(pipeline, tmp_path):
    """The same shards and the same ledger, whichever pieces go together."""
    for key in "abc":
        make_shard(tmp_path / f"{key}.tar", {f"{key}{n}.jpg": make_image(n) for n in range(3)})
    shards = [str(tmp_path / f"{key}.tar") for key in "abc"]
    trees = []
    for files in (1, 3):
        sources = (FilePartitioningStage(files_per_partition=files), ImageReaderStage())
        place = tmp_path / f"out{files}"
        pipeline([*sources, PIXELS, ImageWriterStage()], input=shards, output=place, store=tmp_path / f"store{files}")
        trees.append(tree(place, "shards", "ledger"))
    assert trees[0] == trees[1]


def test_by_content_rests_on_no_pixels_and_another_policy_on_nothing_new():
    """What is measured depends on `by` alone; by content the stage measures nothing and gives no column."""

    def plan(**fields):
        return wire([*SOURCES, Brightness(), ExactDeduplicationStage(**fields)])

    assert [s.name for s in plan().images] == ["brightness"]
    assert "pixel_hash" not in plan().givers
    pixels = plan(by="pixels")
    assert [s.name for s in pixels.images] == ["brightness", "exact"]
    assert [s.name for s in pixels.collections] == ["exact"]
    assert plan(by="pixels", keep=("brightness desc",)).keys == pixels.keys


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("exact.by=hash", "exact.by: must be 'content' or 'pixels', not 'hash'"),
        ("exact.keep=[caption]", "keep: caption is text, which has no better and worse"),
        ("exact.keep=[bytes up]", "keep: 'bytes up' must end in asc or desc"),
        ("exact.keep=[hard]", "keep: hard ranks by distance to other images, which is the same for equal ones"),
        ("exact.keep=[aesthetic]", "exact: needs the column aesthetic_score"),
        ("exact.similarity_threshold=0.9", "exact.similarity_threshold: no such setting."),
    ],
)
def test_a_mistake_in_its_settings_is_one_line(curate, tmp_path, setting, expected):
    """Exit 2, before any work."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    ran = curate("stages=[partition,read,exact,write]", "input=a.tar", "output=out", setting)
    assert ran.code == 2, ran.said
    assert expected in ran.err
    assert len(ran.err.splitlines()) == 1


def test_what_is_text_ranks_nothing_also_where_that_shows_late(pipeline, tmp_path):
    """A column of another stage, whose kind only its values tell."""
    make_shard(tmp_path / "a.tar", {"a.jpg": make_image(1), "b.jpg": make_image(1)})
    stages = [*SOURCES, PIXELS, ExactDeduplicationStage(name="second", keep=("pixel_hash desc",))]
    with pytest.raises(ConfigError, match="keep: pixel_hash is text"):
        pipeline(stages, input=tmp_path / "a.tar")


def test_a_collection_may_choose_from_columns_alone(pipeline, tmp_path):
    """A stage of one's own with `choose` and no `find`: it gets the text that it asks for, and says why in its words."""
    picture = base("RGB")
    members = {"a.png": encoded(picture, "PNG"), "b.bmp": encoded(picture, "BMP"), "c.png": make_image(1, form="PNG")}
    make_shard(tmp_path / "a.tar", members)
    result = pipeline([*SOURCES, OneOfEachFormat()], input=tmp_path / "a.tar")
    rows = by_key(result)
    assert statuses(result) == {"a": "kept", "b": "kept", "c": "dropped"}
    assert (rows["c"]["cause"], rows["c"]["reason"]) == ("same_format", f"as 0.5 as {tmp_path / 'a.tar'}/a")


def test_a_collection_that_drops_a_row_for_one_that_goes_too_is_told_so(pipeline, tmp_path):
    """Else nobody would stay for either."""

    class Circle(OneOfEachFormat):
        """Each for the next."""

        version = 1

        def choose(self, rows, found, alive):
            """Nobody stays."""
            return Choice(np.roll(np.arange(len(alive)), -1), np.ones(len(alive)))

    make_shard(tmp_path / "a.tar", make_samples(3))
    with pytest.raises(CuratorError, match="choose drops rows for rows that do not stay"):
        pipeline([*SOURCES, Circle()], input=tmp_path / "a.tar")
