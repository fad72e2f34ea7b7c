"""Vectors that were computed elsewhere: filters and dedup run on them as on one's own, and no image is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import (
    BlocklistFilterStage,
    ExactDeduplicationStage,
    FilePartitioningStage,
    ImageAestheticFilterStage,
    ImageEmbeddingStage,
    ImageNSFWFilterStage,
    ImageReaderStage,
    ImageResolutionFilterStage,
    ImageWriterStage,
    ManifestWriterStage,
    SemanticDeduplicationStage,
)
from curator.errors import ConfigError
from curator.models.likeness import LEANING, likeness
from tests.conftest import make_samples, make_shard, shared

SOURCES = (FilePartitioningStage(), ImageReaderStage())
DEDUP = SemanticDeduplicationStage()


def like_vit_l_14(count: int, seed: int = 0) -> np.ndarray:
    """(count, 768) float32 unit rows that lean as that model's do; row 2 is row 1 again."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 768)) * 0.03
    for column, (mean, deviation) in LEANING.items():
        rows[:, column] = rng.normal(mean, deviation, count)
    rows[2:3] = rows[1:2]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clip_retrieval(folder: Path, *parts: np.ndarray) -> Path:
    """A folder as clip-retrieval writes it."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for n, rows in enumerate(parts):
        np.save(folder / f"img_emb/img_emb_{n}.npy", rows.astype(np.float16))
        table = pa.table({"image_path": [f"{n:02d}{i:04d}" for i in range(len(rows))], "caption": ["words"] * len(rows),
                          "similarity": np.linspace(0, 1, len(rows))})  # fmt: skip
        pq.write_table(table, folder / f"metadata/metadata_{n}.parquet")
    return folder


def test_a_folder_of_clip_retrieval_is_deduplicated_without_an_image(pipeline, tmp_path):
    """Row i of a file of vectors is row i of the table of the same number, also behind the ninth."""
    parts = [like_vit_l_14(5, seed) for seed in range(11)]
    result = pipeline([*SOURCES, DEDUP], input=clip_retrieval(tmp_path / "emb", *parts))
    rows = result.ledger.to_pylist()
    assert result.counts == {"inputs": 55, "kept": 44, "dropped": 11, "failed": 0,
                             "by_stage": {"dedup": {"dropped": 11, "failed": 0}}}  # fmt: skip
    assert [row["key"] for row in rows] == [f"{n:02d}{i:04d}" for n in range(11) for i in range(5)]
    assert [row["shard"] for row in rows[-5:]] == [str(tmp_path / "emb/img_emb/img_emb_10.npy")] * 5
    assert [row["in_similarity"] for row in rows[:5]] == [0, 0.25, 0.5, 0.75, 1]
    assert rows[0]["caption"] == "words"
    assert rows[2]["reason"].endswith("img_emb_0.npy/000001")
    assert result.run["work"] == {"decoded": 0, "embedded": 0, "scored": 0, "paired": 55}


def test_what_was_read_once_is_not_read_again_and_what_changed_is(pipeline, tmp_path):
    """By the content of rows and table, not by their place."""
    folder = clip_retrieval(tmp_path / "emb", like_vit_l_14(5))
    first = pipeline([*SOURCES, DEDUP], input=folder)
    folder.rename(tmp_path / "other")
    again = pipeline([*SOURCES, DEDUP], input=tmp_path / "other")
    assert again.run["work"]["paired"] == 0
    assert again.counts == first.counts
    np.save(tmp_path / "other/img_emb/img_emb_0.npy", like_vit_l_14(5, 3))
    assert pipeline([*SOURCES, DEDUP], input=tmp_path / "other").run["work"]["paired"] == 5


def test_datacomps_shards_give_the_uid_and_what_its_baselines_read(pipeline, tmp_path):
    """parquet + npz of one stem; the array is chosen among several."""
    rows = like_vit_l_14(4)
    np.savez(tmp_path / "0a.npz", b32_img=rows[:, :512], l14_img=rows, l14_txt=rows[::-1])
    uid = [f"{n:032x}" for n in range(4)]
    pq.write_table(pa.table({"uid": uid, "text": list("abcd"), "clip_l14_similarity_score": [0.1, 0.2, 0.3, 0.4]}),
                   tmp_path / "0a.parquet")  # fmt: skip
    ledger = pipeline([*SOURCES, DEDUP], input=tmp_path / "0a.npz").ledger
    assert ledger.column("key").to_pylist() == ledger.column("in_uid").to_pylist() == uid
    assert ledger.column("caption").to_pylist() == list("abcd")
    assert ledger.column("in_clip_l14_similarity_score").to_pylist() == [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ConfigError, match=r"has no array l14_imag\. Did you mean l14_img\?"):
        pipeline([FilePartitioningStage(), ImageReaderStage(embedding_column="l14_imag"), DEDUP], input=tmp_path / "0a.npz")


@pytest.mark.parametrize("form", ["npy", "npz", "list", "fixed"])
def test_plain_files_of_vectors_give_the_same_verdicts(pipeline, tmp_path, form):
    """`.npy` in Fortran's order, `.npz`, and a parquet column of lists over several row groups."""
    rows = like_vit_l_14(3000)
    path = tmp_path / f"x.{form if form.startswith('np') else 'parquet'}"
    if form == "npy":
        np.save(path, np.asfortranarray(rows))
    elif form == "npz":
        np.savez(path, rows)
    else:
        flat = pa.array(rows.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, 768)
        column = column if form == "fixed" else column.cast(pa.list_(pa.float32()))
        pq.write_table(pa.table({"embedding": column}), path, row_group_size=700)
    ledger = pipeline([*SOURCES, DEDUP], input=path).ledger
    assert [row["key"] for row in ledger.to_pylist() if row["status"] == "dropped"] == ["000000002"]


def test_rows_that_are_no_vectors_are_failed_rows(pipeline, tmp_path):
    """Zeros, what is no number, and nothing at all."""
    rows = like_vit_l_14(6).tolist()
    rows[3], rows[4], rows[5] = [0.0] * 768, [float("nan")] * 768, None
    pq.write_table(pa.table({"embedding": rows}), tmp_path / "x.parquet")
    result = pipeline([*SOURCES, DEDUP], input=tmp_path / "x.parquet")
    assert (result.counts["kept"], result.counts["dropped"], result.counts["failed"]) == (2, 1, 3)
    assert set(result.ledger.column("cause").to_pylist()) == {None, "near_duplicate", "score_not_finite"}


def test_heads_score_vectors_of_elsewhere_as_their_golden_says(pipeline, tmp_path):
    """Vectors and scores of another program; the vectors are stored as float16, which moves a score by a little."""
    golden = np.load(shared("golden/nsfw.npz"), allow_pickle=True)
    np.save(tmp_path / "x.npy", golden["x"])
    heads = str(shared("heads/official"))
    stages = [
        FilePartitioningStage(), ImageReaderStage(embedding_space="ViT-L-14-quickgelu/openai"),
        ImageNSFWFilterStage(model_dir=heads), ImageAestheticFilterStage(model_dir=heads),
    ]  # fmt: skip
    ledger = pipeline(stages, input=tmp_path / "x.npy").ledger
    assert np.abs(ledger.column("nsfw_score").to_numpy() - golden["port_score"].ravel()).max() < 2e-3
    aesthetic = np.load(shared("golden/aesthetic.npz"))
    assert np.abs(ledger.column("aesthetic_laion").to_numpy() - aesthetic["raw"].ravel()).max() < 0.02


def test_vectors_of_another_model_are_told_from_those_that_they_are_taken_for():
    """The goldens' vectors: LAION's own ratings and training-like ones lean as they should, noise and texts do not."""
    golden = np.load(shared("golden/nsfw.npz"), allow_pickle=True)
    unit = golden["x"] / np.linalg.norm(golden["x"], axis=1, keepdims=True)
    leaning = {kind: likeness(unit[golden["kind"] == kind]) for kind in set(golden["kind"])}
    assert {kind for kind, value in leaning.items() if value > 0.8} == {
        "real_rating_f32", "real_rating_via_f16", "trainlike_f32", "trainlike_via_f16",
    }  # fmt: skip
    assert all(abs(leaning[kind]) < 0.15 for kind in ("gauss_f32", "real_violence_prompt"))


def test_the_wrong_space_is_refused_before_any_work(pipeline, tmp_path):
    """By its statistics, by its number of columns, or where two differ; what is said for sure is believed."""
    noise = np.random.default_rng(0).normal(size=(200, 768)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    with pytest.raises(ConfigError, match=r"do not look like its image vectors \(likeness -?0\.\d\d, about 1 expected\)"):
        pipeline([*SOURCES, DEDUP], input=tmp_path / "noise.npy")
    said = ImageReaderStage(embedding_space="mine/1")
    assert pipeline([FilePartitioningStage(), said, DEDUP], input=tmp_path / "noise.npy").counts["kept"] == 200
    np.save(tmp_path / "b32.npy", noise[:, :512])
    with pytest.raises(ConfigError, match=r"read gives unknown/512\..*read\.embedding_space says whose they are"):
        pipeline([*SOURCES, ImageNSFWFilterStage(model_dir="nowhere")], input=tmp_path / "b32.npy")
    with pytest.raises(ConfigError, match=r"different numbers of columns: .*noise\.npy 768, .*b32\.npy 512"):
        pipeline([*SOURCES, DEDUP], input=[tmp_path / "noise.npy", tmp_path / "b32.npy"])


def test_rows_that_are_not_of_unit_length_are_made_so_and_it_is_said(curate, tmp_path):
    """Ten times too long."""
    np.save(tmp_path / "long.npy", like_vit_l_14(50) * 10)
    ran = curate("input=long.npy", "output=out", "stages=[partition,read,dedup]")
    assert ran.code == 0, ran.said
    assert "they were 10 long (median), and are made unit length" in ran.err
    assert "50 in = 49 kept + 1 dropped + 0 failed" in ran.out


def test_stages_that_need_images_are_refused_where_there_are_none(pipeline, tmp_path):
    """All of them at once."""
    np.save(tmp_path / "x.npy", like_vit_l_14(5))
    with pytest.raises(ConfigError) as caught:
        pipeline([*SOURCES, ImageEmbeddingStage(), ImageWriterStage()], input=tmp_path / "x.npy")
    assert [line.partition(",")[0] for line in caught.value.mistakes] == ["embed: looks at images", "write: copies images"]
    make_shard(tmp_path / "a.tar", make_samples(1))
    with pytest.raises(ConfigError, match="a run reads the one or the other"):
        pipeline([*SOURCES, DEDUP], input=[tmp_path / "x.npy", tmp_path / "a.tar"])


def test_a_table_of_another_length_is_refused(pipeline, tmp_path):
    """They belong together row by row, and nobody knows which is missing."""
    np.save(tmp_path / "x.npy", like_vit_l_14(5))
    pq.write_table(pa.table({"key": list("abcd")}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"holds 5 vectors and .* beside it 4 rows"):
        pipeline([*SOURCES, DEDUP], input=tmp_path / "x.npy")


def test_an_array_of_objects_is_refused_unopened(pipeline, tmp_path):
    """Loading one runs code."""
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ConfigError, match="is no file of vectors"):
        pipeline([*SOURCES, DEDUP], input=tmp_path / "x.npy")


def test_a_keep_list_is_made_of_vectors_alone(pipeline, tmp_path):
    """By shard and key; uids where the table beside has them."""
    rows = like_vit_l_14(4)
    np.savez(tmp_path / "0a.npz", l14_img=rows)
    pq.write_table(pa.table({"uid": [f"{n:032x}" for n in range(4)]}), tmp_path / "0a.parquet")
    pipeline([*SOURCES, DEDUP, ManifestWriterStage()], input=tmp_path / "0a.npz")
    (listed,) = (tmp_path / "out/manifest").glob("*.parquet")
    assert pq.read_table(listed).column("key").to_pylist() == [f"{n:032x}" for n in (0, 1, 3)]
    assert np.load(tmp_path / "out/manifest/uids.npy").tolist() == [(0, 0), (0, 1), (0, 3)]
    np.save(tmp_path / "x.npy", rows)
    assert pipeline([*SOURCES, DEDUP, ManifestWriterStage()], input=tmp_path / "x.npy").counts["kept"] == 3


def test_a_space_that_has_another_number_of_columns_is_refused_also_where_it_is_said(pipeline, tmp_path):
    """640 columns are not ViT-L/14's, whoever says so; and a space is a model and its weights."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 640)).astype(np.float32))
    for said, told in (("ViT-L-14-quickgelu/openai", "have 768 columns, and these have 640"), ("foo", "MODEL/PRETRAINED")):
        with pytest.raises(ConfigError, match=told):
            pipeline([FilePartitioningStage(), ImageReaderStage(embedding_space=said), DEDUP], input=tmp_path / "x.npy")


def test_an_input_that_is_not_there_is_not_blamed_on_the_stages(curate, tmp_path):
    """Whether reading gives vectors is not known then."""
    ran = curate("input=nothere/", "output=out", "stages=[partition,read,dedup]")
    assert ran.code == 2
    assert "needs an embedding" not in ran.err
    assert "nothere/: there is no such file or folder" in ran.err


@pytest.mark.parametrize("names", [("width", "height", "content_hash"), ("original_width", "original_height", "sha256")])
def test_sizes_and_hashes_of_the_table_beside_are_decided_from(pipeline, tmp_path, names):
    """As whole numbers or as pandas writes them where one is missing; of equal ones the larger stays, as of images."""
    hashes = [f"{n:064x}" for n in (0xA, 0xB, 0xB, 0xC)] + ["no hash", None]
    columns = ([300, 10, 300, 300, 0, 400], [300.0, 300.0, 300.0, 300.0, None, 400.0], [hashes[0].upper(), *hashes[1:]])
    np.save(tmp_path / "x.npy", like_vit_l_14(6))
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), tmp_path / "x.parquet")
    (tmp_path / "bad.txt").write_text(hashes[0])
    blocked = BlocklistFilterStage(file=str(tmp_path / "bad.txt"))
    exact, manifest = ExactDeduplicationStage(), ManifestWriterStage()
    stages = [*SOURCES, blocked, exact, manifest]
    rows = pipeline(stages, input=tmp_path / "x.npy").ledger.to_pylist()
    assert [row["cause"] for row in rows] == ["blocked", "exact_duplicate", None, None, None, None]
    assert [row["width"] for row in rows] == [300, 10, 300, 300, None, 400]
    assert [row["height"] for row in rows] == [300, 300, 300, 300, None, 400]
    assert [row["content_hash"] for row in rows] == [*hashes[:4], None, None]
    assert [row[f"in_{names[2]}"] for row in rows] == columns[2]
    small = pipeline([*SOURCES, ImageResolutionFilterStage(), manifest], input=tmp_path / "x.npy")
    assert [row["cause"] for row in small.ledger.to_pylist()] == [None, "too_small", None, None, None, None]
    assert small.run["remarks"] == []


@pytest.mark.parametrize("action", ["drop", "flag"])
def test_filters_that_nothing_is_known_for_say_so(pipeline, tmp_path, action):
    """Vectors alone have no size and no hash: all are kept, and not in silence."""
    np.save(tmp_path / "x.npy", like_vit_l_14(6))
    (tmp_path / "bad.txt").write_text("0" * 64)
    filters = [ImageResolutionFilterStage(action=action), BlocklistFilterStage(action=action, file=str(tmp_path / "bad.txt"))]
    stages = [*SOURCES, *filters, ExactDeduplicationStage(action=action), ManifestWriterStage()]
    result = pipeline(stages, input=tmp_path / "x.npy")
    assert result.counts["kept"] == 6
    assert [remark for remark in result.run["remarks"] if "none of" in remark] == [
        "resolution: none of 6 images has a width or height, so none was dropped for it",
        "blocklist: none of 6 images has a content_hash, so none was dropped for it",
        "exact: none of 6 images has a content_hash, so none was dropped for it",
    ]
