"""clip_score: how well a picture and its own caption agree, by the cosine of their CLIP vectors."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import model_validator

from curator.models.named import NamedModel, given_model, shared_model
from curator.stage import (
    Array,
    Column,
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


class ImageCaptionAgreementFilterStage(ProcessingStage):
    """Keep pictures whose `clip_score` is at or above `score_threshold`; one without a caption is left to `caption`.

    `clip_score` is the plain cosine, -1 to 1, as img2dataset's and DataComp's columns have it (Hessel's CLIPScore is
    2.5 times that, cut at 0). The text tower is that of the model whose vectors the pictures have.
    """

    called: ClassVar[str] = "clip_score"
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("clip_score",)

    embedding: str | None = measures(None)
    score_threshold: float = decides(0.2, ge=-1, le=1)
    model: str | None = measures(None)
    pretrained: str | None = speeds(None)  # which weights it is takes part by their id, and not how they are named
    model_dir: str | None = speeds(None)
    trust_sha256: tuple[str, ...] = speeds(())
    model_inference_batch_size: int = speeds(32, ge=1)
    num_gpus_per_worker: float = speeds(0.25, gt=0, le=1)

    @model_validator(mode="after")
    def _possible(self) -> ImageCaptionAgreementFilterStage:
        given_model(self.model, self.pretrained, self.model_dir, self.trust_sha256)
        return self

    @property
    def named(self) -> NamedModel | None:
        """The model, once it is given or known from the embedding."""
        return given_model(self.model, self.pretrained, self.model_dir, self.trust_sha256)

    def fed_by(self, giver: ProcessingStage) -> ProcessingStage:
        """With the model of the stage that embeds, where none is given."""
        return self.model_copy(update=shared_model(self.name, self.named, giver))

    def needed(self) -> tuple[Need, ...]:
        """A vector of the text tower's space, and a caption."""
        return (Embedding(spaces=(self.named.space,) if self.named else None), Column("caption"))

    def weights(self) -> tuple[Weights, ...]:
        """The model's file, which holds both towers. Raises WeightsError."""
        return (self.named.weights(),) if self.named else ()

    def setup(self, worker: Worker) -> Any:
        """The text tower."""
        assert self.named is not None, "wiring has told it"
        return self.named.text_tower(worker)

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, D) float16 and captions -> clip_score (B,) float32."""
        assert batch.embedding is not None
        image_BD = batch.embedding.astype(np.float64)
        text_BD = batch.model.embed(list(batch.columns["caption"]), self.model_inference_batch_size)
        cosine_B = np.einsum("bd,bd->b", image_BD, text_BD) / np.linalg.norm(image_BD, axis=1)
        return {"clip_score": cosine_B.astype(np.float32)}

    def keep(self, rows: Columns) -> Mask:
        """At or above the threshold."""
        mask: Mask = rows["clip_score"] >= self.score_threshold
        return mask
