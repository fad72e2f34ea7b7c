"""aesthetic: how well a picture would be liked, from its CLIP vector; keeps what lies at or above a threshold.

Next to read: `ledger.py`, what comes out of a run.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from curator.models import heads
from curator.models.published import AESTHETIC_L_14
from curator.models.weights import ensure
from curator.stage import (
    Array,
    Columns,
    Embedding,
    ImageBatch,
    Mask,
    Need,
    ProcessingStage,
    Weights,
    Worker,
    decides,
    measures,
    speeds,
)


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
        return (Embedding(spaces=heads.DEMO_SPACE if self.head == "demo" else heads.VIT_L_14),)

    def weights(self) -> tuple[Weights, ...]:
        """The head's file. Raises WeightsError."""
        demo = "aesthetic.safetensors" if self.head == "demo" else None
        return (heads.head_weights(AESTHETIC_L_14, demo, self.model_dir),)

    def setup(self, worker: Worker) -> Any:
        """The head, in float64 on the processor: small, and the same bits everywhere."""
        return heads.AestheticHead(heads.tensors_of(ensure(self.weights()[0])))

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, D) float16 -> aesthetic_score (B,) 0..1 and aesthetic_laion (B,) about 1..10, float32."""
        raw = batch.model.raw(batch.embedding)
        return {"aesthetic_score": np.clip(raw / 10, 0, 1), "aesthetic_laion": raw}

    def keep(self, rows: Columns) -> Mask:
        """At or above the threshold."""
        mask: Mask = rows["aesthetic_score"] >= self.score_threshold
        return mask
