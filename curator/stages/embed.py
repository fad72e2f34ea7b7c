"""embed: a CLIP image tower turns each picture into a unit vector. Downstream stages read the stored vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from curator.models.clip import DEMO, DEMO_MODEL, architecture, image_side
from curator.models.weights import PUBLISHED, find, own
from curator.stage import Array, ImageBatch, Need, Pixels, ProcessingStage, Weights, Worker, measures, speeds

KNOWN = {
    ("ViT-L-14-quickgelu", "openai"): "clip-vit-l-14-openai",
    ("ViT-L-14", "openai"): "clip-vit-l-14-openai",
}


class ImageEmbeddingStage(ProcessingStage):
    """Embed images with a model that open_clip knows; stored as float16 unit vectors, 768-d for ViT-L/14."""

    called: ClassVar[str] = "embed"
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("embedding",)

    model: str = measures("ViT-L-14-quickgelu")
    pretrained: str = measures("openai")
    precision: Literal["auto", "fp32", "bf16"] = measures("auto")
    shrink: int = measures(2, ge=0)
    model_dir: str | None = speeds(None)
    model_inference_batch_size: int = speeds(32, ge=1)
    num_gpus_per_worker: float = speeds(0.25, gt=0, le=1)
    verbose: bool = speeds(False)
    remove_image_data: bool = speeds(False)

    def needed(self) -> tuple[Need, ...]:
        """Pixels: the decoder may shrink a JPEG while its shorter side stays `shrink` times the model's."""
        return (Pixels(min_side=self.shrink * image_side(self.model) if self.shrink else None),)

    @property
    def space(self) -> str:
        """Model and pretrained tag: vectors of two spaces are never compared."""
        if Path(self.pretrained).suffix:
            return f"{self.model}/{self.weights()[0].id[:16]}"
        return f"{self.model}/{self.pretrained}"

    def weights(self) -> tuple[Weights, ...]:
        """The tower's file: of a published model, of the demo, or of one's own."""
        architecture(self.model)  # a misspelt model is said before its weights are looked for
        if self.model == DEMO_MODEL and self.pretrained == DEMO_MODEL:
            return (own(DEMO / f"{DEMO_MODEL}.safetensors"),)
        if Path(self.pretrained).suffix:
            return (own(Path(self.pretrained)),)
        if (published := KNOWN.get((self.model, self.pretrained))) is not None:
            return (find(PUBLISHED[published], self.model_dir),)
        return (_elsewhere(self.model, self.pretrained, self.model_dir),)

    def prepare(self, image: Image.Image) -> Array:
        """open_clip's Resize, CenterCrop and conversion: (S, S, 3) uint8."""
        return square(image, image_side(self.model))

    def setup(self, worker: Worker) -> Any:
        """The image tower on the worker's device; the text tower is not kept."""
        from curator.models.clip import image_tower
        from curator.models.weights import ensure

        return image_tower(self.model, self.pretrained, ensure(self.weights()[0]), self.precision, worker)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, S, S, 3) uint8 -> embedding (B, D) float32."""
        assert batch.pixels is not None
        return {"embedding": batch.model.embed(batch.pixels)}


def square(image: Image.Image, side: int) -> Array:
    """Shorter side to `side` (bicubic), the middle cut out, RGB, with torchvision's arithmetic: (side, side, 3) uint8.

    The conversion to RGB comes last, as in open_clip: converting first gives other numbers.
    """
    width, height = image.size
    if width <= height:
        size = (side, max(side, int(side * height / width)))
    else:
        size = (max(side, int(side * width / height)), side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    return np.asarray(image.crop((left, top, left + side, top + side)).convert("RGB"))


def _elsewhere(model: str, pretrained: str, model_dir: str | None) -> Weights:
    """Weights that Curator has no hash of: a file in `model_dir`, told apart by its own hash."""
    names = ("open_clip_model.safetensors", f"{model}.safetensors", f"{pretrained}.safetensors", "model.safetensors")
    folder = Path(model_dir) if model_dir is not None else None
    for path in [folder / name for name in names] if folder is not None and folder.is_dir() else []:
        if path.is_file():
            return own(path)
    if folder is not None and folder.is_file():
        return own(folder)
    missing = (
        f"{model}/{pretrained} is not among the weights that Curator fetches by itself. Put open_clip's safetensors "
        f"file into a folder as {names[0]} and name the folder with embed.model_dir."
    )
    return Weights(f"unknown:{model}/{pretrained}", None, missing)


