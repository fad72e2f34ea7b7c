"""The NSFW and aesthetic heads, loaded exactly and computed in float64: the same bits on any device and batch size.

Facts of both heads, their files and their traps: LAION-AI/CLIP-based-NSFW-Detector (MIT) and
christophschuhmann/improved-aesthetic-predictor (Apache-2.0), compared with what those programs give.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

from curator.errors import WeightsError
from curator.models.published import DEMO, DEMO_MODEL, Published
from curator.models.weights import find, own, whose
from curator.stage import Array, Weights

Tensors = Mapping[str, Array]
CATEGORICAL = (180, 316, 413, 440, 644)
"""Columns that LAION's own NSFW model takes for categories: a value's text is looked up in a vocabulary."""

BLOCK_ROWS = 256
"""Rows are always multiplied in blocks of this many: matrix products round by their shape."""

VIT_L_14 = ("ViT-L-14-quickgelu/openai",)
DEMO_SPACE = (f"{DEMO_MODEL}/{DEMO_MODEL}",)
"""The embedding spaces that heads were trained on."""


def head_weights(published: Published, demo: str | None, model_dir: str | None) -> Weights:
    """A head's file: the demo's of that name, or the published one. Raises WeightsError."""
    return own(DEMO / demo) if demo is not None else find(published, model_dir)


def tensors_of(file: Path) -> dict[str, Array]:
    """A head's tensors by name, from safetensors, a published `.pth`, or LAION's Keras archive. Raises WeightsError."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            loaded: dict[str, Array] = load_file(file)
        except SafetensorError as error:
            raise WeightsError(f"{file}: is damaged ({error}). Remove it and fetch it again.") from error
        return loaded
    if whose(file) is None:
        raise WeightsError(f"{file}: is no safetensors file and not a published one; it was not opened.")
    if file.suffix == ".zip":
        from curator.models.keras_archive import nsfw_tensors

        return nsfw_tensors(file)
    import torch

    state = torch.load(file, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


class AestheticHead:
    """LAION's five linear layers, with no activation between them: one affine map of the unit vector."""

    def __init__(self, tensors: Tensors) -> None:
        layers = sorted({int(name.split(".")[1]) for name in tensors})
        width = tensors[f"layers.{layers[0]}.weight"].shape[1]
        weight, bias = np.eye(width), np.zeros(width)
        for n in layers:
            w = tensors[f"layers.{n}.weight"].astype(np.float64)
            weight, bias = w @ weight, w @ bias + tensors[f"layers.{n}.bias"]
        self.weight, self.bias = weight[0], float(bias[0])

    def raw(self, emb_ND: Array) -> Array:
        """(N, D) unit vectors -> (N,) float32 on LAION's own scale, about 1 to 10."""
        blocks = [(block @ self.weight + self.bias)[:count] for block, count in _blocks(emb_ND)]
        return np.concatenate([np.empty(0), *blocks]).astype(np.float32)


class NSFWHead:
    """Normalise, three ReLU layers, one output, sigmoid; `laion` looks the categorical columns up first.

    Raises WeightsError where that is asked of a file without the vocabularies.
    """

    def __init__(self, tensors: Tensors, laion: bool = False) -> None:
        t = {_PORT.get(name, name): tensor for name, tensor in tensors.items()}
        self.mean = t["mean"].astype(np.float64).reshape(-1)
        self.scale = np.maximum(np.sqrt(t["variance"].astype(np.float64).reshape(-1)), 1e-7)
        layers = itertools.takewhile(lambda n: f"w{n}" in t, itertools.count(1))
        self.layers = [(t[f"w{n}"].astype(np.float64), t[f"b{n}"].astype(np.float64)) for n in layers]
        if laion and f"vocab_{CATEGORICAL[0]}" not in t:
            raise WeightsError("nsfw.head=laion: this file of weights has no vocabularies; LAION's zip has them.")
        self.blas = ThreadpoolController()
        self.vocabularies = {c: t[f"vocab_{c}"] for c in CATEGORICAL} if laion else {}

    def score(self, emb_ND: Array) -> Array:
        """(N, D) unit vectors -> (N,) float32, the probability of unsafe."""
        with self.blas.limit(limits=1):  # products this small take six times as long on two busy cores as on one
            blocks = [self._score(block)[:count] for block, count in _blocks(emb_ND)]
        return np.concatenate([np.empty(0), *blocks]).astype(np.float32)

    def _score(self, x: Array) -> Array:
        x = (self._looked_up(x) - self.mean) / self.scale
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0)
        weight, bias = self.layers[-1]
        logits = (x @ weight.T + bias)[:, 0]
        probability: Array = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
        return probability

    def _looked_up(self, x: Array) -> Array:
        """Each categorical value replaced by its id (0: absent). Meant for float16 vectors, as LAION's own were.

        Keras prints the value as `%f`; the vocabularies hold those texts in units of 1e-6.
        """
        for column, vocabulary in self.vocabularies.items():
            order = np.argsort(vocabulary)
            printed = np.rint(x[:, column] * 1e6).astype(np.int64)
            place = np.minimum(np.searchsorted(vocabulary, printed, sorter=order), len(vocabulary) - 1)
            hit = vocabulary[order[place]] == printed
            x[:, column] = np.where(hit, order[place] + 1, 0)
        return x


_PORT = {
    "norm.mean": "mean",
    "norm.variance": "variance",
    **{f"linear_{n}.weight": f"w{n}" for n in (1, 2, 3, 4)},
    **{f"linear_{n}.bias": f"b{n}" for n in (1, 2, 3, 4)},
}


def _blocks(emb_ND: Array) -> list[tuple[Array, int]]:
    """Rows in float64, in blocks of one shape, the last one padded; how many of each count.

    The vectors are taken as they are stored (float16, unit to 5e-4) and not scaled again.
    """
    blocks = []
    for start in range(0, len(emb_ND), BLOCK_ROWS):
        rows = emb_ND[start : start + BLOCK_ROWS]
        block = np.zeros((BLOCK_ROWS, emb_ND.shape[1]))
        block[: len(rows)] = rows
        blocks.append((block, len(rows)))
    return blocks
