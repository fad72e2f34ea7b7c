"""open_clip towers: an image or a text in, a vector out. The one module that imports open_clip.

What `prepare` needs of a model (the side of its picture) is read from open_clip's JSON without importing it, since
decoders run without torch.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from curator.errors import ConfigError, WeightsError
from curator.models.weights import PUBLISHED, fingerprint
from curator.stage import Array, Worker

DEMO = Path(__file__).parent.parent / "demo"
DEMO_MODEL = "curator-demo"
OPENAI_FILES = {f.sha256 for f in PUBLISHED["clip-vit-l-14-openai"].files}


@cache
def architecture(model: str) -> dict[str, Any]:
    """open_clip's config of a model. Raises ConfigError where there is none of that name."""
    path = config_file(model)
    if path is None:
        near = ", ".join(sorted(n for n in known_models() if n.split("-")[:2] == model.split("-")[:2])[:6])
        raise ConfigError(f"embed.model: open_clip knows no {model}. {f'Near it: {near}.' if near else ''}".strip())
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def config_file(model: str) -> Path | None:
    """Where a model's JSON lies: Curator's demo model, or one of open_clip's own."""
    for folder in (DEMO, _open_clip_configs()):
        if (folder / f"{model}.json").is_file():
            return folder / f"{model}.json"
    return None


def known_models() -> list[str]:
    """The names of all models that can be asked for."""
    return sorted([DEMO_MODEL, *(path.stem for path in _open_clip_configs().glob("*.json"))])


@cache
def _open_clip_configs() -> Path:
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.submodule_search_locations, "open_clip is a dependency"
    return Path(found.submodule_search_locations[0]) / "model_configs"


def image_side(model: str) -> int:
    """Pixels of the square that the image tower sees."""
    side = architecture(model)["vision_cfg"]["image_size"]
    return int(side[0] if isinstance(side, list) else side)


def import_open_clip() -> Any:
    """open_clip, also where torchvision was built for another torch than the one installed.

    There, `import torchvision` fails since its compiled operators are missing. Nothing here calls them; declaring
    two of them lets the import pass. Where torchvision imports normally, nothing is done.
    """
    import sys

    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _kept.append(library)  # a library that is collected takes its operators with it
    with quiet():
        import open_clip
    return open_clip


_kept: list[Any] = []


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip speaks on the root logger; what matters of it is checked here and said by us."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


@dataclass(frozen=True)
class Tower:
    """One tower on one device: module, its precision, and how pixels are normalised."""

    module: Any
    device: str
    bf16: bool
    mean: Any
    std: Any

    def embed(self, pixels_BHWC: Array) -> Array:
        """(B, H, W, 3) uint8 -> (B, D) float32, as open_clip's ToTensor, Normalize and encode_image."""
        import torch

        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            pixels = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(self.device).permute(0, 3, 1, 2)
            pixels = pixels.contiguous().float().div_(255).sub_(self.mean).div_(self.std)
            embedding: Array = self.module(pixels).float().cpu().numpy()
        return embedding


def image_tower(model: str, pretrained: str, file: Path, precision: str, worker: Worker) -> Tower:
    """The image tower alone, with the weights of `file`, on the worker's device."""
    import torch

    torch.set_num_threads(worker.threads)
    preprocessing = _preprocessing(model, pretrained)
    whole = _empty(model)
    visual = whole.visual
    state = state_of(file)
    loaded = {name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")}
    _fill(visual, loaded, file, model)
    mean, std = (torch.tensor(preprocessing[k], device=worker.device).view(3, 1, 1) for k in ("mean", "std"))
    bf16 = precision == "bf16" or (precision == "auto" and good_at_bf16(worker.device))
    return Tower(visual.to(worker.device).eval(), worker.device, bf16, mean, std)


def embed_texts(model: str, pretrained: str, file: Path, texts: Sequence[str]) -> Array:
    """(N, D) float32 unit vectors of texts, in the space that the same weights give to images."""
    import torch

    open_clip = import_open_clip()
    whole = _empty(model)
    _fill(whole, state_of(file), file, model)
    with quiet(), torch.inference_mode():
        tokens = open_clip.get_tokenizer(model)(list(texts))
        vectors: Array = whole.eval().encode_text(tokens, normalize=True).float().numpy()
    return vectors


def _empty(model: str) -> Any:
    """The whole model without its numbers: nothing is drawn at random only to be thrown away."""
    import torch

    open_clip = import_open_clip()
    register(model)
    with quiet(), torch.device("meta"):
        return open_clip.create_model(model, pretrained=None, device="meta", pretrained_text=False)


def register(model: str) -> None:
    """Make the demo model known to open_clip; its short vocabulary lies beside its config."""
    if model != DEMO_MODEL:
        return
    open_clip = import_open_clip()
    from open_clip import factory

    if DEMO_MODEL not in open_clip.list_models():
        open_clip.add_model_config(DEMO / f"{DEMO_MODEL}.json")
    text = factory._MODEL_CONFIGS[DEMO_MODEL]["text_cfg"]
    given = Path(text["tokenizer_kwargs"]["bpe_path"])
    text["tokenizer_kwargs"]["bpe_path"] = str(DEMO / given.name)


def _fill(module: Any, state: dict[str, Any], file: Path, model: str) -> None:
    """Put the numbers in place; all of them, or WeightsError."""
    import torch

    state = {name: tensor.float() for name, tensor in state.items()}
    for name, buffer in list(module.named_buffers()):  # masks are no weights: no file has them
        if name not in state and buffer.is_meta:
            size = buffer.shape[-1]
            state[name] = torch.full(buffer.shape, float("-inf")).triu_(1) if buffer.shape == (size, size) else buffer
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in wanted if name not in state]
    shapes = [name for name in wanted if name in state and tuple(state[name].shape) != wanted[name]]
    if missing or shapes:
        example = (missing or shapes)[0]
        raise WeightsError(
            f"{file}: does not fit {model}: {len(missing)} tensors are missing and {len(shapes)} have another shape, "
            f"such as {example}. Is embed.model the model that these weights belong to?"
        )
    module.load_state_dict({name: state[name] for name in wanted}, assign=True, strict=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # not part of the state dict
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], state[name])
    if any(t.is_meta for t in [*module.parameters(), *module.buffers()]):
        raise WeightsError(f"{file}: leaves parts of {model} without numbers.")


def state_of(file: Path) -> dict[str, Any]:
    """A file's tensors under open_clip's names, whatever form it has."""
    import torch

    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(file)
        except SafetensorError as error:
            raise WeightsError(f"{file}: is damaged ({error}). Remove it and fetch it again.") from error
    elif fingerprint(file) in OPENAI_FILES:  # a TorchScript archive: only its numbers are taken
        state = dict(torch.jit.load(file, map_location="cpu").state_dict())
    else:
        raise WeightsError(
            f"{file}: is a pickle of unknown sha256 ({fingerprint(file)}): it can run code and was not opened. Convert "
            "it: python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('FILE', weights_only=True), "
            "'open_clip_model.safetensors')\""
        )
    return from_transformers(state) if any(name.startswith("vision_model.") for name in state) else state


def good_at_bf16(device: str) -> bool:
    """Whether bf16 products are faster here than float32 ones."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _preprocessing(model: str, pretrained: str) -> dict[str, Any]:
    """Mean and standard deviation; refuses models that are resized in another way than `prepare` does."""
    open_clip = import_open_clip()
    given = open_clip.get_pretrained_cfg(model, pretrained) or {}
    if given.get("resize_mode") not in (None, "shortest") or given.get("interpolation") not in (None, "bicubic"):
        raise ConfigError(
            f"embed.model: {model}/{pretrained} is trained on pictures resized in another way "
            f"({given.get('resize_mode')}, {given.get('interpolation')}) than this stage does. A stage of your own can."
        )
    return {
        "mean": given.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        "std": given.get("std") or open_clip.OPENAI_DATASET_STD,
    }


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


def from_transformers(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a transformers CLIP checkpoint under open_clip's names; q, k and v become one tensor."""
    import torch

    mapped = {_NAMES[name]: tensor for name, tensor in state.items() if name in _NAMES}
    mapped |= {_TURNED[name]: tensor.T.contiguous() for name, tensor in state.items() if name in _TURNED}
    for tower, target in _TOWERS.items():
        start = f"{tower}.encoder.layers."
        numbers = {int(name[len(start) :].split(".")[0]) for name in state if name.startswith(start)}
        for n in numbers:
            block = f"{target}.resblocks.{n}"
            for kind in ("weight", "bias"):
                for theirs, ours in _LAYER.items():
                    mapped[f"{block}.{ours}.{kind}"] = state[f"{start}{n}.{theirs}.{kind}"]
                parts = [state[f"{start}{n}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                mapped[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return mapped
