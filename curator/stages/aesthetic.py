"""aesthetic: how well a picture would be liked, from its CLIP vector; keeps what lies at or above a threshold."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from curator.models.clip import DEMO
from curator.models.heads import AestheticHead, tensors_of
from curator.models.weights import PUBLISHED, ensure, find, own
from curator.stage import (
    Array, Columns, Embedding, ImageBatch, Mask, Need, ProcessingStage, Weights, Worker, decides, measures, speeds,
)  # fmt: skip

VIT_L_14 = ("ViT-L-14-quickgelu/openai",)


class ImageAestheticFilterStage(ProcessingStage):
    """Score pictures with LAION's aesthetic predictor V2 and keep those at or above `score_threshold`.

    LAION's own scale is about 1 to 10 (`aesthetic_laion`); `aesthetic_score` is that divided by ten, clipped to 0..1.
    """

    called: ClassVar[str] = "aesthetic"
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("aesthetic_score", "aesthetic_laion")

    head: Literal["laion", "demo"] = measures("laion")
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
            return (own(DEMO / "aesthetic.safetensors"),)
        return (find(PUBLISHED["laion-aesthetic-v2-l14"], self.model_dir),)

    def setup(self, worker: Worker) -> Any:
        """The head, in float64 on the processor: small, and the same bits everywhere."""
        return AestheticHead(tensors_of(ensure(self.weights()[0])))

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, D) float16 -> aesthetic_score (B,) 0..1 and aesthetic_laion (B,) about 1..10, float32."""
        raw = batch.model.raw(batch.embedding)
        return {
            "aesthetic_score": np.clip(raw / 10, 0, 1).astype(np.float32),
            "aesthetic_laion": raw.astype(np.float32),
        }

    def keep(self, rows: Columns) -> Mask:
        """At or above the threshold."""
        mask: Mask = rows["aesthetic_score"] >= self.score_threshold
        return mask
