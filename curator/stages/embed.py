"""embed: a CLIP image tower turns each picture into a unit vector; the stages behind it read the stored vector.

`prepare` runs in decoders, without torch; everything heavy is imported where it is used.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationInfo, field_validator

from curator.errors import WeightsError
from curator.models import catalogue, weights
from curator.models.catalogue import Preprocessing
from curator.models.published import CLIP_VIT_L_14, DEMO, DEMO_MODEL
from curator.stage import Array, ImageBatch, Need, Pixels, ProcessingStage, Weights, Worker, measures, speeds

PUBLISHED_AS = {("ViT-L-14-quickgelu", "openai"): CLIP_VIT_L_14}
"""Models whose files Curator knows by their hashes."""

STRIP = 50
"""Pictures that are longer than this many times their width are scaled in one step with cutting."""


class ImageEmbeddingStage(ProcessingStage):
    """Embed images with a model that open_clip knows; stored as float16 unit vectors, 768-d for ViT-L/14."""

    called: ClassVar[str] = "embed"
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("embedding",)

    model: str = measures("ViT-L-14-quickgelu")
    pretrained: str = measures("openai", min_length=1)
    precision: Literal["auto", "fp32", "bf16"] = measures("auto")
    shrink: int = measures(3, ge=0)
    model_dir: str | None = speeds(None)
    trust_sha256: tuple[str, ...] = speeds(())
    model_inference_batch_size: int = speeds(32, ge=1)
    num_gpus_per_worker: float = speeds(0.25, gt=0, le=1)
    verbose: bool = speeds(False)
    remove_image_data: bool = speeds(False)

    @field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        try:
            catalogue.architecture(model)
        except KeyError:
            near = difflib.get_close_matches(model, catalogue.known_models(), 4, 0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"open_clip knows no model {model}.{hint}") from None
        return model

    @field_validator("pretrained")
    @classmethod
    def _known_tag(cls, pretrained: str, info: ValidationInfo) -> str:
        model = info.data.get("model")
        if model is None or _is_file(pretrained):
            return pretrained
        row = catalogue.published_as(model, pretrained)
        if row is None:
            raise ValueError(
                f"open_clip has no weights {pretrained} for {model}. It has {', '.join(catalogue.tags_of(model))}; "
                "a file of your own is named by its path, with its suffix."
            )
        if row.get("quick_gelu", False) != catalogue.architecture(model).get("quick_gelu", False):
            raise ValueError(
                f"the weights {pretrained} were trained with QuickGELU and {model} computes GELU, which gives other "
                f"vectors. Set model={model}-quickgelu."
                if row.get("quick_gelu")
                else f"the weights {pretrained} were not trained with QuickGELU. Set model={model.split('-quick')[0]}."
            )
        return pretrained

    def needed(self) -> tuple[Need, ...]:
        """Pixels: the decoder may shrink a JPEG while its shorter side stays `shrink` times the model's."""
        return (Pixels(min_side=self.shrink * self.preprocessing.side if self.shrink else None),)

    @property
    def preprocessing(self) -> Preprocessing:
        """How this model's pictures are prepared."""
        return catalogue.preprocessing(self.model, None if _is_file(self.pretrained) else self.pretrained)

    @property
    def space(self) -> str:
        """Model and pretrained tag; for weights that nobody published, their hash in place of the tag."""
        if (self.model, self.pretrained) in {*PUBLISHED_AS, (DEMO_MODEL, DEMO_MODEL)}:
            return f"{self.model}/{self.pretrained}"
        try:
            found = self.weights()[0].id
        except WeightsError:  # is said where weights are asked for
            found = "unknown"
        tags = (tag for (model, tag), published in PUBLISHED_AS.items() if (model, published.id) == (self.model, found))
        return f"{self.model}/{next(tags, found[:16])}"

    def measure_fields(self) -> dict[str, Any]:
        """As of every stage, less where a file lies: its hash is among the weights' ids."""
        return super().measure_fields() | ({"pretrained": "file"} if _is_file(self.pretrained) else {})

    def weights(self) -> tuple[Weights, ...]:
        """The tower's file: of a published model, of the demo, or of one's own. Raises WeightsError."""
        if _is_file(self.pretrained):
            return (weights.own(Path(self.pretrained).expanduser(), self.trust_sha256),)
        if self.model == DEMO_MODEL:
            return (weights.own(DEMO / f"{DEMO_MODEL}.safetensors"),)
        names = [f"{stem}{suffix}" for stem in (self.model, self.pretrained) for suffix in (".safetensors", ".pt")]
        if (published := PUBLISHED_AS.get((self.model, self.pretrained))) is not None:
            return (weights.find(published, self.model_dir, names, self.trust_sha256),)
        return (self._elsewhere(names),)

    def _elsewhere(self, names: list[str]) -> Weights:
        """Weights that Curator has no hash of: a file in `model_dir` or the hub's cache, told apart by its own hash."""
        hub = str((catalogue.published_as(self.model, self.pretrained) or {}).get("hf_hub", "")).strip("/")
        below = (hub, *(f"{place}models--{hub.replace('/', '--')}/snapshots/*" for place in ("", "hub/")))
        for folder in [Path(self.model_dir)] if self.model_dir is not None else weights.usual_folders():
            if folder.is_file():
                return weights.own(folder, self.trust_sha256)
            places = [folder, *(place for pattern in below if hub for place in sorted(folder.glob(pattern)))]
            for place in places:
                for name in ("open_clip_model.safetensors", *names, "model.safetensors"):
                    if (place / name).is_file():
                        return weights.own(place / name, self.trust_sha256)
        source = f"https://huggingface.co/{hub}/resolve/main/open_clip_model.safetensors" if hub else "its publisher"
        missing = (
            f"{self.model}/{self.pretrained} is not in {self.model_dir or weights.cache_folder() / 'models'}, and not "
            f"among the weights that Curator fetches by itself. Put {names[0]} there, from {source}."
        )
        return Weights(f"unknown:{self.model}/{self.pretrained}", None, missing)

    def prepare(self, image: Image.Image) -> Array:
        """open_clip's resizing, cropping and conversion: (S, S, 3) uint8."""
        return square(image, self.preprocessing)

    def setup(self, worker: Worker) -> Any:
        """The image tower on the worker's device; the text tower is never built."""
        from curator.models.clip import image_tower

        file = weights.ensure(self.weights()[0])
        return image_tower(self.model, self.preprocessing, file, self.precision, worker, self.trust_sha256)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, S, S, 3) uint8 -> embedding (B, D) float32."""
        assert batch.pixels is not None
        return {"embedding": batch.model.embed(batch.pixels)}


def _is_file(pretrained: str) -> bool:
    """Whether weights are named by their path and not by open_clip's tag."""
    return os.sep in pretrained or Path(pretrained).suffix in {".safetensors", *weights.PICKLES}


def square(image: Image.Image, how: Preprocessing) -> Array:
    """A picture as the model sees it, with torchvision's arithmetic: (side, side, 3) uint8.

    The conversion to RGB comes last, as in open_clip: converting first gives other numbers.
    """
    side, (width, height) = how.side, image.size
    filter_ = Image.Resampling.BILINEAR if how.bilinear else Image.Resampling.BICUBIC
    if how.squash:
        across, down = side, side
    else:
        across, down = (
            max(side, int(side * width / min(width, height))),
            max(side, int(side * height / min(width, height))),
        )
    left, top = round((across - side) / 2.0), round((down - side) / 2.0)
    if max(across, down) > STRIP * side:  # a strip: only what will be seen of it is scaled, else one takes gigabytes
        x, y = width / across, height / down
        image = image.resize((side, side), filter_, (left * x, top * y, (left + side) * x, (top + side) * y))
    else:
        image = image.resize((across, down), filter_) if (across, down) != image.size else image
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.convert("RGB"))
