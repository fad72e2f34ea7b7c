"""The heads: one answer on every machine, refusals where a wrong answer would be silent, thresholds that mean it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from curator.errors import ConfigError, WeightsError
from curator.models.heads import NSFWHead, tensors_of
from curator.stage import Worker
from curator.stages.aesthetic import ImageAestheticFilterStage
from curator.stages.embed import ImageEmbeddingStage
from curator.stages.nsfw import ImageNSFWFilterStage
from curator.stages.partition import FilePartitioningStage
from curator.stages.read import ImageReaderStage
from curator.wiring import wire
from tests.conftest import shared


def unit_vectors(count: int, width: int = 768) -> np.ndarray:
    """Vectors as the store has them: float16, of unit length."""
    x = np.random.default_rng(0).standard_normal((count, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def test_scores_do_not_depend_on_the_batch() -> None:
    """The same bits alone, in a small batch and in a large one."""
    head, x = NSFWHead(load_file(shared("heads/nsfw_l14.safetensors"))), unit_vectors(600)
    whole = head.score(x)
    np.testing.assert_array_equal(np.concatenate([head.score(x[:1]), head.score(x[1:34]), head.score(x[34:])]), whole)
    assert whole.dtype == np.float32
    assert head.score(x[:0]).shape == (0,)


def test_scores_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    """Workers with one thread and with many give the same bits."""
    file, vectors = shared("heads/nsfw_l14.safetensors"), tmp_path / "x.npy"
    np.save(vectors, unit_vectors(2000))
    ask = (
        "import numpy, hashlib; from pathlib import Path; from curator.models.heads import *; "
        f"x = numpy.load({str(vectors)!r}); s = NSFWHead(tensors_of(Path({str(file.absolute())!r}))).score(x); "
        "print(hashlib.sha256(s.tobytes()).hexdigest())"
    )
    said = set()
    for threads in ("1", "2", "4"):
        limits = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", ask], env={**os.environ, **limits}, capture_output=True, text=True)
        said.add(done.stdout)
    assert len(said) == 1


def test_a_pickle_that_nobody_published_is_not_opened(tmp_path: Path) -> None:
    """A head in a pickle of unknown hash could run code."""
    torch.save({"layers.0.weight": torch.zeros(1, 768)}, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match="not opened"):
        tensors_of(tmp_path / "head.pth")


def test_a_damaged_safetensors_file_is_said_to_be(tmp_path: Path) -> None:
    """A file cut in the middle is an error in words, naming the file."""
    (tmp_path / "head.safetensors").write_bytes(shared("heads/nsfw_l14.safetensors").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"head\.safetensors: is damaged"):
        tensors_of(tmp_path / "head.safetensors")


def test_laions_lookup_needs_the_vocabularies(tmp_path: Path) -> None:
    """The port's file has none: asking for LAION's head with it is an error, not the port's scores."""
    port = tensors_of(shared("heads/official/nsfw_port_clip_vit_l_14_openai_head.pth"))
    with pytest.raises(WeightsError, match="vocabularies"):
        NSFWHead(port, laion=True)
    save_file(port, tmp_path / "x.safetensors")
    stage = ImageNSFWFilterStage(head="laion", model_dir=str(shared("heads/official")))
    path = stage.weights()[0].path
    assert path is not None
    assert path.suffix == ".zip"
    assert stage.setup(Worker()).vocabularies


def test_nsfw_keeps_below_and_aesthetic_keeps_at_or_above() -> None:
    """A score that equals the threshold is unsafe enough to go, and good enough to stay."""
    scores = np.array([0.0, 0.5, 1.0], np.float32)
    assert ImageNSFWFilterStage().keep({"nsfw_score": scores}).tolist() == [True, False, False]
    assert ImageAestheticFilterStage().keep({"aesthetic_score": scores}).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("model", "pretrained", "fits"),
    [
        ("ViT-L-14-quickgelu", "openai", True),
        ("ViT-L-14", "laion2b_s32b_b82k", False),  # 768 numbers as well, and silent nonsense
        ("ViT-L-14-quickgelu", "metaclip_400m", False),
    ],
)
def test_a_head_refuses_vectors_of_another_space(model: str, pretrained: str, fits: bool) -> None:
    """Vectors of another model of the same width are a mistake of the config."""
    sources = (FilePartitioningStage(), ImageReaderStage())
    for head in (ImageNSFWFilterStage(), ImageAestheticFilterStage()):
        stages = (*sources, ImageEmbeddingStage(model=model, pretrained=pretrained), head)
        if fits:
            assert wire(stages).feeds == {head.name: "embed"}
        else:
            with pytest.raises(ConfigError, match="scores mean nothing"):
                wire(stages)


def test_deciding_imports_no_torch() -> None:
    """Building stages, asking for weights and keeping rows leave torch, open_clip and the hub out of the process."""
    ask = (
        "import sys, numpy; from curator.stages import embed, nsfw, aesthetic; from PIL import Image; "
        "e = embed.ImageEmbeddingStage(); e.weights(); e.needed(); e.space; e.prepare(Image.new('RGB', (300, 200))); "
        "n = nsfw.ImageNSFWFilterStage(); n.weights(); n.keep({'nsfw_score': numpy.zeros(3)}); "
        "aesthetic.ImageAestheticFilterStage().weights(); "
        "print(sorted({'torch', 'open_clip', 'torchvision', 'huggingface_hub', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
