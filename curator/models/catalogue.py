"""What open_clip's tables say of a model, read without importing it: decoders and re-decides run without torch.

A model's architecture is a JSON file beside open_clip's code, how its pictures are prepared stands in the table of
pretrained weights in `open_clip/pretrained.py`. Source: open_clip_torch 3.2 and later.
"""

from __future__ import annotations
import __future__

import ast
import copy
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from curator.models.published import DEMO, DEMO_MODEL

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to what a model sees: a square of `side` pixels, RGB, (x / 255 - mean) / std.

    The shorter side is scaled to `side` and the middle cut out; `squash` scales both sides instead.
    """

    side: int
    mean: Triple
    std: Triple
    squash: bool = False
    bilinear: bool = False  # else bicubic


@cache
def architecture(model: str) -> dict[str, Any]:
    """open_clip's config of a model. KeyError where there is none of that name."""
    for folder in (DEMO, _open_clip() / "model_configs"):
        path = folder / f"{model}.json"
        if "/" not in model and path.is_file():
            loaded: dict[str, Any] = json.loads(path.read_text())
            return loaded
    raise KeyError(model)


@cache
def known_models() -> tuple[str, ...]:
    """The names of all models that can be asked for."""
    return tuple(sorted([DEMO_MODEL, *(path.stem for path in (_open_clip() / "model_configs").glob("*.json"))]))


def tags_of(model: str) -> tuple[str, ...]:
    """The pretrained tags that are published for a model."""
    return (DEMO_MODEL,) if model == DEMO_MODEL else tuple(_pretrained().get(model, {}))


def published_as(model: str, tag: str) -> dict[str, Any] | None:
    """What the table says of a model's pretrained tag (mean, std, hf_hub, url, quick_gelu ...); None if it has none."""
    if model == DEMO_MODEL:
        return {} if tag == DEMO_MODEL else None
    row: dict[str, Any] | None = _pretrained().get(model, {}).get(tag.lower().replace("-", "_"))
    return row


def no_texts(model: str) -> str | None:
    """Why texts cannot be embedded with a known model; None where they can."""
    text = architecture(model)["text_cfg"]
    if "hf_model_name" in text:
        return f"the text tower of {model} is not open_clip's own: no texts can be embedded."
    if "hf_tokenizer_name" in text:
        return (
            f"{model} cuts texts into tokens by {text['hf_tokenizer_name']} of the hub, which Curator does not fetch: "
            "no texts can be embedded."
        )
    return None


@cache
def preprocessing(model: str, tag: str | None) -> Preprocessing:
    """How a model's pictures are prepared; OpenAI's way where the tag is not in the table (a file of one's own)."""
    row = (published_as(model, tag) if tag else None) or {}
    assert row.get("resize_mode", "shortest") in ("shortest", "squash"), "open_clip's table knows these two"
    return Preprocessing(
        side=int(architecture(model)["vision_cfg"].get("image_size", 224)),
        mean=row.get("mean") or _constants()["OPENAI_DATASET_MEAN"],
        std=row.get("std") or _constants()["OPENAI_DATASET_STD"],
        squash=row.get("resize_mode") == "squash",
        bilinear=row.get("interpolation") == "bilinear",
    )


@cache
def _open_clip() -> Path:
    """The folder of open_clip's code; finding it does not import it."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None, "open_clip is a dependency"
    assert found.submodule_search_locations, "open_clip is a package"
    return Path(found.submodule_search_locations[0])


@cache
def _constants() -> dict[str, Any]:
    path = _open_clip() / "constants.py"
    namespace: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)  # a dozen plain assignments
    return namespace


@cache
def _pretrained() -> dict[str, dict[str, dict[str, Any]]]:
    """The table of pretrained weights by model and tag.

    Its module imports torch and the hub's client to download with; the table itself needs neither, so the module's
    own code is run without its imports.
    """
    path = _open_clip() / "pretrained.py"
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Try)]
    namespace: dict[str, Any] = {**_constants(), "copy": copy, "__name__": "open_clip.pretrained"}
    exec(compile(tree, str(path), "exec", flags=__future__.annotations.compiler_flag), namespace)
    table: dict[str, dict[str, dict[str, Any]]] = namespace["_PRETRAINED"]
    return table
