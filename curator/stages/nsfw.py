"""nsfw: the probability that a picture is not safe for work, from its CLIP vector; keeps what lies below a threshold."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from curator.models.clip import DEMO
from curator.models.heads import NSFWHead, tensors_of
from curator.models.weights import PUBLISHED, ensure, find, own
from curator.stage import (
    Array, Columns, Embedding, ImageBatch, Mask, Need, ProcessingStage, Weights, Worker, decides, measures, speeds,
)  # fmt: skip

VIT_L_14 = ("ViT-L-14-quickgelu/openai",)


class ImageNSFWFilterStage(ProcessingStage):
    """Score pictures with LAION's NSFW head for CLIP ViT-L/14 and keep those below `score_threshold`."""

    called: ClassVar[str] = "nsfw"
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("nsfw_score",)

    head: Literal["port", "laion", "demo"] = measures("port")
    embedding: str | None = measures(None)
    score_threshold: float = decides(0.5, ge=0, le=1)
    model_dir: str | None = speeds(None)
    model_inference_batch_size: int = speeds(32, ge=1)
    num_gpus_per_worker: float = speeds(0.25, gt=0, le=1)
    verbose: bool = speeds(False)
    remove_image_data: bool = speeds(False)

    def needed(self) -> tuple[Need, ...]:
        """A vector of the space that the head was trained on."""
        return (Embedding(spaces=("curator-demo/curator-demo",) if self.head == "demo" else VIT_L_14),)

    def weights(self) -> tuple[Weights, ...]:
        """The head's file."""
        if self.head == "demo":
            return (own(DEMO / "nsfw.safetensors"),)
        return (find(PUBLISHED["laion-nsfw-l14"], self.model_dir),)

    def setup(self, worker: Worker) -> Any:
        """The head, in float64 on the processor: small, and the same bits everywhere."""
        return NSFWHead(tensors_of(ensure(self.weights()[0])), laion=self.head == "laion")

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, D) float16 -> nsfw_score (B,) float32, 0 safe to 1 unsafe."""
        return {"nsfw_score": batch.model.score(batch.embedding).astype(np.float32)}

    def keep(self, rows: Columns) -> Mask:
        """Below the threshold."""
        mask: Mask = rows["nsfw_score"] < self.score_threshold
        return mask
