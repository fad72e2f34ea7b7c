"""`against`: what cannot be compared with is refused before any work, in words that name the file."""

from __future__ import annotations

import numpy as np
import pytest

from curator import FilePartitioningStage, ImageReaderStage, ManifestWriterStage, SemanticDeduplicationStage
from curator.errors import ConfigError
from curator.stages.exact import ExactDeduplicationStage

SOURCES = (FilePartitioningStage(), ImageReaderStage(embedding_space="mine/1"))


def unit(count: int, columns: int = 32, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, columns))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def compared(pipeline, tmp_path):
    """Forty vectors against whatever lies at a path."""
    np.save(tmp_path / "in.npy", unit(40))

    def run(against, **settings):
        stage = SemanticDeduplicationStage(against=str(against))
        return pipeline([*SOURCES, stage, ManifestWriterStage()], input=tmp_path / "in.npy", **settings)

    return run


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0])
def test_a_row_that_is_no_vector_is_named_and_nothing_is_compared(compared, tmp_path, bad):
    """One NaN used to spoil the whole search without a word."""
    rows = unit(10)
    rows[3] = bad
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old/a.npy", rows)
    with pytest.raises(ConfigError, match=r"dedup\.against: row 3 of .*old/a\.npy is no vector"):
        compared(tmp_path / "old")


def test_vectors_of_another_width_are_another_models(compared, tmp_path):
    """Also one file among several."""
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old/a.npy", unit(5))
    np.save(tmp_path / "old/b.npy", unit(5, 16))
    with pytest.raises(ConfigError, match=r"old/b\.npy has vectors of 16 columns, and these have 32: another model's"):
        compared(tmp_path / "old")


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_none_is_named(compared, tmp_path, content):
    """Empty, text, cut short."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old/a.npy").write_bytes(content)
    with pytest.raises(ConfigError, match=r"dedup\.against: .*old/a\.npy is no file of vectors"):
        compared(tmp_path / "old")


def test_rows_of_any_length_count_as_input_rows_do(compared, tmp_path):
    """Their direction is compared, and the row that they drop names their file."""
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old/a.npy", unit(40)[:4] * 3.3)
    rows = compared(tmp_path / "old").ledger.to_pylist()
    assert [row["status"] for row in rows[:5]] == ["dropped"] * 4 + ["kept"]
    assert rows[1]["duplicate_of_shard"] == str(tmp_path / "old/a.npy")
    assert compared(tmp_path / "old/a.npy", output=tmp_path / "other").counts["dropped"] == 4


def test_its_own_output_is_refused(compared, tmp_path):
    """All would be dropped for themselves, and the result replaced by nothing."""
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old/a.npy", unit(3, seed=5))
    kept = compared(tmp_path / "old").counts["kept"]
    with pytest.raises(ConfigError, match="is this run's own output"):
        compared(tmp_path / "out")
    assert kept == 40


def test_a_path_that_leads_nowhere_says_so(compared, tmp_path):
    """And what was probably meant; a store is told apart."""
    (tmp_path / "photos_old").mkdir()
    with pytest.raises(ConfigError, match=r"there is no such folder\. Did you mean photos_old\?"):
        compared(tmp_path / "photos_odl")
    with pytest.raises(ConfigError, match="is neither the output of a run, nor a store, nor a folder"):
        compared(tmp_path / "photos_old")
    compared(_vectors(tmp_path))
    with pytest.raises(ConfigError, match="has no other vectors that read made with these settings"):
        compared(tmp_path / "store")


def _vectors(place):
    (place / "some").mkdir()
    np.save(place / "some/a.npy", unit(2, seed=9))
    return place / "some"


def test_one_policy_is_as_good_as_a_list():
    """As the page on duplicates shows them."""
    assert SemanticDeduplicationStage(keep="hard") == SemanticDeduplicationStage(keep=("hard",))
    assert ExactDeduplicationStage(keep="bytes asc").keep == ("bytes asc",)
    with pytest.raises(ConfigError, match=r"dedup\.keep: must be a list, such as \[3\], not 3"):
        SemanticDeduplicationStage(keep=3)


def test_a_store_is_compared_with_as_a_whole_but_for_what_is_compared(pipeline, tmp_path):
    """Whatever was measured there by the same stage: who was kept, a store does not know."""
    rows = unit(60)
    np.save(tmp_path / "old.npy", rows[:30])
    np.save(tmp_path / "new.npy", np.concatenate([rows[28:30], rows[30:]]))
    pipeline([*SOURCES, SemanticDeduplicationStage()], input=tmp_path / "old.npy")
    stage = SemanticDeduplicationStage(against=str(tmp_path / "store"))
    ledger = pipeline([*SOURCES, stage], input=tmp_path / "new.npy", output=tmp_path / "new").ledger.to_pylist()
    assert [row["status"] for row in ledger] == ["dropped"] * 2 + ["kept"] * 30
    assert (ledger[0]["duplicate_of_shard"], ledger[0]["duplicate_of_key"]) == (str(tmp_path / "old.npy"), "28")
