"""The NSFW and aesthetic heads, loaded exactly and computed in float64: the same bits on any device and batch size.

Facts of both heads, their files and their traps: LAION-AI/CLIP-based-NSFW-Detector (MIT) and
christophschuhmann/improved-aesthetic-predictor (Apache-2.0), compared with what those programs give.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from curator.errors import WeightsError
from curator.models.weights import PUBLISHED, fingerprint
from curator.stage import Array

Tensors = Mapping[str, Array]
CATEGORICAL = (180, 316, 413, 440, 644)
"""Columns that LAION's own NSFW model takes for categories: a value's text is looked up in a vocabulary."""


def tensors_of(file: Path) -> dict[str, Array]:
    """A head's tensors by name, from safetensors, a known `.pth`, or LAION's Keras archive."""
    if file.suffix == ".safetensors":
        from safetensors.numpy import load_file

        loaded: dict[str, Array] = load_file(file)
        return loaded
    known = {f.sha256 for p in PUBLISHED.values() for f in p.files}
    if fingerprint(file) not in known:
        raise WeightsError(f"{file}: is no safetensors file and not a file that Curator knows; it was not opened.")
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
        """(N, D) vectors -> (N,) float64 on LAION's own scale, about 1 to 10."""
        scores: Array = unit(emb_ND) @ self.weight + self.bias
        return scores


class NSFWHead:
    """Normalise, three ReLU layers, one output, sigmoid; `laion` looks the categorical columns up first."""

    def __init__(self, tensors: Tensors, laion: bool = False) -> None:
        t = {_PORT.get(name, name): tensor for name, tensor in tensors.items()}
        self.mean = t["mean"].astype(np.float64).reshape(-1)
        self.scale = np.maximum(np.sqrt(t["variance"].astype(np.float64).reshape(-1)), 1e-7)
        self.layers = [(t[f"w{n}"].astype(np.float64), t[f"b{n}"].astype(np.float64)) for n in (1, 2, 3, 4)]
        self.vocabularies = {c: t[f"vocab_{c}"] for c in CATEGORICAL} if laion else {}

    def score(self, emb_ND: Array) -> Array:
        """(N, D) vectors -> (N,) float64, the probability of unsafe."""
        x = unit(emb_ND) if not self.vocabularies else self._looked_up(emb_ND)
        x = (x - self.mean) / self.scale
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0)
        weight, bias = self.layers[-1]
        logits = (x @ weight.T + bias)[:, 0]
        probability: Array = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
        return probability

    def _looked_up(self, emb_ND: Array) -> Array:
        """Each categorical value replaced by its id (0: absent). Meant for vectors that went through float16, as LAION's did.

        Keras prints the value as `%f`; the vocabularies hold those texts in units of 1e-6.
        """
        x = unit(emb_ND).copy()
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


def unit(emb_ND: Array) -> Array:
    """Vectors as they are stored (float16, unit to 5e-4), in float64 and not scaled again."""
    return np.asarray(emb_ND, dtype=np.float64)
