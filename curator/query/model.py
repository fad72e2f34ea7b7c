"""What is asked, as a vector of the index's own space: by the model, settings and weights that made the index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from curator.custom import BUILT_IN, builtin_stage, stage_class, target_of
from curator.decode import DecodeFault, decode
from curator.errors import ConfigError
from curator.indexes.rows import unit
from curator.models.catalogue import known_models
from curator.query.places import Opened, named
from curator.stage import Array, ImageBatch, ProcessingStage, Worker
from curator.wiring import pixels_of


def embedder(at: Opened, model_dir: str | None, config_dir: Path | None) -> ProcessingStage:
    """The stage that embedded the index, built again. Raises ConfigError where it cannot be, or has other weights."""
    told = _with_a_model(at)
    kind = stage_class(told["target"], f"index: {at.name}: {told['stage']}", config_dir)
    before = at.run.get("config", {}).get("stages", {}).get(told["stage"], {})
    kept = {name: before[name] for name in ("model_dir", "trust_sha256") if _usable(before.get(name))}
    settings = {**told["settings"], **{n: v for n, v in kept.items() if n in kind.model_fields}}
    if model_dir is not None:
        if "model_dir" not in kind.model_fields:
            raise ConfigError(f"model_dir: {told['stage']}, which made the index, takes none.")
        settings["model_dir"] = model_dir
    stage = kind(name=told["stage"], **settings)
    ids = [w.id for w in stage.weights()]
    if stage.space != told["space"] or told["weights"] not in ([], ids):
        here = named({"space": stage.space, "weights": ids})
        raise ConfigError(
            f"index: {at.name} was made with {named(told)}, and what is here is {here}: vectors of the two cannot be "
            "compared. model_dir=DIR names a folder with the right weights."
        )
    return stage


def _with_a_model(at: Opened) -> Mapping[str, Any]:
    """What made the vectors; where they were read as they are, the model that their space names."""
    told = at.index.about.model
    if told["target"].rpartition(".")[0] != BUILT_IN["read"].rpartition(".")[0]:
        return told
    model, _, pretrained = told["space"].partition("/")
    if model not in known_models():
        raise ConfigError(
            f"index: the vectors of {at.name} came from elsewhere, and nobody said of which model. Run it again "
            f"with {told['stage']}.embedding_space=MODEL/PRETRAINED, or ask with a vector: curator.search(vector=...)."
        )
    settings = {"model": model, "pretrained": pretrained}
    return {**told, "target": BUILT_IN["embed"], "settings": settings}


def _usable(value: Any) -> bool:
    """Whether a setting was written out: what comes from the environment is not."""
    return bool(value) and "${" not in str(value)


def of_text(stage: ProcessingStage, text: str) -> Array:
    """(D,) float32 unit vector of a text. Raises ConfigError where the model has no text tower that Curator knows."""
    if target_of(type(stage)) != BUILT_IN["embed"]:
        raise ConfigError(
            f"query: {stage.name} ({stage.space}), which made the index, embeds no text. Ask with image=PATH."
        )
    from curator.models.named import text_vectors

    of: Any = stage
    vector: Array = text_vectors(of.model, of.pretrained, of.model_dir, [text], Worker(), of.trust_sha256)[0]
    return vector


def of_image(stage: ProcessingStage, read: Mapping[str, Any], path: str) -> Array:
    """(D,) float32 unit vector of an image file, decoded and prepared as the index's were. Raises ConfigError."""
    need = pixels_of(stage)
    if need is None:
        raise ConfigError(f"image: {stage.name}, which made the index, embeds no pixels.")
    reads: Any = builtin_stage("read", **read)
    made: Any = stage
    try:
        decoded = decode(Path(path).read_bytes(), reads.decode_settings(), [(stage.name, need, made.prepare)])
    except OSError as error:
        raise ConfigError(f"image: {path} cannot be read: {error.strerror}.") from None
    except DecodeFault as fault:
        raise ConfigError(f"image: {path} cannot be used: {fault.detail}") from None
    if stage.name in decoded.faults:
        raise ConfigError(f"image: {path} cannot be used: {decoded.faults[stage.name][1]}")
    batch = ImageBatch(pixels=np.stack([decoded.arrays[stage.name]]), model=stage.setup(Worker()))
    vector: Array = unit(np.asarray(made.measure(batch)["embedding"]))[0]
    return vector
