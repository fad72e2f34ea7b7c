"""open_clip towers: pictures or texts in, vectors out. The one module that imports open_clip.

Only the tower that is asked for is built and read; it is a function of its weights alone. Next to read:
`checkpoints.py`, how a file becomes tensors; `catalogue.py`, what is known of a model without open_clip.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator import machine
from curator.errors import ConfigError, OutsideError, WeightsError
from curator.models import catalogue
from curator.models.catalogue import Preprocessing
from curator.models.checkpoints import tower_state
from curator.models.published import DEMO, DEMO_MODEL
from curator.stage import Array, Worker

OPENAI_SCALE = 100.0
"""What CLIP multiplies cosines by before a softmax, where the weights do not say."""

_kept: list[Any] = []


def import_open_clip() -> Any:
    """open_clip, also where torchvision was built for another torch than the one installed.

    There, `import torchvision` fails since its compiled operators are missing. Nothing here calls them; declaring
    two of them lets the import pass. Where torchvision imports normally, nothing is done.
    """
    import sys

    import torch

    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _kept.append(library)  # a library that is collected takes its operators with it
    with quiet():
        import open_clip
    return open_clip


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
class ImageTower:
    """One image tower on one device, and how its pixels are normalised."""

    module: Any
    device: str
    bf16: bool
    preprocessing: Preprocessing

    def embed(self, pixels_BHWC: Array) -> Array:
        """(B, H, W, 3) uint8 -> (B, D) float32, as open_clip's ToTensor, Normalize and encode_image.

        Raises OutsideError where the device's memory is too small: a smaller batch is not tried by itself, since the
        shape of a batch is part of the result.
        """
        import torch

        try:
            with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                embedding: Array = self.module(self.normalised(pixels_BHWC)).float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise OutsideError(
                f"the memory of the {self.device} device is too small for batches of {len(pixels_BHWC)} images. What "
                "was measured is kept: lower embed.model_inference_batch_size, or cluster.in_flight, and run again."
            ) from error
        return embedding

    def normalised(self, pixels_BHWC: Array) -> Any:
        """(B, H, W, 3) uint8 -> tensor (B, 3, H, W) float32 on the device: /255, mean off, over the deviation."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(self.device)
        how = self.preprocessing
        mean, std = (torch.tensor(three, device=self.device).view(3, 1, 1) for three in (how.mean, how.std))
        return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255).sub_(mean).div_(std)


def image_tower(
    model: str, preprocessing: Preprocessing, file: Path, precision: str, worker: Worker, trust: Iterable[str] = ()
) -> ImageTower:
    """The image tower with the weights of `file`, on the worker's device.

    `precision`: fp32, bf16, or auto: bf16 where the device multiplies it faster. Raises WeightsError.
    """
    import torch

    torch.set_num_threads(worker.threads)
    bf16 = precision == "bf16" or (precision == "auto" and machine.good_at_bf16(worker.device))
    if worker.device.startswith("cuda") and not bf16:  # "fp32" means it: convolutions would round to tf32
        torch.backends.cudnn.allow_tf32 = False
    module = _tower("_build_vision_tower", "vision_cfg", model)
    _fill(module, tower_state(file, "image", trust), file, model)
    if bf16:
        _to_bf16(module)
    return ImageTower(module.to(worker.device).eval(), worker.device.partition(":")[0], bf16, preprocessing)


@dataclass(frozen=True)
class TextTower:
    """One text tower on one device, its tokenizer, and the factor that the model was trained to multiply cosines by."""

    module: Any
    device: str
    tokens_of: Callable[[list[str]], Any]
    logit_scale: float

    def embed(self, texts: Sequence[str], batch_size: int = 32) -> Array:
        """(T, D) float32 unit vectors of texts. Equal texts are embedded once, in batches of one shape."""
        import torch

        distinct = list(dict.fromkeys(texts))
        vectors = []
        with torch.inference_mode():
            for start in range(0, len(distinct), batch_size):
                some = distinct[start : start + batch_size]
                tokens = self.tokens_of(some + [""] * (batch_size - len(some))).to(self.device)
                unit = torch.nn.functional.normalize(self.module(tokens).float(), dim=-1)
                vectors.append(unit[: len(some)].cpu().numpy())
        place = {text: number for number, text in enumerate(distinct)}
        every: Array = np.concatenate(vectors)[[place[text] for text in texts]] if vectors else np.zeros((0, 0))
        return every


def text_tower(model: str, file: Path, worker: Worker, trust: Iterable[str] = ()) -> TextTower:
    """The text tower with the weights of `file`, in fp32 on the worker's device. Raises ConfigError, WeightsError."""
    import torch

    if mistake := catalogue.no_texts(model):
        raise ConfigError(f"embed.model: {mistake}")
    torch.set_num_threads(worker.threads)
    module = _tower("_build_text_tower", "text_cfg", model)
    state = tower_state(file, "text", trust)
    scale = float(state["logit_scale"].exp()) if "logit_scale" in state else OPENAI_SCALE
    _fill(module, state, file, model)
    return TextTower(module.to(worker.device).eval(), worker.device, _tokenizer(model), scale)


def _tokenizer(model: str) -> Callable[[list[str]], Any]:
    open_clip = import_open_clip()
    register(model)
    with quiet():
        tokenizer: Callable[[list[str]], Any] = open_clip.get_tokenizer(model)
    return tokenizer


def _tower(builder: str, part: str, model: str) -> Any:
    """One tower without its numbers: nothing is drawn at random only to be thrown away.

    Where a tower keeps numbers that no file has (a causal mask), it is built a second time to have them.
    """
    import torch

    import_open_clip()
    import open_clip.model

    config = catalogue.architecture(model)
    settings = copy.deepcopy(config[part])
    if "timm_model_name" in settings:
        settings["timm_model_pretrained"] = False  # it would download numbers that are then replaced
    # open_clip's public create_model builds, fills and keeps both towers
    build: Callable[..., Any] = getattr(open_clip.model, builder)
    with quiet(), torch.device("meta"):
        module = build(config["embed_dim"], settings, config.get("quick_gelu", False))
    if set(dict(module.named_buffers())) - set(module.state_dict()):
        with quiet():
            module = build(config["embed_dim"], settings, config.get("quick_gelu", False))
    return module


def register(model: str) -> None:
    """Make the demo model known to open_clip; its short vocabulary lies beside its config."""
    if model != DEMO_MODEL:
        return
    open_clip = import_open_clip()
    from open_clip import factory

    if DEMO_MODEL not in open_clip.list_models():
        open_clip.add_model_config(DEMO / f"{DEMO_MODEL}.json")
    tokenizer = factory._MODEL_CONFIGS[DEMO_MODEL]["text_cfg"].get("tokenizer_kwargs", {})
    if "bpe_path" in tokenizer:
        tokenizer["bpe_path"] = str(DEMO / Path(tokenizer["bpe_path"]).name)


def _fill(module: Any, state: Mapping[str, Any], file: Path, model: str) -> None:
    """Put the numbers in place; all of them, or WeightsError: a model with random parts would give silent nonsense."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in wanted if name not in state]
    shapes = [name for name in wanted if name in state and tuple(state[name].shape) != wanted[name]]
    if missing or shapes:
        raise WeightsError(
            f"{file}: does not fit {model}: {len(missing)} tensors are missing and {len(shapes)} have another shape, "
            f"such as {(missing or shapes)[0]}. Is embed.model the model that these weights belong to?"
        )
    module.load_state_dict({name: state[name] for name in wanted}, assign=True, strict=True)
    assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()]), "every part has its numbers"


def _to_bf16(module: Any) -> None:
    """Keep the big matrices in bf16, so that autocast need not convert them for every batch; sums stay float32.

    In a ViT the first convolution decides the type of the sum that runs through all blocks. In float32 it keeps the
    vectors four times closer to those of fp32 (ViT-L/14, random weights: cosine 0.99998, else 0.9999) at no cost.
    """
    import torch
    from open_clip.transformer import VisionTransformer

    for part in module.modules():
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d | torch.nn.MultiheadAttention):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    if isinstance(module, VisionTransformer):
        module.conv1.register_forward_hook(lambda _part, _given, patches: patches.float())
