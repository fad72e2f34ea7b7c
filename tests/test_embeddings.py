"""embeddings: vectors in clip-retrieval's layout, as embedding-reader itself reads them."""

from __future__ import annotations

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedding_reader import EmbeddingReader

from curator import (
    EmbeddingWriterStage,
    FilePartitioningStage,
    ImageReaderStage,
    ImageWriterStage,
    SemanticDeduplicationStage,
)
from curator.formats.embeddings import npy_header
from curator.store import Store, vectors_of
from tests.conftest import make_image, make_samples, make_shard
from tests.stages import Brightness, Tiny

SOURCES = (FilePartitioningStage(), ImageReaderStage())


def read_back(folder):
    """Vectors and table as embedding-reader gives them, in small batches."""
    reader = EmbeddingReader(
        embeddings_folder=str(folder / "img_emb"), metadata_folder=str(folder / "metadata"), file_format="parquet_npy",
        meta_columns=["image_path", "caption", "in_shard", "in_index", "brightness"],
    )  # fmt: skip
    batches = list(reader(batch_size=7, show_progress=False))
    return reader, np.concatenate([emb for emb, _ in batches]), [row for _, t in batches for row in t.to_dict("records")]


def stored(folder, stage):
    """The vectors of the only piece of each shard, as they lie in the store."""
    store = Store(folder)
    paths = sorted(p for p in (folder / stage).rglob("*") if p.is_file())
    return [vectors_of(store.get(stage, path.name).table)[0] for path in paths]


@pytest.mark.parametrize("rows_per_file", [1000, 5, 1])
def test_embedding_reader_gives_row_for_row_what_was_kept(pipeline, tmp_path, rows_per_file):
    """However many files: numbers are padded, since files of the two folders are paired by their order."""
    for n in range(3):
        make_shard(tmp_path / f"in/{n}.tar", make_samples(8, 100 * n))
    stages = [*SOURCES, Brightness(score_threshold=0.45), Tiny(), EmbeddingWriterStage(rows_per_file=rows_per_file)]
    result = pipeline(stages, input=tmp_path / "in")
    kept = [row for row in result.ledger.to_pylist() if row["status"] == "kept"]
    assert 11 < len(kept) < 24
    reader, emb_ND, rows = read_back(tmp_path / "out/embeddings")
    assert result.run["write"]["embeddings"]["remarks"] == []
    assert (reader.count, reader.dimension) == (len(kept), 192)
    assert [(r["image_path"], r["caption"], r["in_shard"], r["in_index"]) for r in rows] == [
        (k["key"], k["caption"], k["shard"], k["index"]) for k in kept
    ]
    assert np.allclose([r["brightness"] for r in rows], [k["brightness"] for k in kept])
    files = -(-len(kept) // rows_per_file)
    digits = len(str(files - 1))
    for folder, name in (("img_emb", "img_emb_{}.npy"), ("metadata", "metadata_{}.parquet")):
        there = sorted(os.listdir(tmp_path / "out/embeddings" / folder))
        assert there == [name.format(f"{n:0{digits}d}") for n in range(files)]
    every = {v.tobytes() for part in stored(tmp_path / "store", "tiny") for v in part}
    found = {v.tobytes() for v in emb_ND.astype(np.float16)}  # it hands out float32
    assert found <= every
    assert len(found) == len(kept)


def test_arrays_are_what_clip_retrieval_writes(pipeline, tmp_path):
    """float16, little-endian, two axes, C order, unit length; NumPy maps them."""
    make_shard(tmp_path / "a.tar", make_samples(5))
    result = pipeline([*SOURCES, Tiny(), EmbeddingWriterStage()], input=tmp_path / "a.tar")
    path = tmp_path / "out/embeddings/img_emb/img_emb_0.npy"
    emb_ND = np.load(path, mmap_mode="r")
    assert (emb_ND.dtype.str, emb_ND.shape, emb_ND.flags.c_contiguous) == ("<f2", (5, 192), True)
    assert np.allclose(np.linalg.norm(emb_ND.astype(np.float64), axis=1), 1, atol=2e-3)
    assert result.run["write"]["embeddings"] == {"rows": 5, "files": 1, "width": 192, "remarks": []}


@pytest.mark.parametrize("shape", [(0, 1), (1, 768), (10**12, 100_000)])
def test_the_header_has_one_length_and_numpy_reads_it(shape):
    """It is written last, when the rows are counted. embedding-reader looks at no more than 300 bytes."""
    import io

    from numpy.lib import format as npy

    header = npy_header(*shape)
    assert len(header) == 128
    file = io.BytesIO(header)
    assert npy.read_magic(file) == (1, 0)
    assert npy.read_array_header_1_0(file) == (shape, False, np.dtype("<f2"))


def test_a_files_image_path_is_the_files_path(pipeline, tmp_path):
    """In folders; dropped images come where wished, and say that they are."""
    (tmp_path / "in/b").mkdir(parents=True)
    for n, name in enumerate(("a.jpg", "b/c.jpg", "b/d.jpg")):
        (tmp_path / "in" / name).write_bytes(make_image(min(n, 1)))
    dedup = SemanticDeduplicationStage(keep=("first",))
    stages = [*SOURCES, Tiny(), dedup, EmbeddingWriterStage(include_dropped=True)]
    pipeline(stages, input=tmp_path / "in")
    rows = pq.read_table(tmp_path / "out/embeddings/metadata/metadata_0.parquet").to_pylist()
    assert [row["image_path"] for row in rows] == [f"{tmp_path}/in/{n}" for n in ("a.jpg", "b/c.jpg", "b/d.jpg")]
    assert [row["status"] for row in rows] == ["kept", "kept", "dropped"]
    assert rows[2]["reason"].startswith("near-duplicate 1.000 of")


def test_nothing_kept_writes_no_empty_part(pipeline, tmp_path):
    """embedding-reader skips an empty array but not its table, and all later rows would shift."""
    make_shard(tmp_path / "a.tar", make_samples(3))
    stages = [*SOURCES, Brightness(score_threshold=2), Tiny(), EmbeddingWriterStage()]
    result = pipeline(stages, input=tmp_path / "a.tar")
    assert list((tmp_path / "out/embeddings").iterdir()) == []
    assert result.run["write"]["embeddings"]["remarks"] == ["no row has a vector, so nothing was written"]


def test_vectors_that_came_without_images_leave_as_they_came(curate, tmp_path):
    """clip-retrieval's folder in, a keep-list and the same layout out."""
    from tests.test_vectors import clip_retrieval, like_vit_l_14

    parts = [like_vit_l_14(6, seed) for seed in range(2)]
    clip_retrieval(tmp_path / "emb", *parts)
    ran = curate("input=emb", "output=out", "stages=[partition,read,dedup,manifest,embeddings]")
    assert ran.code == 0, ran.said
    kept = np.concatenate([np.delete(part, 2, axis=0) for part in parts])
    emb_ND = np.load(tmp_path / "out/embeddings/img_emb/img_emb_0.npy")
    assert np.abs(emb_ND.astype(np.float32) - kept).max() < 2e-3
    table = pq.read_table(tmp_path / "out/embeddings/metadata/metadata_0.parquet")
    assert table.column("image_path").to_pylist() == [f"{n:02d}{i:04d}" for n in range(2) for i in (0, 1, 3, 4, 5)]
    assert pq.read_table(tmp_path / "out/manifest/manifest.parquet").num_rows == 10


def test_without_a_stage_that_embeds_it_is_said_before_any_work(curate, tmp_path):
    """And what to add."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    ran = curate("input=a.tar", "output=out", "stages=[partition,read,embeddings,write]")
    assert ran.code == 2
    assert "embeddings: needs an embedding, and no stage gives one: add embed" in " ".join(ran.said.split())
    assert ImageWriterStage().name == "write"
