"""What a task makes of its pieces: every image comes to every stage before the piece is stored."""

from __future__ import annotations

from curator import EmbeddingWriterStage, FilePartitioningStage, ImageReaderStage
from tests.conftest import make_image, make_shard
from tests.stages import Brightness, Tiny


def test_a_batch_that_runs_full_between_two_stages_loses_no_image_of_the_second(pipeline, tmp_path):
    """One image in each tar: at every eighth the first stage's batch is full before the second has been given it."""
    for n in range(40):
        make_shard(tmp_path / f"in/{n:02d}.tar", {f"{n:02d}.jpg": make_image(n)})
    stages = [FilePartitioningStage(), ImageReaderStage(), Brightness(), Tiny(), EmbeddingWriterStage()]
    result = pipeline(stages, input=tmp_path / "in")
    assert (len(result), result.run["write"]["embeddings"]["rows"]) == (40, 40)
