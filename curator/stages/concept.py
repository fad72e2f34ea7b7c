"""concept: whether a picture shows what one's own words say, from its stored vector; another word decodes no image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator, model_validator

from curator.models.named import NamedModel, given_model, shared_model
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


class ImageConceptFilterStage(ProcessingStage):
    """Drop pictures that `prompts` describe better than `against` does, or keep those alone.

    As in CLIP's zero-shot classification, each picture is spread over all texts by a softmax of its cosines, times the
    factor that the model was trained with; `<name>_score` (0..1) is what falls on the prompts, `<name>_nearest` the
    text with the largest cosine. The columns carry the stage's name, so that a run may ask about several concepts.
    """

    called: ClassVar[str] = "concept"
    version: ClassVar[int] = 1

    prompts: tuple[str, ...] | None = measures(None)
    against: tuple[str, ...] = measures(("a photo",), min_length=1)
    matching: Literal["dropped", "kept"] = decides("dropped")
    score_threshold: float = decides(0.5, ge=0, le=1)
    embedding: str | None = measures(None)
    model: str | None = measures(None)
    pretrained: str | None = speeds(None)  # which weights it is takes part by their id, and not how they are named
    model_dir: str | None = speeds(None)
    trust_sha256: tuple[str, ...] = speeds(())
    num_gpus_per_worker: float = speeds(0.25, gt=0, le=1)

    @field_validator("prompts", "against", mode="before")
    @classmethod
    def _several(cls, texts: Any) -> Any:
        return (texts,) if isinstance(texts, str) else texts

    @model_validator(mode="after")
    def _possible(self) -> ImageConceptFilterStage:
        if any(not text.strip() for text in (*(self.prompts or ()), *self.against)):
            raise ValueError("prompts and against are texts, and one of them is empty")
        if both := set(self.prompts or ()) & set(self.against):
            raise ValueError(f"{sorted(both)[0]!r} is among prompts and against: no picture could be told")
        given_model(self.model, self.pretrained, self.model_dir, self.trust_sha256)
        return self

    def mistakes(self) -> Iterable[str]:
        """Without prompts there is nothing to look for."""
        if not self.prompts:
            yield f"{self.name}.prompts: must be given: what to look for, such as [a screenshot of text]."

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]  # of other stages these are the same for all
        """The score, and the text that is nearest."""
        return (f"{self.name}_score", f"{self.name}_nearest")

    @property
    def named(self) -> NamedModel | None:
        """The model, once it is given or known from the embedding."""
        return given_model(self.model, self.pretrained, self.model_dir, self.trust_sha256)

    def fed_by(self, giver: ProcessingStage) -> ProcessingStage:
        """With the model of the stage that embeds, where none is given."""
        return self.model_copy(update=shared_model(self.name, self.named, giver))

    def needed(self) -> tuple[Need, ...]:
        """A vector of the text tower's space."""
        return (Embedding(spaces=(self.named.space,) if self.named else None),)

    def weights(self) -> tuple[Weights, ...]:
        """The model's file, which holds both towers. Raises WeightsError."""
        return (self.named.weights(),) if self.named else ()

    def setup(self, worker: Worker) -> tuple[Array, float]:
        """The vectors of all texts (T, D), prompts first, and the model's factor; the tower is not needed any more."""
        assert self.named is not None, "wiring has told it"
        tower = self.named.text_tower(worker)
        return tower.embed([*(self.prompts or ()), *self.against]), tower.logit_scale

    def measure(self, batch: ImageBatch) -> dict[str, Array]:
        """(B, D) float16 -> the score (B,) float32 and the nearest text (B,)."""
        assert batch.embedding is not None
        texts_TD, scale = batch.model
        prompts, texts = len(self.prompts or ()), np.array([*(self.prompts or ()), *self.against], object)
        image_BD = batch.embedding.astype(np.float64)
        cosine_BT = image_BD @ texts_TD.T.astype(np.float64) / np.linalg.norm(image_BD, axis=1, keepdims=True)
        share_BT = np.exp(scale * (cosine_BT - cosine_BT.max(axis=1, keepdims=True)))
        score_B = share_BT[:, :prompts].sum(axis=1) / share_BT.sum(axis=1)
        return dict(zip(self.gives, (score_B.astype(np.float32), texts[cosine_BT.argmax(axis=1)]), strict=True))

    def keep(self, rows: Columns) -> Mask:
        """Below the threshold, or with `matching=kept` at or above it."""
        shows: Mask = rows[self.gives[0]] >= self.score_threshold
        return shows if self.matching == "kept" else ~shows
