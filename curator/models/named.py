"""A model as open_clip names it: the weights that it is, and the space that its pictures and texts meet in.

Imports no torch. Next to read: `clip.py`, the towers themselves.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.cache import cache_folder
from curator.errors import ConfigError, WeightsError
from curator.models import catalogue, weights
from curator.models.catalogue import Preprocessing
from curator.models.published import CLIP_VIT_L_14, DEMO, DEMO_MODEL
from curator.stage import Array, ProcessingStage, Weights, Worker

if TYPE_CHECKING:
    from curator.models.clip import TextTower

PUBLISHED_AS = {("ViT-L-14-quickgelu", "openai"): CLIP_VIT_L_14}
"""Models whose files Curator knows by their hashes."""


@dataclass(frozen=True)
class NamedModel:
    """`model` and `pretrained` as open_clip spells them, or the path of a weights file; where weights may lie."""

    model: str
    pretrained: str
    model_dir: str | None = None
    trust_sha256: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether weights are named by their path and not by open_clip's tag."""
        return is_file(self.pretrained)

    @property
    def preprocessing(self) -> Preprocessing:
        """How this model's pictures are prepared."""
        return catalogue.preprocessing(self.model, None if self.is_file else self.pretrained)

    @property
    def space(self) -> str:
        """Model and pretrained tag; for weights that nobody published, their hash in place of the tag."""
        if (self.model, self.pretrained) in {*PUBLISHED_AS, (DEMO_MODEL, DEMO_MODEL)}:
            return f"{self.model}/{self.pretrained}"
        try:
            found = self.weights().id
        except WeightsError:  # is said where weights are asked for
            found = "unknown"
        tags = (tag for (model, tag), published in PUBLISHED_AS.items() if (model, published.id) == (self.model, found))
        return f"{self.model}/{next(tags, found[:16])}"

    def weights(self) -> Weights:
        """The file of both towers: of a published model, of the demo, or of one's own. Raises WeightsError."""
        if self.is_file:
            return weights.own(Path(self.pretrained).expanduser(), self.trust_sha256)
        if self.model == DEMO_MODEL:
            return weights.own(DEMO / f"{DEMO_MODEL}.safetensors")
        names = [f"{stem}{suffix}" for stem in (self.model, self.pretrained) for suffix in (".safetensors", ".pt")]
        if (published := PUBLISHED_AS.get((self.model, self.pretrained))) is not None:
            return weights.find(published, self.model_dir, names, self.trust_sha256)
        return self._elsewhere(names)

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
            f"{self.model}/{self.pretrained} is not in {self.model_dir or cache_folder() / 'models'}, and not "
            f"among the weights that Curator fetches by itself. Put {names[0]} there, from {source}."
        )
        return Weights(f"unknown:{self.model}/{self.pretrained}", None, missing)

    def text_tower(self, worker: Worker) -> TextTower:
        """The text tower on the worker's device; weights are fetched where that is wanted. Raises WeightsError."""
        from curator.models.clip import text_tower

        return text_tower(self.model, weights.ensure(self.weights()), worker, self.trust_sha256)


def text_vectors(
    model: str, pretrained: str, model_dir: str | None, texts: Sequence[str], worker: Worker, trust: Sequence[str] = ()
) -> Array:
    """(T, D) float32 unit vectors of texts, in the space of the pictures that `embed` gives with the same settings.

    Raises ConfigError where the model is unknown or has no text tower of open_clip's own, WeightsError where its
    weights are missing or wrong.
    """
    if mistake := unknown_model(model) or unknown_tag(model, pretrained) or catalogue.no_texts(model):
        raise ConfigError(mistake)
    return NamedModel(model, pretrained, model_dir, tuple(trust)).text_tower(worker).embed(texts)


def shared_model(name: str, given: NamedModel | None, giver: ProcessingStage) -> dict[str, Any]:
    """The settings of a stage `name` that embeds texts: the model `given` to it, or else that of `giver`, whose vectors
    it is fed. Raises ConfigError where no texts can be embedded with it.
    """
    named: NamedModel | None = given or getattr(giver, "named", None) or _of_space(giver.space)
    if named is None:
        raise ConfigError(
            f"{name}: {giver.name} does not say which model of open_clip its vectors are of, but {giver.space}. Texts "
            "must be embedded by the same model."
        )
    if mistake := catalogue.no_texts(named.model):
        raise ConfigError(f"{name}: {mistake}")
    return asdict(named)


def _of_space(space: str) -> NamedModel | None:
    """The published model that a space is called after."""
    model, _, tag = space.partition("/")
    return None if not tag or unknown_model(model) or unknown_tag(model, tag) else NamedModel(model, tag)


def given_model(
    model: str | None, pretrained: str | None, model_dir: str | None, trust: tuple[str, ...]
) -> NamedModel | None:
    """The model that settings name, None where they name none. Raises ValueError where they name half of one."""
    if model is None or pretrained is None:
        if model is not None or pretrained is not None:
            raise ValueError("model and pretrained belong together: give both, or neither for that of the embedding")
        return None
    if mistake := unknown_model(model) or unknown_tag(model, pretrained):
        raise ValueError(mistake)
    return NamedModel(model, pretrained, model_dir, trust)


def is_file(pretrained: str) -> bool:
    """Whether weights are named by their path and not by open_clip's tag."""
    return os.sep in pretrained or Path(pretrained).suffix in {".safetensors", *weights.PICKLES}


def unknown_model(model: str) -> str | None:
    """What is wrong with a model's name; None where open_clip knows it."""
    try:
        catalogue.architecture(model)
    except KeyError:
        near = difflib.get_close_matches(model, catalogue.known_models(), 4, 0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        return f"open_clip knows no model {model}.{hint}"
    return None


def unknown_tag(model: str, pretrained: str) -> str | None:
    """What is wrong with the weights that are named for a known model; None where there are such."""
    if is_file(pretrained):
        return None
    row = catalogue.published_as(model, pretrained)
    if row is None:
        return (
            f"open_clip has no weights {pretrained} for {model}. It has {', '.join(catalogue.tags_of(model))}; "
            "a file of your own is named by its path, with its suffix."
        )
    if row.get("quick_gelu", False) != catalogue.architecture(model).get("quick_gelu", False):
        return (
            f"the weights {pretrained} were trained with QuickGELU and {model} computes GELU, which gives other "
            f"vectors. Set model={model}-quickgelu."
            if row.get("quick_gelu")
            else f"the weights {pretrained} were not trained with QuickGELU. Set model={model.split('-quick')[0]}."
        )
    return None
