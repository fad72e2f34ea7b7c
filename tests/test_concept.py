"""concept and clip_score: pictures and texts in one space, from stored vectors; a new word decodes and embeds nothing."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from curator import (
    FilePartitioningStage,
    ImageBatch,
    ImageCaptionAgreementFilterStage,
    ImageConceptFilterStage,
    ImageEmbeddingStage,
    ImageReaderStage,
    Pipeline,
    Worker,
)
from curator.compose import composed, job_from
from curator.demo.draw import draw_demo
from curator.errors import ConfigError
from curator.models.clip import import_open_clip, quiet, register
from curator.models.named import text_vectors
from curator.models.published import DEMO, DEMO_MODEL
from curator.store import Store, vectors_of
from curator.voice import Voice
from curator.wiring import wire
from tests.conftest import make_image, make_samples, make_shard, tar_members
from tests.stages import Tiny

SOURCES = [FilePartitioningStage(), ImageReaderStage()]
EMBED = ("embed.model=curator-demo", "embed.pretrained=curator-demo", "embed.precision=fp32")
SIGN = ImageConceptFilterStage(prompts="a picture with a warning sign", against="a picture")


def demo_embed(**settings):
    """The stage embed with the small model that ships."""
    return ImageEmbeddingStage(model=DEMO_MODEL, pretrained=DEMO_MODEL, precision="fp32", **settings)


def ledger_of(folder):
    """The rows of a run by key."""
    return {row["key"]: row for row in pq.read_table(folder / "ledger").to_pylist()}


def work_of(folder):
    """What was done on images."""
    return json.loads((folder / "run.json").read_text())["work"]


def stored_vectors(place):
    """What the stage embed stored of the one piece of the drawn set (N, D): float16, rows without a vector left out."""
    (stored,) = (place / "store/embed").glob("*/*")
    emb_ND, has_N = vectors_of(Store(place / "store").get("embed", stored.name).table)
    return emb_ND[has_N]


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """A drawn set, embedded and asked for warning signs."""
    place = tmp_path_factory.mktemp("concept")
    draw_demo(place / "drawn", seed=23, count=90)
    asked(cluster, place, SIGN)
    return place


def asked(cluster, place, *stages, source="drawn", output="out"):
    """A run over the shared store that decides only."""
    return Pipeline("test", [*SOURCES, demo_embed(), *stages]).run(
        started=lambda _: cluster, voice=Voice(quiet=True),
        input=place / source, output=place / output, store=place / "store",
    )  # fmt: skip


@pytest.mark.xdist_group("concept")
def test_a_concept_drops_what_it_describes(place):
    """Of the drawn pictures those with a warning sign go, by the drawing's own truth, and hardly any other."""
    rows = ledger_of(place / "out")
    lines = (place / "drawn/truth.csv").read_text().splitlines()[1:]
    unsafe = {row["key"] for row in csv.DictReader(lines) if row["unsafe"] == "1"} & set(rows)
    scored = {key for key, row in rows.items() if row["status"] != "failed"}
    dropped = {key for key, row in rows.items() if row["stage"] == "concept" and row["status"] == "dropped"}
    assert len(unsafe & scored) >= 5
    assert len(dropped & unsafe) >= 0.9 * len(unsafe & scored)
    assert len(dropped - unsafe) <= 0.1 * len(scored)
    for key in dropped:
        assert rows[key]["reason"] == f"{rows[key]['concept_score']:.2f} >= 0.50"
        assert (rows[key]["cause"], rows[key]["concept_nearest"]) == ("above_threshold", "a picture with a warning sign")


@pytest.mark.xdist_group("concept")
def test_the_score_is_open_clips_zero_shot_softmax(place):
    """open_clip's own towers' texts, its own scale, and torch's softmax on the stored vectors give the same numbers."""
    open_clip = import_open_clip()
    register(DEMO_MODEL)
    with quiet():
        model = open_clip.create_model(DEMO_MODEL, pretrained=str(DEMO / f"{DEMO_MODEL}.safetensors")).eval()
    tokens = open_clip.get_tokenizer(DEMO_MODEL)(["a picture with a warning sign", "a picture"])
    with torch.inference_mode():
        text_TD = model.encode_text(tokens, normalize=True)
        image_ND = torch.from_numpy(stored_vectors(place)).float()
        image_ND = torch.nn.functional.normalize(image_ND, dim=-1)
        wanted = (model.logit_scale.exp() * image_ND @ text_TD.T).softmax(dim=-1)[:, 0].numpy()
    scores = [row["concept_score"] for row in ledger_of(place / "out").values() if row["concept_score"] is not None]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


@pytest.mark.xdist_group("concept")
def test_a_new_prompt_decodes_and_embeds_no_image(cluster, place):
    """Only the stored vectors are scored; another threshold, or the other half, scores nothing."""
    assert work_of(place / "out")["embedded"] > 80
    stage = ImageConceptFilterStage(prompts="a forest of pines", against=("a house", "hills"))
    work = asked(cluster, place, stage, output="forests").run["work"]
    assert (work["decoded"], work["embedded"]) == (0, 0)
    assert work["scored"] == work_of(place / "out")["embedded"]
    kept = asked(cluster, place, SIGN.model_copy(update={"matching": "kept"}), output="signs")
    assert set(kept.run["work"].values()) == {0}
    one, other = ledger_of(place / "out"), ledger_of(place / "signs")
    assert {(row["status"], other[key]["status"]) for key, row in one.items()} == {
        ("kept", "dropped"), ("dropped", "kept"), ("failed", "failed"),
    }  # fmt: skip


@pytest.mark.xdist_group("concept")
def test_several_concepts_in_one_run_have_columns_of_their_own(cluster, place):
    """A YAML of one's own names the stage again, and its columns with it."""
    (place / "my/stages").mkdir(parents=True)
    (place / "my/stages/fishes.yaml").write_text(
        "# @package fishes\n_target_: curator.stages.concept.ImageConceptFilterStage\n"
        "prompts: [fish in a sea]\nagainst: [a house, hills, a city]\n"
    )
    typed = ["stages=[partition,read,embed,fishes]", "++input=x", "++output=y",
             "++embed.model=curator-demo", "++embed.pretrained=curator-demo"]  # fmt: skip
    fishes = job_from(composed(typed, place / "my"), typed, place / "my").stages[-1]
    asked(cluster, place, SIGN, fishes, output="two")
    rows = [row for row in ledger_of(place / "two").values() if row["status"] != "failed"]
    assert {row["concept_nearest"] for row in rows} == {"a picture with a warning sign", "a picture"}
    shows = [row["fishes_score"] for row in rows if "fish" in row["caption"]]
    others = [row["fishes_score"] for row in rows if "fish" not in row["caption"]]
    assert len(shows) >= 3
    assert min(shows) > 0.5
    assert np.mean(np.array(shows)[:, None] > np.array(others)) > 0.95
    assert work_of(place / "two")["embedded"] == 0


@pytest.mark.xdist_group("concept")
def test_vectors_from_elsewhere_are_asked_as_ones_own(pipeline, place, tmp_path):
    """A file of the same vectors, said to be that model's, has the same scores; no image is asked for."""
    np.save(tmp_path / "emb.npy", stored_vectors(place))
    read = ImageReaderStage(embedding_space=f"{DEMO_MODEL}/{DEMO_MODEL}")
    result = pipeline([FilePartitioningStage(), read, SIGN], input=tmp_path / "emb.npy")
    scores = [row["concept_score"] for row in ledger_of(place / "out").values() if row["concept_score"] is not None]
    assert result.ledger.column("concept_score").to_pylist() == scores
    assert result.run["work"]["decoded"] == 0
    unknown = ImageReaderStage(embedding_space="somebody/else")
    with pytest.raises(ConfigError, match="read does not say which model of open_clip its vectors are of, but somebody/e"):
        pipeline([FilePartitioningStage(), unknown, SIGN], input=tmp_path / "emb.npy")


@pytest.mark.xdist_group("concept")
def test_captions_that_belong_to_other_pictures_score_lower(cluster, place):
    """Each caption moved to another picture: nearly all agree less than before. No caption: nothing to judge."""
    members = tar_members(*sorted((place / "drawn").glob("*.tar")))
    keys = [n.split(".")[0] for n in members if n.endswith(".txt")]
    moved = {f"{key}.txt": members[f"{other}.txt"] for key, other in zip(keys, keys[7:] + keys[:7], strict=True)}
    make_shard(place / "moved/a.tar", {**members, **moved, "silent.jpg": make_image(1, (256, 256))})
    for source in ("drawn", "moved"):
        asked(cluster, place, ImageCaptionAgreementFilterStage(), source=source, output=f"of_{source}")
    own, other = ledger_of(place / "of_drawn"), ledger_of(place / "of_moved")
    scored = [key for key, row in own.items() if row["clip_score"] is not None]
    assert len(scored) > 80
    assert np.mean([other[key]["clip_score"] < own[key]["clip_score"] for key in scored]) > 0.9
    assert np.mean([own[key]["status"] == "kept" for key in scored]) > 0.95
    assert np.mean([other[key]["status"] == "dropped" for key in scored]) > 0.4
    assert (other["silent"]["clip_score"], other["silent"]["status"]) == (None, "kept")


def test_the_score_of_a_caption_is_the_cosine_of_the_two_vectors():
    """Of the stored float16 vector and open_clip's unit vector of the text, whatever else is in the batch."""
    stage = ImageCaptionAgreementFilterStage().fed_by(demo_embed())
    emb_BD = np.random.default_rng(0).standard_normal((3, 192)).astype(np.float16)
    captions = ["a house with a roof", "fish in a sea", "a house with a roof"]
    batch = ImageBatch(embedding=emb_BD, columns={"caption": np.array(captions, object)}, model=stage.setup(Worker()))
    text_BD = text_vectors(DEMO_MODEL, DEMO_MODEL, None, captions, Worker()).astype(np.float64)
    image_BD = emb_BD.astype(np.float64)
    wanted = (image_BD * text_BD).sum(1) / np.linalg.norm(image_BD, axis=1) / np.linalg.norm(text_BD, axis=1)
    np.testing.assert_allclose(stage.measure(batch)["clip_score"], wanted, atol=1e-6)


def test_the_bits_of_a_text_do_not_depend_on_its_neighbours():
    """Texts are embedded in batches of one shape, equal ones once."""
    one = text_vectors(DEMO_MODEL, DEMO_MODEL, None, ["fish in a sea"], Worker())
    many = text_vectors(DEMO_MODEL, DEMO_MODEL, None, ["a city", "fish in a sea", "a", "fish in a sea"], Worker())
    np.testing.assert_array_equal(many[[1, 3]], one[[0, 0]])
    assert text_vectors(DEMO_MODEL, DEMO_MODEL, None, [], Worker()).shape[0] == 0


def test_a_stage_asks_the_model_that_the_vectors_are_of():
    """It follows the embedding stage, also the one that it names of two; what it asks is part of its address."""
    concept = ImageConceptFilterStage(prompts=("a house",))
    plan = wire([*SOURCES, demo_embed(), concept])
    assert (plan.stages[-1].model, plan.stages[-1].pretrained) == (DEMO_MODEL, DEMO_MODEL)
    assert plan.weights["concept"] == plan.weights["embed"]
    same = wire([*SOURCES, demo_embed(), ImageConceptFilterStage(prompts="a house", model=DEMO_MODEL, pretrained=DEMO_MODEL)])
    assert same.keys == plan.keys
    other = wire([*SOURCES, demo_embed(), ImageConceptFilterStage(prompts="a city")])
    assert other.keys["concept"] != plan.keys["concept"]
    lax = wire([*SOURCES, demo_embed(), concept.model_copy(update={"score_threshold": 0.9, "matching": "kept"})])
    assert lax.keys == plan.keys
    two = [*SOURCES, Tiny(), demo_embed(), ImageConceptFilterStage(prompts="a house", embedding="embed")]
    assert wire(two).stages[-1].model == DEMO_MODEL


@pytest.mark.parametrize("stage", [ImageConceptFilterStage, ImageCaptionAgreementFilterStage])
def test_a_text_tower_of_another_space_is_refused_before_any_work(stage):
    """Cosines between two spaces are silent nonsense; so is a space that no model is known of."""
    named = {"prompts": ("a",)} if stage is ImageConceptFilterStage else {}
    other = stage(model="ViT-L-14-quickgelu", pretrained="openai", **named)
    with pytest.raises(ConfigError, match="works on embeddings of ViT-L-14-quickgelu/openai, but embed gives curator-demo"):
        wire([*SOURCES, demo_embed(), other])
    with pytest.raises(ConfigError, match=r"tiny does not say which model of open_clip its vectors are of, but stages.Tiny"):
        wire([*SOURCES, Tiny(), stage(**named)])
    with pytest.raises(ConfigError, match="needs an embedding, and no stage gives one: add embed before"):
        wire([*SOURCES, stage(**named)])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prompts": ("a", " ")}, "one of them is empty"),
        ({"prompts": ("a", "b"), "against": ("b",)}, "'b' is among prompts and against"),
        ({"prompts": ("a",), "model": DEMO_MODEL}, "model and pretrained belong together"),
        ({"prompts": ("a",), "model": "ViT-L-41", "pretrained": "openai"}, "open_clip knows no model ViT-L-41. Did you mean ViT-L-1"),
        ({"prompts": ("a",), "model": "ViT-L-14", "pretrained": "openai"}, "Set model=ViT-L-14-quickgelu"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_asked_is_said(settings, expected):
    """In words, when the stage is made."""
    with pytest.raises(ConfigError, match=expected):
        ImageConceptFilterStage(**settings)


def test_a_command_without_prompts_is_told_what_to_give(curate, tmp_path):
    """Exit 2, and all other mistakes with it."""
    make_shard(tmp_path / "a.tar", {"x.jpg": make_image(1)})
    ran = curate(*EMBED, "stages=[partition,read,concept,embed]", "input=a.tar", "output=out", "concept.matching=gone")
    assert ran.code == 2
    assert "concept.matching: must be 'dropped' or 'kept'" in ran.err
    ran = curate(*EMBED, "stages=[partition,read,concept,embed]", "input=a.tar", "output=out")
    assert "concept.prompts: must be given" in ran.err
    assert "concept: needs an embedding, and embed stands behind it" in ran.err


@pytest.mark.parametrize("dry", ["false", "true"])
def test_one_missing_file_of_two_stages_is_told_once(curate, tmp_path, dry):
    """Which files would do, and where, under the names of both."""
    make_shard(tmp_path / "a.tar", make_samples(1))
    (tmp_path / "empty").mkdir()
    ran = curate("stages=[partition,read,embed,concept,manifest]", "concept.prompts=[a cat]", "embed.model_dir=empty",
                 "input=a.tar", "output=out", f"dry_run={dry}")  # fmt: skip
    assert ran.said.count("embed and concept: ") == 1
    assert ran.said.count("Put one of these into") == 1
