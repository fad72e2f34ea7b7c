"""nsfw: how probably a picture is not safe for work, from its CLIP vector; keeps what lies below a threshold."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from curator.models import heads
from curator.models.published import NSFW_L_14
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

WITH_VOCABULARIES = NSFW_L_14.only(lambda file: not file.name.endswith(".pth"))


class ImageNSFWFilterStage(ProcessingStage):
    """Score pictures with LAION's NSFW head for CLIP ViT-L/14 and keep those below `score_threshold`.

    `head=port` is what NeMo Curator computes. `laion` looks five columns up in vocabularies first, as LAION's own
    model does: one float16 step in those moves its score by up to 0.21.
    """

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
        return (Embedding(spaces=heads.DEMO_SPACE if self.head == "demo" else heads.VIT_L_14),)

    def weights(self) -> tuple[Weights, ...]:
        """The head's file. Raises WeightsError."""
        published = WITH_VOCABULARIES if self.head == "laion" else NSFW_L_14
        return (heads.head_weights(published, "nsfw.safetensors" if self.head == "demo" else None, self.model_dir),)

    def setup(self, worker: Worker) -> Any:
        """The head, in float64 on the processor: small, and the same bits everywhere."""
        return heads.NSFWHead(heads.tensors_of(ensure(self.weights()[0])), laion=self.head == "laion")

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, D) float16 -> nsfw_score (B,) float32, 0 safe to 1 unsafe."""
        return {"nsfw_score": batch.model.score(batch.embedding)}

    def keep(self, rows: Columns) -> Mask:
        """Below the threshold."""
        mask: Mask = rows["nsfw_score"] < self.score_threshold
        return mask
