"""A weights file of any form -> tensors under open_clip's names: safetensors, OpenAI's archive, transformers' names.

Only the wanted tower's tensors are read. Pickles are opened with `weights_only`, or as TorchScript, where their hash
is a published one or the user's config names it; `weights.own` has refused all others before.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from curator.errors import WeightsError
from curator.models.published import CLIP_VIT_L_14
from curator.models.weights import PICKLES, fingerprint, refused_pickle

Tower = Literal["image", "text"]


def tower_state(file: Path, tower: Tower, trust: Iterable[str] = ()) -> dict[str, Any]:
    """The tensors (float32) of one tower under the names that open_clip's tower module has for them."""
    state = _pickled(file, trust) if file.suffix in PICKLES else _safetensors(file, tower)
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        state = from_transformers(state)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if tower == "image":
        chosen = {name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")}
    else:
        chosen = {name.removeprefix("text."): t for name, t in state.items() if not name.startswith("visual.")}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in chosen.items()}


def _safetensors(file: Path, tower: Tower) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = [n for n in opened.keys() if _of_images(n) == (tower == "image")]  # noqa: SIM118
            return {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise WeightsError(f"{file}: is damaged ({error}). Remove it and fetch it again.") from error


def _of_images(name: str) -> bool:
    """Whether a tensor belongs to the image tower, by open_clip's names or by transformers'."""
    return name.removeprefix("module.").startswith(("visual.", "vision_model.", "visual_projection."))


def _pickled(file: Path, trust: Iterable[str]) -> dict[str, Any]:
    """A trusted pickle's tensors: a TorchScript archive, of which only the numbers are taken, or a state dict."""
    import torch

    found = fingerprint(file)
    if found not in {f.sha256 for f in CLIP_VIT_L_14.files} and found not in trust:
        raise WeightsError(refused_pickle(file, found))
    if zipfile.is_zipfile(file) and any("/code/" in name for name in zipfile.ZipFile(file).namelist()):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the form is old, and stays
            return dict(torch.jit.load(file, map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    state = loaded.get("state_dict", loaded)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_TURNED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_TOWERS = {"vision_model": "visual.transformer", "text_model": "transformer"}


def from_transformers(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a transformers CLIP checkpoint under open_clip's names; q, k and v become one tensor."""
    import torch

    mapped = {_NAMES[name]: tensor for name, tensor in state.items() if name in _NAMES}
    mapped |= {_TURNED[name]: tensor.T.contiguous() for name, tensor in state.items() if name in _TURNED}
    for tower, target in _TOWERS.items():
        start = f"{tower}.encoder.layers."
        for n in {int(name[len(start) :].split(".")[0]) for name in state if name.startswith(start)}:
            block = f"{target}.resblocks.{n}"
            for kind in ("weight", "bias"):
                for theirs, ours in _LAYER.items():
                    mapped[f"{block}.{ours}.{kind}"] = state[f"{start}{n}.{theirs}.{kind}"]
                parts = [state[f"{start}{n}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                mapped[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return mapped
