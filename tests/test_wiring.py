"""Who is given what, by whom: every mistake of the whole, and what each measurement rests on."""

from __future__ import annotations

from typing import ClassVar

import pytest

from curator import (
    Column,
    Embedding,
    ExactDeduplicationStage,
    FilePartitioningStage,
    ImageReaderStage,
    ProcessingStage,
    SemanticDeduplicationStage,
    measures,
)
from curator.errors import ConfigError
from curator.wiring import wire
from tests.stages import Brightness, First, Tiny

SOURCES = (FilePartitioningStage(), ImageReaderStage())
PIXELS = ExactDeduplicationStage(by="pixels")


class Wordy(ProcessingStage):
    """A score of the caption."""

    version: ClassVar[int] = 1
    needs = (Column("caption"),)
    gives = ("words",)

    def measure(self, batch):
        """(B,) words."""


class Picky(ProcessingStage):
    """Knows one space only."""

    version: ClassVar[int] = 1
    needs = (Embedding(spaces=("elsewhere",)),)
    gives = ("picky",)
    embedding: str | None = measures(None)

    def measure(self, batch):
        """Nothing."""


class Idle(ProcessingStage):
    """Has a threshold and nothing to hold against it."""

    version: ClassVar[int] = 1

    def keep(self, rows):
        """Nothing."""


class Empty(ProcessingStage):
    """Has no verb."""

    version: ClassVar[int] = 1


class Hashed(Wordy):
    """Needs what exact gives only where it measures."""

    needs = (Column("pixel_hash"),)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([Tiny()], "nothing lists the input files"),
        ([FilePartitioningStage(), Tiny()], "nothing reads samples"),
        ([*SOURCES, Brightness(), Brightness()], "brightness is listed 2 times"),
        ([*SOURCES, Brightness(), Brightness(name="other")], "gives the column brightness, which brightness gives already"),
        ([*SOURCES, First()], "needs an embedding, and no stage gives one"),
        ([*SOURCES, First(), Tiny()], "tiny stands behind it"),
        ([*SOURCES, Tiny(), Tiny(name="second"), First()], "tiny and second both embed. Say which with first.embedding=NAME"),
        ([*SOURCES, Tiny(), Picky()], "works on embeddings of elsewhere, but tiny gives stages.Tiny"),
        ([*SOURCES, Tiny(), Picky(embedding="no")], "picky.embedding: no stage before it is called no"),
        ([*SOURCES, Tiny(), SemanticDeduplicationStage(keep=("beauty",))], "needs the column beauty"),
        ([*SOURCES, Empty()], "empty can do nothing: it has none of the verbs list, index, measure, keep, choose, write"),
        ([*SOURCES, Idle()], "idle has nothing to keep from: it has no measure, and needs no column of another"),
        ([*SOURCES, PIXELS, ExactDeduplicationStage(name="other", by="pixels")], "other: gives the column pixel_hash, which exact gives"),
        ([*SOURCES, ExactDeduplicationStage(), Hashed()], "hashed: needs the column pixel_hash"),
        ([Tiny(), *SOURCES], "partition stands behind tiny; sources come first"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_said(stages, expected):
    """Before any work."""
    with pytest.raises(ConfigError, match=expected):
        wire(stages)


def test_all_of_them_at_once():
    """A person mends a pipeline in one go."""
    with pytest.raises(ConfigError) as told:
        wire([FilePartitioningStage(), First(), SemanticDeduplicationStage()])
    assert len(told.value.mistakes) == 3


def test_a_collection_may_rank_by_what_stands_behind_it():
    """It chooses after all filters, wherever they are listed."""
    wire([*SOURCES, Tiny(), SemanticDeduplicationStage(keep=("brightness desc",)), Brightness()])


def test_a_stages_key_feels_what_it_rests_on_and_nothing_else():
    """Pixels rest on how images are decoded; vectors on the embedding; a caption's score on neither's settings."""

    def keys(read=None, tiny=None, threshold=0.0):
        sources = (FilePartitioningStage(), read or ImageReaderStage())
        return wire([*sources, tiny or Tiny(), First(), Wordy(), Brightness(score_threshold=threshold)]).keys

    usual = keys()
    assert keys(threshold=0.9) == usual
    assert keys(read=ImageReaderStage(decode_timeout_s=5)) == usual
    assert keys(tiny=Tiny(model_inference_batch_size=2)) == usual
    assert keys(tiny=Tiny(name="renamed"))["first"] == usual["first"]
    exact = keys(read=ImageReaderStage(exact=True))
    assert {name for name in usual if exact[name] != usual[name]} == {"read", "tiny", "first", "wordy", "brightness"}


def test_what_a_collection_ranks_by_is_not_part_of_what_it_finds():
    """Another keep policy re-decides; it does not search again."""
    keys = [
        wire([*SOURCES, Tiny(), Brightness(), SemanticDeduplicationStage(keep=keep)]).keys["dedup"]
        for keep in (None, ("brightness desc",), ("first",))
    ]
    assert len(set(keys)) == 1
