"""What a run says at its end, and on its way: the same lines are in curator.log."""

from __future__ import annotations

import io
import re

from PIL import Image

from curator import FilePartitioningStage, ImageReaderStage, ImageWriterStage, SemanticDeduplicationStage
from tests.conftest import make_samples, make_shard
from tests.stages import Brightness, Poison, Tiny

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def solid(colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()


def test_a_finished_run_that_is_replaced_is_named(pipeline, tmp_path):
    """Another input over the same output: one line says what went."""
    for name in ("a", "b"):
        make_shard(tmp_path / f"{name}.tar", make_samples(3))
        pipeline([*SOURCES, ImageWriterStage()], input=tmp_path / f"{name}.tar")
    told = f"{tmp_path / 'out'}: replaces the run of {tmp_path / 'a.tar'} (3 kept)"
    assert told in (tmp_path / "out/curator.log").read_text()


def test_failures_are_told_in_words_and_plainly_where_nothing_came_through(pipeline, tmp_path):
    """The causes' codes alone help nobody."""
    make_shard(tmp_path / "bad.tar", {"x.jpg": b"", "y.jpg": b"no image", "z.jpg": b""})
    pipeline(SOURCES, input=tmp_path / "bad.tar")
    log = (tmp_path / "out/curator.log").read_text()
    assert "failed: empty_file 2, not_an_image 1" in log
    assert "  empty_file: The file has no bytes." in log
    assert "all 3 inputs failed. With max_failed=0.5" in log


def test_where_every_decoder_dies_a_stage_of_ones_own_is_named_as_a_possible_cause(pipeline, tmp_path):
    """`os._exit` in prepare looks like a fault of the machine."""
    make_shard(tmp_path / "a.tar", {f"{n}.png": solid((255, 255, 0)) for n in range(3)})
    pipeline([*SOURCES, Poison()], input=tmp_path / "a.tar")
    assert "may be the doing of prepare in poison" in (tmp_path / "out/curator.log").read_text()


def test_a_filter_listed_behind_dedup_decides_before_it_and_the_run_says_so(pipeline, tmp_path):
    """DESIGN 3: else a representative could fall after its duplicates were dropped for it."""
    make_shard(tmp_path / "a.tar", make_samples(3))
    pipeline([*SOURCES, Tiny(), SemanticDeduplicationStage(), Brightness()], input=tmp_path / "a.tar")
    log = (tmp_path / "out/curator.log").read_text()
    assert "brightness, listed behind dedup, decides before it" in log


def test_a_damaged_shard_counts_in_the_table_as_in_the_sum(pipeline, tmp_path):
    """One input more for the shard as a whole, failed by reading."""
    path = make_shard(tmp_path / "a.tar", make_samples(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = pipeline(SOURCES, input=path)
    counts = result.counts
    log = (tmp_path / "out/curator.log").read_text()
    assert re.search(rf"read +{counts['inputs']} +{counts['kept']} +0 +{counts['failed']} ", log)
