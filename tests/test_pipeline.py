"""Measure, decide, write from end to end: nothing is lost, nothing is measured twice, samples leave as they came."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curator import (
    FilePartitioningStage,
    ImageReaderStage,
    ImageWriterStage,
    Pipeline,
    SemanticDeduplicationStage,
    address,
)
from curator.errors import ConfigError, InputChanged, TooManyFailed
from curator.store import Store, vectors_of
from curator.voice import Voice
from tests.conftest import ROOT, make_image, make_samples, make_shard, shared, tar_members, tree
from tests.stages import Brightness, First, Poison, Tiny

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def solid(colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()


def test_every_member_leaves_with_its_original_bytes_under_its_own_name(pipeline, tmp_path):
    """All 480 real photos with their captions, classes and json, against what tarfile reads of the input."""
    photos = sorted(shared("data/photos").glob("*.tar"))
    result = pipeline([*SOURCES, ImageWriterStage(samples_per_shard=100)], input=[str(p) for p in photos])
    assert result.counts["kept"] == 480
    written = sorted((tmp_path / "out/shards").glob("*.tar"))
    assert len(written) == 5
    assert tar_members(*written) == tar_members(*photos)


def test_inputs_are_kept_dropped_or_failed_and_each_row_says_why(pipeline, tmp_path):
    """The sum holds, and a row names the stage that decided, a code and a sentence."""
    members = {**make_samples(6), "bad.jpg": make_image(99)[:300], "none.txt": b"no picture"}
    make_shard(tmp_path / "a.tar", members)
    result = pipeline([*SOURCES, Brightness(score_threshold=0.5), ImageWriterStage()], input=tmp_path / "a.tar")
    counts = result.counts
    assert counts["inputs"] == 8 == counts["kept"] + counts["dropped"] + counts["failed"]
    rows = {row["key"]: row for row in result.ledger.to_pylist()}
    assert (rows["bad"]["status"], rows["bad"]["stage"], rows["bad"]["cause"]) == ("failed", "read", "truncated")
    assert (rows["none"]["status"], rows["none"]["cause"]) == ("failed", "no_image")
    for row in rows.values():
        if row["status"] == "dropped":
            assert row["stage"] == "brightness"
            assert row["cause"] == "below_threshold"
            assert row["reason"] == f"{row['brightness']:.2f} < 0.50"
        if row["status"] == "kept":
            assert row["output_shard"] == "00000.tar"
    assert counts["by_stage"]["read"] == {"dropped": 0, "failed": 2}


def test_another_threshold_decodes_and_embeds_nothing_and_imports_no_torch(tmp_path):
    """A re-decide takes seconds: run.json counts the work, and torch stays out of the process."""
    make_shard(tmp_path / "a.tar", make_samples(20))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from curator import Pipeline, SemanticDeduplicationStage\n"
        "from tests.stages import Brightness, Tiny\n"
        "if __name__ == '__main__':\n"
        "    stages = [Tiny(), Brightness(score_threshold=float(sys.argv[1])), SemanticDeduplicationStage()]\n"
        "    result = Pipeline('x', stages).run(input='a.tar', output='out')\n"
        "    print(len(result), 'torch' in sys.modules, 'distributed' in sys.modules)\n"
    )
    told = []
    for threshold in ("0.1", "0.55"):
        done = subprocess.run(
            [sys.executable, script, threshold], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        told.append(done.stdout.split()[-3:])
        work = json.loads((tmp_path / "out/run.json").read_text())["work"]
    assert int(told[0][0]) > int(told[1][0])
    assert told[1][1:] == ["False", "False"]
    assert work == {"decoded": 0, "embedded": 0, "scored": 0, "paired": 0}


def test_a_finished_run_with_nothing_changed_does_nothing(pipeline, tmp_path):
    """The output's files are not even touched."""
    make_shard(tmp_path / "a.tar", make_samples(5))
    stages = [*SOURCES, Brightness(), ImageWriterStage()]
    pipeline(stages, input=tmp_path / "a.tar")
    before = (tmp_path / "out/run.json").stat()
    again = pipeline(stages, input=tmp_path / "a.tar")
    assert again.unchanged
    assert (tmp_path / "out/run.json").stat().st_mtime_ns == before.st_mtime_ns
    assert len(again) == 5


@pytest.mark.parametrize("part", ["shards/00000.tar", "ledger/00000.parquet", "run.json"])
def test_a_finished_output_whose_files_were_cut_short_is_made_again(pipeline, tmp_path, part):
    """Nothing to do would be a lie; what was measured serves."""
    make_shard(tmp_path / "a.tar", make_samples(5))
    stages = [*SOURCES, Brightness(), ImageWriterStage()]
    pipeline(stages, input=tmp_path / "a.tar")
    before = tree(tmp_path / "out", "shards", "ledger")
    os.truncate(tmp_path / "out" / part, 100)
    again = pipeline(stages, input=tmp_path / "a.tar", overwrite=True)
    assert not again.unchanged
    assert again.run["work"]["decoded"] == 0
    assert tree(tmp_path / "out", "shards", "ledger") == before


def test_the_log_holds_the_tables_and_the_last_lines(pipeline, tmp_path):
    """Who looks a week later sees what was shown: sums, causes, what was passed over."""
    (tmp_path / "in/elsewhere").mkdir(parents=True)
    for n in range(3):
        (tmp_path / f"in/{n}.jpg").write_bytes(make_image(n))
    (tmp_path / "in/bad.jpg").write_bytes(make_image(9)[:300])
    (tmp_path / "in/notes.md").write_text("no image")
    (tmp_path / "in/linked").symlink_to(tmp_path / "in/elsewhere")
    pipeline([*SOURCES, Brightness(), ImageWriterStage()], input=tmp_path / "in")
    log = (tmp_path / "out/curator.log").read_text()
    for line in ("stage", "4 in = 3 kept + 0 dropped + 1 failed", "failed: truncated 1", "passed over: 2 ("):
        assert line in log


def test_a_class_in_place_of_a_stage_is_told(tmp_path):
    """`Pipeline(stages=[Brightness])`: the brackets were forgotten."""
    with pytest.raises(ConfigError, match=r"Brightness is no stage; an instance is one, such as Brightness\(\)"):
        Pipeline("p", [Brightness]).run(input="a.tar", output=tmp_path / "out")  # type: ignore[list-item]


def test_partitioning_batches_and_workers_change_no_byte(pipeline, tmp_path):
    """Other groups, other batch sizes, another store, another order of files per task: the same ledger and shards."""
    for n in range(5):
        make_shard(tmp_path / f"in/{n}.tar", make_samples(7, start=7 * n))
    trees = []
    for number, (files, batch) in enumerate([(1, 8), (2, 8), (5, 8)]):
        stages = [
            FilePartitioningStage(files_per_partition=files),
            ImageReaderStage(),
            Tiny(model_inference_batch_size=batch),
            Brightness(score_threshold=0.45, model_inference_batch_size=batch + number),
            SemanticDeduplicationStage(block_rows=16 + number),
            ImageWriterStage(samples_per_shard=4),
        ]
        out = tmp_path / f"out{number}"
        pipeline(stages, input=tmp_path / "in", output=out, store=tmp_path / f"store{number}")
        trees.append(tree(out, "shards", "ledger"))
    assert trees[0] == trees[1] == trees[2]


def test_moving_the_input_or_changing_speeds_measures_nothing_again(pipeline, tmp_path):
    """CASES 24 (huggingface/datasets #2496): the address is made of content, not of paths."""
    make_shard(tmp_path / "in/a.tar", make_samples(6))
    stages = [*SOURCES, Tiny(), Brightness()]
    first = pipeline(stages, input=tmp_path / "in")
    os.rename(tmp_path / "in", tmp_path / "elsewhere")
    stages = [
        FilePartitioningStage(files_per_partition=1),
        ImageReaderStage(),
        Tiny(model_inference_batch_size=3),
        Brightness(),
    ]
    second = pipeline(stages, input=tmp_path / "elsewhere", output=tmp_path / "out2")
    assert first.run["work"]["decoded"] == 6
    assert second.run["work"] == {"decoded": 0, "embedded": 0, "scored": 0, "paired": 0}
    assert second.ledger.column("brightness").equals(first.ledger.column("brightness"))


def test_appending_to_a_tar_leaves_the_earlier_pieces_as_they_were(pipeline, tmp_path):
    """A piece is 1,024 samples of one shard, cut by the shard alone."""
    make_shard(tmp_path / "a.tar", {f"{n:05d}.png": solid((n % 256, 9, 9)) for n in range(1100)})
    assert pipeline([*SOURCES, Brightness()], input=tmp_path / "a.tar").run["work"]["decoded"] == 1100
    make_shard(tmp_path / "a.tar", {f"{n:05d}.png": solid((n % 256, 9, 9)) for n in range(1110)})
    assert pipeline([*SOURCES, Brightness()], input=tmp_path / "a.tar").run["work"]["decoded"] == 1110 - 1024


def test_one_new_image_in_a_folder_measures_hundreds_and_not_thousands(pipeline, tmp_path):
    """A folder's pieces are cut by content as well, so that what follows a new file keeps its borders."""
    (tmp_path / "in").mkdir()
    for n in range(2500):
        (tmp_path / f"in/{n:05d}.png").write_bytes(solid((n % 256, n // 256, 0)))
    assert pipeline([*SOURCES, Brightness()], input=tmp_path / "in").run["work"]["decoded"] == 2500
    (tmp_path / "in/00000b.png").write_bytes(solid((1, 2, 3)))
    assert pipeline([*SOURCES, Brightness()], input=tmp_path / "in").run["work"]["decoded"] < 1100


def test_a_failed_share_above_max_failed_writes_nothing_and_keeps_what_was_measured(pipeline, tmp_path):
    """Exit 3: the old output stays, and the next run with a higher limit decodes nothing."""
    make_shard(tmp_path / "a.tar", {**make_samples(3), "x.jpg": b""})
    stages = [*SOURCES, ImageWriterStage()]
    with pytest.raises(TooManyFailed, match="1 of 4 inputs failed"):
        pipeline(stages, input=tmp_path / "a.tar", max_failed=0.1)
    assert not (tmp_path / "out").exists()
    assert pipeline(stages, input=tmp_path / "a.tar").run["work"]["decoded"] == 0


def test_a_file_swapped_under_the_same_size_and_time_is_noticed_when_written(pipeline, tmp_path):
    """CASES 23: by default the writer sees it and nothing is replaced; the next run measures it; `content` sees it at once."""
    path = make_shard(tmp_path / "a.tar", {"x.png": solid((10, 10, 10))})
    stages = [*SOURCES, Brightness(), ImageWriterStage()]
    first = pipeline(stages, input=path)
    times = path.stat()
    make_shard(path, {"x.png": solid((200, 10, 10))[: len(solid((10, 10, 10)))]})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    with pytest.raises(InputChanged, match="not the image that was measured"):
        pipeline([*SOURCES, Brightness(score_threshold=0.01), ImageWriterStage()], input=path)
    assert json.loads((tmp_path / "out/run.json").read_text())["identity"] == first.run["identity"]
    second = pipeline([*SOURCES, Brightness(score_threshold=0.01), ImageWriterStage()], input=path)
    assert second.run["work"]["decoded"] == 1
    third = pipeline(stages, input=path, fingerprint="content", output=tmp_path / "out2")
    assert third.run["work"]["decoded"] == 0


def test_poison_images_cost_one_row_each_and_open_rows_are_tried_again(pipeline, tmp_path):
    """A decoder's death names its image; neighbours are unharmed; the next run, also over a finished output, retries."""
    colours = {
        "crash": (255, 0, 0),
        "stop": (0, 255, 0),
        "memory": (0, 0, 255),
        "exit": (255, 255, 0),
        "raise": (255,) * 3,
    }
    members = {f"{n:03d}.png": solid((n, 80, 90)) for n in range(40)} | {
        f"{n}.png": solid(c) for n, c in colours.items()
    }
    make_shard(tmp_path / "a.tar", members)
    stages = [FilePartitioningStage(), ImageReaderStage(decode_timeout_s=1.0), Poison(), ImageWriterStage()]
    result = pipeline(stages, input=tmp_path / "a.tar")
    failed = {row["key"]: row["cause"] for row in result.ledger.to_pylist() if row["status"] == "failed"}
    assert failed == {
        "crash": "decoder_crashed", "stop": "decoder_timeout", "memory": "decoder_out_of_memory",
        "exit": "decoder_crashed", "raise": "stage_error",
    }  # fmt: skip
    again = pipeline(stages, input=tmp_path / "a.tar")
    assert not again.unchanged
    assert again.run["work"]["decoded"] == 4
    assert again.counts == result.counts


def test_a_score_that_is_not_finite_is_a_failed_row(pipeline, tmp_path):
    """NaN is neither below a threshold nor above it: without this rule it would be neither kept nor dropped."""
    make_shard(tmp_path / "a.tar", make_samples(12))
    result = pipeline([*SOURCES, Tiny(), First(poison=True)], input=tmp_path / "a.tar")
    causes = result.ledger.column("cause").to_pylist()
    assert set(causes) == {None, "score_not_finite"}
    assert result.counts["kept"] + result.counts["failed"] == 12


def test_flagged_rows_stay_kept_and_say_who_would_have_dropped_them(pipeline, tmp_path):
    """action=flag."""
    make_shard(tmp_path / "a.tar", make_samples(8))
    result = pipeline([*SOURCES, Brightness(score_threshold=0.5, action="flag")], input=tmp_path / "a.tar")
    assert result.counts["kept"] == 8
    flags = result.ledger.column("flags").to_pylist()
    assert any(flag.startswith("brightness: 0.") for flag in flags)
    assert "" in flags


def test_a_damaged_object_is_set_aside_and_measured_again(pipeline, tmp_path):
    """One flipped bit in each object of the store, in turn: the same ledger, and the run says what it found."""
    make_shard(tmp_path / "a.tar", make_samples(6))
    stages = [*SOURCES, Tiny(), First(), SemanticDeduplicationStage(), ImageWriterStage()]
    pipeline(stages, input=tmp_path / "a.tar")
    truth = tree(tmp_path / "out", "shards", "ledger")
    objects = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and not p.name.startswith((".", "FORMAT"))]
    assert {p.parent.parent.name for p in objects} >= {"read", "tiny", "first", "gathered", "dedup"}
    told = 0
    for path in objects:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        shutil.rmtree(tmp_path / "out")
        result = pipeline(stages, input=tmp_path / "a.tar")
        assert tree(tmp_path / "out", "shards", "ledger") == truth, path
        log = (tmp_path / "out/curator.log").read_text()
        if not path.exists() or path.read_bytes() != content:  # what a run has no need of it does not look at
            told += 1
            assert str(path) in result.run["damaged_objects"]
            assert f"damaged, now in {tmp_path / 'store'}/damaged; what they held is measured again" in log
    assert told >= 3


def test_duplicates_name_the_image_that_is_kept_for_them(pipeline, tmp_path):
    """CASES 15: equal names in other folders stay apart, and a row points at its representative without doubt."""
    pictures = {"a/x.png": solid((9, 9, 9)), "b/x.png": make_image(5), "c/x.png": solid((9, 9, 9))}
    for name, content in pictures.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(content)
    result = pipeline([*SOURCES, Tiny(), SemanticDeduplicationStage()], input=tmp_path / "in")
    rows = {row["key"]: row for row in result.ledger.to_pylist()}
    assert [k for k, row in rows.items() if row["status"] == "dropped"] == ["c/x"]
    dropped = rows["c/x"]
    assert (dropped["duplicate_of_shard"], dropped["duplicate_of_key"]) == (str(tmp_path / "in"), "a/x")
    assert dropped["reason"] == f"near-duplicate 1.000 of {tmp_path / 'in'}/a/x"
    assert rows["a/x"]["duplicate_group"] == dropped["duplicate_group"] == 0
    assert rows["b/x"]["duplicate_group"] is None


def test_new_images_are_compared_with_all_and_old_ones_not_again(pipeline, tmp_path):
    """A collection that grows by a shard: `paired` counts the new images, and the result is that of a fresh run."""
    for n in range(3):
        make_shard(tmp_path / f"{n}.tar", make_samples(40, 30 * n))  # ten of each again in the next
    stages = [*SOURCES, Tiny(), SemanticDeduplicationStage(), ImageWriterStage()]
    inputs = [str(tmp_path / f"{n}.tar") for n in range(3)]
    pipeline(stages, input=inputs[:2])
    grown = pipeline(stages, input=inputs, output=tmp_path / "grown")
    fresh = pipeline(stages, input=inputs, output=tmp_path / "fresh", store=tmp_path / "other")
    assert (grown.run["work"]["paired"], fresh.run["work"]["paired"]) == (40, 120)
    assert grown.ledger.equals(fresh.ledger)
    assert grown.counts["by_stage"]["dedup"]["dropped"] == 20


def test_what_was_kept_before_is_never_displaced_and_nothing_of_it_embedded_again(pipeline, tmp_path):
    """`against` an earlier output: its images stay where they are, new ones that resemble them go and name them."""
    make_shard(tmp_path / "old.tar", make_samples(40))
    make_shard(tmp_path / "new.tar", make_samples(40, 30))  # ten of them were there before
    first = [*SOURCES, Tiny(), First(), SemanticDeduplicationStage(), ImageWriterStage()]
    old = pipeline(first, input=tmp_path / "old.tar", output=tmp_path / "old")
    lost = {row["key"] for row in old.ledger.to_pylist() if row["status"] != "kept"}  # `First` drops some of the old
    stages = [*SOURCES, Tiny(), SemanticDeduplicationStage(against=str(tmp_path / "old")), ImageWriterStage()]
    new = pipeline(stages, input=tmp_path / "new.tar", output=tmp_path / "new")
    rows = {row["key"]: row for row in new.ledger.to_pylist()}
    gone = {key for key, row in rows.items() if row["status"] == "dropped"}
    assert gone == {f"{n:06d}" for n in range(30, 40)} - lost
    for key in gone:
        assert (rows[key]["duplicate_of_shard"], rows[key]["duplicate_of_key"]) == (str(tmp_path / "old.tar"), key)
        assert rows[key]["reason"].endswith(f"of {tmp_path}/old.tar/{key}, kept before")
        assert rows[key]["duplicate_group"] is None
    assert new.run["work"]["embedded"] == 40
    assert tree(tmp_path / "old")  # untouched
    again = pipeline(stages, input=tmp_path / "new.tar", output=tmp_path / "again")
    assert again.run["work"]["paired"] == 0
    assert again.ledger.equals(new.ledger)


def test_against_a_folder_of_vectors_such_as_an_evaluation_sets(pipeline, tmp_path):
    """`.npy` files; and what is neither is a mistake of the config, found before any work."""
    make_shard(tmp_path / "a.tar", make_samples(6))
    first = pipeline([*SOURCES, Tiny(), ImageWriterStage()], input=tmp_path / "a.tar", output=tmp_path / "first")
    content = first.run["inputs"][0]["contents"][0]
    stored = Store(tmp_path / "store").get("tiny", address.measurement(first.run["keys"]["tiny"], content))
    (tmp_path / "test_set").mkdir()
    np.save(tmp_path / "test_set/emb.npy", vectors_of(stored.table)[0][[1, 4]])
    stages = [*SOURCES, Tiny(), SemanticDeduplicationStage(against=(str(tmp_path / "test_set"),)), ImageWriterStage()]
    ledger = pipeline(stages, input=tmp_path / "a.tar").ledger.to_pylist()
    assert [row["duplicate_of_key"] for row in ledger] == [None, "000000000", None, None, "000000001", None]
    wrong = SemanticDeduplicationStage(against=str(tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"dedup\.against: .* has no other vectors"):
        pipeline([*SOURCES, Tiny(), wrong], input=tmp_path / "a.tar", output=tmp_path / "x")


def test_a_lower_floor_serves_a_higher_one(pipeline, tmp_path):
    """Pairs are stored once: another floor above it finds nothing again."""
    make_shard(tmp_path / "a.tar", make_samples(10))
    stages = [*SOURCES, Tiny()]
    low = SemanticDeduplicationStage(similarity_floor=0.5, similarity_threshold=0.9)
    assert pipeline([*stages, low], input=tmp_path / "a.tar").run["work"]["paired"] == 10
    high = SemanticDeduplicationStage(similarity_floor=0.8, similarity_threshold=0.9)
    assert pipeline([*stages, high], input=tmp_path / "a.tar", output=tmp_path / "o2").run["work"]["paired"] == 0


def test_the_beside_files_are_what_img2dataset_writes(pipeline, tmp_path):
    """A parquet row per sample joined by key, stats without times, no other json."""
    make_shard(tmp_path / "a.tar", make_samples(5))
    pipeline([*SOURCES, Brightness(), ImageWriterStage(samples_per_shard=3)], input=tmp_path / "a.tar")
    shards = tmp_path / "out/shards"
    assert sorted(p.name for p in shards.iterdir()) == [
        "00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet", "00001.tar", "00001_stats.json",
    ]  # fmt: skip
    table = pq.read_table(shards / "00001.parquet").to_pylist()
    assert [row["key"] for row in table] == ["000003", "000004"]
    assert table[0]["status"] == "success"
    assert table[0]["caption"] == "picture 3"
    assert (table[0]["width"], table[0]["height"], table[0]["in_key"]) == (64, 48, "000003")
    assert 0 < table[0]["brightness"] < 1
    stats = json.loads((shards / "00001_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (2, 2)


def test_a_pipeline_without_sources_gets_them_and_says_so(tmp_path, cluster):
    """As NeMo Curator's scripts are written: only the stages of interest."""
    make_shard(tmp_path / "a.tar", make_samples(2))
    voice = Voice(quiet=True)
    pipeline = Pipeline("x").add_stage(Brightness())
    settings = {"input": tmp_path / "a.tar", "output": tmp_path / "out", "store": tmp_path / "st"}
    assert len(pipeline.run(started=lambda _: cluster, voice=voice, **settings)) == 2
    assert any("added the stages that were not named: partition, read, write" in line for line in voice.lines)
    assert (tmp_path / "out/shards/00000.tar").exists()
