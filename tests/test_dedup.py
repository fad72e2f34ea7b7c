"""dedup as a person meets it: whom a flag or a reason names, what a run and a sweep say, which settings are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from curator import (
    ExactDeduplicationStage,
    FilePartitioningStage,
    ImageReaderStage,
    ManifestWriterStage,
    Pipeline,
    SemanticDeduplicationStage,
)
from curator.errors import ConfigError
from curator.voice import Voice
from tests.conftest import make_shard, run_command
from tests.stages import Tiny

SOURCES = (FilePartitioningStage(), ImageReaderStage())
VECTORS = (FilePartitioningStage(), ImageReaderStage(embedding_space="mine/1"))
CHAIN = (0, 17, 34, 90)  # degrees: each of the first three near the next one, cos 17 = 0.956, cos 34 = 0.829


def at(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles), *[np.zeros(len(angles))] * 6], axis=1).astype(np.float32)


def picture(degrees: float) -> bytes:
    """A PNG whose 8 x 8 grey values, less their mean, are a vector at that angle."""
    across, down = np.ones((8, 8)), np.ones((8, 8))
    across[:, 4:], down[4:] = -1, -1
    grey = 128 + 80 * (np.cos(np.radians(degrees)) * across + np.sin(np.radians(degrees)) * down)
    file = io.BytesIO()
    Image.fromarray(grey.round().astype(np.uint8)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def compared(cluster, tmp_path):
    """`compared(rows, ...)`: a run of dedup over some vectors; its ledger's rows, and what it said."""

    def run(rows, output="out", **settings):
        place = tmp_path / f"{output}.npy"
        np.save(place, rows)
        voice = Voice(quiet=True)
        stages = [*VECTORS, SemanticDeduplicationStage(**settings), ManifestWriterStage()]
        run = Pipeline("test", stages).run
        done = run(
            input=place, output=tmp_path / output, store=tmp_path / "store", voice=voice, started=lambda _: cluster
        )
        return done.ledger.to_pylist(), "\n".join(voice.lines)

    return run


def test_a_flag_names_the_image_that_the_row_would_have_been_dropped_for(compared, tmp_path):
    """As a reason does; the row stays kept, and so is no duplicate of anything. Also of an image kept before."""
    compared(at(0, 60), output="old")
    rows, _ = compared(at(30, 31, 61), action="flag", keep="first", against=str(tmp_path / "old"))
    assert [row["status"] for row in rows] == ["kept"] * 3
    assert [row["flags"] for row in rows] == [
        "", f"dedup: near-duplicate 1.000 of {tmp_path}/out.npy/000000000",
        f"dedup: near-duplicate 1.000 of {tmp_path}/old.npy/000000001, kept before",
    ]  # fmt: skip
    assert all(row["duplicate_of_key"] is None and row["duplicate_group"] is None for row in rows)


def test_the_published_rule_names_the_image_that_a_row_was_dropped_for_though_it_goes_as_well(pipeline, tmp_path):
    """0 - 17 - 34 degrees: 34 goes for 17, which goes for 0; and copies of 34 go with it, also those of `exact`."""
    pictures = {"a": 0, "b": 17, "c": 34, "d": 90, "e": 34}
    make_shard(tmp_path / "a.tar", {f"{key}.png": picture(degrees) for key, degrees in pictures.items()})
    for n, exact in enumerate([(), (ExactDeduplicationStage(),)]):
        dedup = SemanticDeduplicationStage(rule="semdedup", keep="first")
        result = pipeline([*SOURCES, Tiny(), *exact, dedup], input=tmp_path / "a.tar", output=tmp_path / f"o{n}")
        rows = {row["key"]: row for row in result.ledger.to_pylist()}
        assert {key for key, row in rows.items() if row["status"] == "kept"} == {"a", "d"}
        near = f"near-duplicate 0.958 of {tmp_path}/a.tar/b, which is dropped as well"
        assert rows["c"]["reason"] == near
        assert rows["e"]["reason"] == (f"same bytes as {tmp_path}/a.tar/c, {near}" if exact else near)
        for key in "ce":
            assert rows[key]["duplicate_of_key"] is None
            assert rows[key]["duplicate_similarity"] is None
        assert rows["b"]["duplicate_of_key"] == "a"


def test_a_sweep_says_what_the_published_rule_lost(tmp_path):
    """Its table has the images that were dropped, and not those that nobody is kept for."""
    np.save(tmp_path / "v.npy", at(*CHAIN))
    ran = run_command(
        "-m", "stages=[partition,read,dedup]", "read.embedding_space=mine/1", "input=v.npy", "output=sweep",
        "dedup.keep=first", "dedup.rule=representatives,semdedup", cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.said
    assert (
        "rule=semdedup compares inside cells (1 here): it saw 2 of 2 near pairs (recall 1.000), and dropped 1 image "
        "without a kept one at the threshold"
    ) in ran.err


def test_hard_and_easy_say_how_many_cells_they_reckon_by(compared):
    """With one, they rank by the distance from the mean of all."""
    told = compared(at(*CHAIN), keep="hard")[1]
    assert "dedup: keep=hard ranks by the distance from the mean of all images, for there is one k-means cell" in told
    told = compared(at(*CHAIN), keep=("easy",), n_clusters=2, output="two")[1]
    assert "dedup: keep=easy ranks by the distance from the centroids of 2 k-means cells" in told


def test_what_is_compared_with_what_is_told_in_images(compared, tmp_path):
    """One image is not compared with itself, and an output that kept nothing is named."""
    told = compared(at(0, 30, 60), output="first")[1]
    assert "dedup: comparing 3 images with each other\n" in told
    assert "dedup: no k-means cells, every pair is compared\n" in told
    told = compared(at(15), output="second", against=str(tmp_path / "first"))[1]
    assert "dedup: comparing 1 image with 3 images kept before\n" in told
    assert "comparing" not in compared(at(15), output="alone")[1]
    compared(at(0.5), output="none", against=str(tmp_path / "first"))  # dropped: this output keeps nothing
    told = compared(at(45), output="last", against=(str(tmp_path / "none"),))[1]
    assert f"dedup.against: {tmp_path}/none holds no kept image, so nothing is compared with it" in told


def test_a_collection_that_grows_is_told_in_images(cluster, tmp_path):
    """And not in pieces, which nobody knows."""
    for n in range(2):
        np.save(tmp_path / f"{n}.npy", at(*(40 * n + 5.0 * k for k in range(4))))
    told = []
    for inputs in (["0.npy"], ["0.npy", "1.npy"]):
        voice = Voice(quiet=True)
        Pipeline("test", [*VECTORS, SemanticDeduplicationStage()]).run(
            input=[str(tmp_path / name) for name in inputs], output=tmp_path / "out", store=tmp_path / "store",
            voice=voice, started=lambda _: cluster,
        )  # fmt: skip
        told.append("\n".join(voice.lines))
    assert "dedup: comparing 4 images with each other and with 4 images compared before\n" in told[1]


def test_a_dry_run_says_whether_pairs_are_stored_or_to_be_found(tmp_path):
    """Also that a lower floor has to look for them again."""
    np.save(tmp_path / "v.npy", at(*CHAIN))

    def line(*settings: str) -> str:
        ran = run_command(
            "stages=[partition,read,dedup]", "read.embedding_space=mine/1", "input=v.npy", "output=out", *settings,
            cwd=tmp_path,
        )  # fmt: skip
        assert ran.code == 0, ran.said
        return next(line for line in ran.said.splitlines() if line.startswith("dedup "))

    assert line("dry_run=true").split() == ["dedup", "to", "find", "pairs"]
    line()
    assert line("dry_run=true", "dedup.similarity_threshold=0.99").split() == ["dedup", "its", "pairs"]
    lower = ("dedup.similarity_floor=0.5", "dedup.similarity_threshold=0.99")
    assert line("dry_run=true", *lower).split() == ["dedup", "to", "find", "pairs"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"similarity_floor": None}, "dedup.similarity_floor: must be a number, not null"),
        ({"eps": 0.05}, "dedup.eps: no such setting; eps is 1 - similarity_threshold."),
        ({"keep": ("hard", "easy")}, "keep: easy ranks by the same as hard"),
        ({"keep": ("bytes", "bytes asc")}, "keep: bytes asc ranks by the same as bytes"),
        ({"keep": ()}, "keep: [] names no policy"),
        ({"recall": 0.5}, "dedup.recall: must be more than 0.5, not 0.5"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_in_a_sentence(settings, told):
    """Before any work."""
    with pytest.raises(ConfigError) as caught:
        SemanticDeduplicationStage(**settings)
    assert told in str(caught.value)


def test_a_policy_that_is_no_column_is_answered_with_what_ranks(pipeline, tmp_path):
    """In other letters it is meant all the same; columns of text rank nothing, and are not offered."""
    make_shard(tmp_path / "a.tar", {"a.png": picture(0)})
    with pytest.raises(ConfigError) as caught:
        pipeline([*SOURCES, Tiny(), SemanticDeduplicationStage(keep="HARD")], input=tmp_path / "a.tar")
    told = str(caught.value)
    assert "dedup: needs the column HARD; the stages listed give bytes, frames, height, width. Did you mean hard?" in told
