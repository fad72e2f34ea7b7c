"""embed: a CLIP image tower turns each picture into a unit vector; the stages behind it read the stored vector.

`prepare` runs in decoders, without torch; everything heavy is imported where it is used.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationInfo, field_validator

from curator.models import weights
from curator.models.catalogue import Preprocessing
from curator.models.named import NamedModel, unknown_model, unknown_tag
from curator.stage import Array, ImageBatch, Need, Pixels, ProcessingStage, Weights, Worker, measures, speeds

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
        if mistake := unknown_model(model):
            raise ValueError(mistake)
        return model

    @field_validator("pretrained")
    @classmethod
    def _known_tag(cls, pretrained: str, info: ValidationInfo) -> str:
        if "model" in info.data and (mistake := unknown_tag(info.data["model"], pretrained)):
            raise ValueError(mistake)
        return pretrained

    @property
    def named(self) -> NamedModel:
        """The model, for whoever needs its other tower."""
        return NamedModel(self.model, self.pretrained, self.model_dir, self.trust_sha256)

    def needed(self) -> tuple[Need, ...]:
        """Pixels: the decoder may shrink a JPEG while its shorter side stays `shrink` times the model's."""
        return (Pixels(min_side=self.shrink * self.preprocessing.side if self.shrink else None),)

    @property
    def preprocessing(self) -> Preprocessing:
        """How this model's pictures are prepared."""
        return self.named.preprocessing

    @property
    def space(self) -> str:
        """Model and pretrained tag; for weights that nobody published, their hash in place of the tag."""
        return self.named.space

    def measure_fields(self) -> dict[str, Any]:
        """As of every stage, less where a file lies: its hash is among the weights' ids."""
        return super().measure_fields() | ({"pretrained": "file"} if self.named.is_file else {})

    def weights(self) -> tuple[Weights, ...]:
        """The tower's file: of a published model, of the demo, or of one's own. Raises WeightsError."""
        return (self.named.weights(),)

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
