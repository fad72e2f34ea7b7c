"""The heads against the programs of their authors: TensorFlow on LAION's archive, the port, LAION's predictor."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from curator.models.heads import AestheticHead, NSFWHead, tensors_of
from curator.stage import ImageBatch, Worker
from curator.stages.aesthetic import ImageAestheticFilterStage
from curator.stages.nsfw import ImageNSFWFilterStage
from tests.conftest import shared

ZIP = "heads/official/nsfw_clip_autokeras_binary_nsfw.zip"
PORT = "heads/official/nsfw_port_clip_vit_l_14_openai_head.pth"
COPY = "heads/nsfw_l14.safetensors"
PREDICTOR = "heads/official/aesthetic_sac_logos_ava1_l14_linearmse.pth"


@pytest.mark.parametrize("file", [ZIP, PORT, COPY])
def test_the_port_gives_the_ports_scores(file: str) -> None:
    """From each of the three files, within 1e-5 of the port's own program."""
    golden = np.load(shared("golden/nsfw.npz"))
    scores = NSFWHead(tensors_of(shared(file))).score(golden["x"])
    np.testing.assert_allclose(scores, golden["port_score"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", [ZIP, COPY])
def test_laions_head_gives_tensorflows_scores(file: str) -> None:
    """With the vocabularies, within 1e-5 of TensorFlow on LAION's archive; the vectors include hits of all five."""
    golden = np.load(shared("golden/nsfw.npz"))
    assert golden["vocab_hits"].max() == 5
    scores = NSFWHead(tensors_of(shared(file)), laion=True).score(golden["x"])
    np.testing.assert_allclose(scores, golden["tf_score"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", [PREDICTOR, "heads/aesthetic_l14.safetensors"])
def test_the_aesthetic_head_gives_the_predictors_scores(file: str) -> None:
    """Five layers collapsed into one map are within 1e-3 of LAION's program on its own scale, 1e-4 on 0..1."""
    golden = np.load(shared("golden/aesthetic.npz"))
    raw = AestheticHead(tensors_of(shared(file))).raw(golden["x"])
    np.testing.assert_allclose(raw, golden["raw"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(raw / 10, golden["unit_scale"], rtol=0, atol=1e-4)


def test_laions_archive_holds_what_the_safetensors_copy_holds() -> None:
    """Read without TensorFlow, every tensor and vocabulary comes out bit for bit."""
    ours, copy = tensors_of(shared(ZIP)), load_file(shared(COPY))
    assert ours.keys() == copy.keys()
    for name, tensor in copy.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


def test_the_stages_give_the_same_scores() -> None:
    """What the stages put into the columns is what the heads say."""
    golden, worker = np.load(shared("golden/nsfw.npz")), Worker()
    nsfw = ImageNSFWFilterStage(model_dir=str(shared("heads/official")))
    given = nsfw.measure(ImageBatch(embedding=golden["x"], model=nsfw.setup(worker)))
    np.testing.assert_allclose(given["nsfw_score"], golden["port_score"], rtol=0, atol=1e-5)
    golden = np.load(shared("golden/aesthetic.npz"))
    aesthetic = ImageAestheticFilterStage(model_dir=str(shared("heads")))
    columns = aesthetic.measure(ImageBatch(embedding=golden["x"], model=aesthetic.setup(worker)))
    np.testing.assert_allclose(columns["aesthetic_laion"], golden["raw"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(columns["aesthetic_score"], golden["unit_scale"].clip(0, 1), rtol=0, atol=1e-4)
