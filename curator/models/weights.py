"""Weights files: what is published where, found in the places people keep them, fetched, and told apart by SHA-256.

All known files of one published model share its id, so that vectors measured with one form serve the others. A
known id needs no file: weights are missing only when something must be measured. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from curator.errors import WeightsError
from curator.stage import Weights

SUMS = "SHA256SUMS"
"""A file beside weights of one's own that names their hashes, as `sha256sum` writes it."""


@dataclass(frozen=True)
class File:
    """One form of a published model: its usual name, its SHA-256 and where it is to be had."""

    name: str
    sha256: str
    url: str
    bytes: int | None = None


@dataclass(frozen=True)
class Published:
    """A model that its authors published: an id, what it is, and its known files, the one to fetch first."""

    id: str
    title: str
    files: tuple[File, ...]
    folders: tuple[str, ...] = ()  # where hubs and other tools put it below a model folder


HUB = "https://huggingface.co"
PUBLISHED = {
    p.id: p
    for p in (
        Published(
            "clip-vit-l-14-openai",
            "CLIP ViT-L/14 by OpenAI",
            (
                File(
                    "open_clip_model.safetensors",
                    "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
                    f"{HUB}/timm/vit_large_patch14_clip_224.openai/resolve/main/open_clip_model.safetensors",
                ),
                File(
                    "ViT-L-14.pt",
                    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
                    "https://openaipublic.azureedge.net/clip/models/"
                    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
                ),
                File(
                    "model.safetensors",
                    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
                    f"{HUB}/openai/clip-vit-large-patch14/resolve/main/model.safetensors",
                ),
            ),
            (
                "openai/clip-vit-large-patch14",
                "clip-vit-large-patch14",
                "models--timm--vit_large_patch14_clip_224.openai/snapshots/*",
                "models--openai--clip-vit-large-patch14/snapshots/*",
            ),
        ),
        Published(
            "laion-nsfw-l14",
            "LAION's NSFW head for CLIP ViT-L/14",
            (
                File(
                    "clip_autokeras_binary_nsfw.zip",
                    "905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a",
                    "https://raw.githubusercontent.com/LAION-AI/CLIP-based-NSFW-Detector/main/"
                    "clip_autokeras_binary_nsfw.zip",
                    1_094_585,
                ),
                File(
                    "clip-vit-l-14-openai-head.pth",
                    "fc4d70d2eea4e948d13bc27bf7114f5e8d3bd317eb01a4b49b35dcf1a3d672c6",
                    "https://raw.githubusercontent.com/HCA97/CLIP-based-NSFW-Detector/main/"
                    "clip-vit-l-14-openai-head.pth",
                    866_223,
                ),
                File("nsfw_l14.safetensors", "d8c4817ce98e38029e53e57ae067d77913e6b88e03090cb282305b490a36cbae", ""),
            ),
        ),
        Published(
            "laion-aesthetic-v2-l14",
            "LAION's aesthetic predictor V2 for CLIP ViT-L/14",
            (
                File(
                    "sac+logos+ava1-l14-linearMSE.pth",
                    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
                    "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/main/"
                    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
                    3_714_759,
                ),
                File(
                    "aesthetic_l14.safetensors", "00c6529260a40246313b0761a2e1892bc6b9eb01e34ece57699bd91bdb9c9fa7", ""
                ),
            ),
        ),
    )
}


def cache_folder() -> Path:
    """Where fetched weights and remembered hashes lie: `$CURATOR_CACHE` or `~/.cache/curator`."""
    return Path(os.environ.get("CURATOR_CACHE") or Path.home() / ".cache" / "curator")


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) of a file; remembered by path, size and time, so that gigabytes are hashed once."""
    status = path.stat()
    seen = [str(path.absolute()), status.st_size, status.st_mtime_ns]
    return _fingerprint(str(path), json.dumps(seen))


@cache
def _fingerprint(path: str, seen: str) -> str:
    memory = cache_folder() / "fingerprints" / hashlib.sha256(seen.encode()).hexdigest()
    with suppress(OSError):
        remembered = memory.read_text().strip()
        if len(remembered) == 64:
            return remembered
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a read-only home costs a second hashing, nothing else
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_name(f"{memory.name}.{os.getpid()}")
        partial.write_text(found)
        partial.replace(memory)
    return found


def find(published: Published, model_dir: str | None) -> Weights:
    """The file of a published model in `model_dir`, or in the caches where none is given.

    Raises WeightsError for a file that is not what it should be. Where there is none, `missing` says what to do.
    """
    folders = [Path(model_dir)] if model_dir is not None else usual_folders()
    files = list(_candidates(published, folders))
    for path in files:
        if (known := _known(published, path)) is not None:
            return known
    if files:
        raise WeightsError(_wrong(published, files))
    return Weights(published.id, None, _missing(published, model_dir))


def usual_folders() -> list[Path]:
    """Where weights are looked for without a `model_dir`: Curator's cache, then those of the hub and of open_clip."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    return [cache_folder() / "models", hub, Path.home() / ".cache" / "clip"]


def _candidates(published: Published, folders: Iterable[Path]) -> Iterable[Path]:
    names = {file.name for file in published.files}
    for folder in folders:
        if folder.is_file():
            yield folder
            continue
        for pattern in ("", published.id, *published.folders, *(f"hub/{f}" for f in published.folders)):
            places = folder.glob(pattern) if pattern else [folder]
            for place in sorted(places):
                yield from sorted(place / name for name in names if (place / name).is_file())


def _known(published: Published, path: Path) -> Weights | None:
    """The weights in a file, if its hash is one that is published, or that a SHA256SUMS beside it vouches for."""
    found = fingerprint(path)
    if found in {file.sha256 for file in published.files}:
        return Weights(published.id, path)
    if path.suffix == ".safetensors" and listed(path) == found:
        return Weights(found, path)
    return None


def listed(path: Path) -> str | None:
    """The hash that a SHA256SUMS beside a file gives for it."""
    with suppress(OSError):
        for line in (path.parent / SUMS).read_text().splitlines():
            digest, _, name = line.partition(" ")
            if name.lstrip(" *") == path.name:
                return digest.lower()
    return None


def own(path: Path) -> Weights:
    """Weights of one's own: their hash is their id. Raises WeightsError where a SHA256SUMS says otherwise."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file.")
    found, expected = fingerprint(path), listed(path)
    if expected is not None and expected != found:
        raise WeightsError(f"{path}: has SHA-256 {found}, but {SUMS} beside it says {expected}. Copy it again.")
    return Weights(found, path)


def _wrong(published: Published, files: Sequence[Path]) -> str:
    path = files[0]
    expected = next((f for f in published.files if f.name == path.name), published.files[0])
    size = path.stat().st_size
    short = f" It has {size:,} bytes, {expected.bytes:,} are right." if expected.bytes else f" It has {size:,} bytes."
    vouch = (
        f" If these are weights of your own, say so with `sha256sum {path.name} > {SUMS}` in its folder."
        if path.suffix == ".safetensors"
        else " It is a pickle, which could run code, and was not opened; a safetensors file of your own is welcome."
    )
    return (
        f"{path}: is not {published.title}: SHA-256 {fingerprint(path)} found, {expected.sha256} expected.{short} "
        f"Remove it and run `curate-models fetch`, or fetch it from {expected.url}.{vouch}"
    )


def _missing(published: Published, model_dir: str | None) -> str:
    place = model_dir or str(cache_folder() / "models")
    forms = "; or ".join(f"{f.name} (sha256 {f.sha256[:12]}...) from {f.url}" for f in published.files if f.url)
    return f"{published.title} is not in {place}. Put one of these there: {forms}. `curate-models fetch` does it."


def ensure(weights: Weights, model_dir: str | None = None) -> Path:
    """The file of these weights, fetched into the user's cache where it is missing. Raises WeightsError."""
    if weights.path is not None:
        return weights.path
    published = PUBLISHED.get(weights.id)
    if published is None or model_dir is not None:
        raise WeightsError(weights.missing or f"weights {weights.id} are missing.")
    from curator.models.fetch import fetch

    return fetch(published.files[0], cache_folder() / "models" / published.id, weights.missing or "")
