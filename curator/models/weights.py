"""Weights files: found in the places people keep them, told apart by SHA-256, and explained where they are missing.

A known id needs no file: weights are missing only when something must be measured. A file that is not what it
should be is never opened. Imports no torch. Next to read: `published.py`, the table; `fetch.py`, the download.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from curator.cache import cache_folder
from curator.errors import WeightsError
from curator.models.published import PUBLISHED, Published
from curator.stage import Weights

SUMS = "SHA256SUMS"
"""A file beside weights of one's own that names their hashes, as `sha256sum` writes it."""

PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt"})
"""Suffixes of files that can run code when they are opened."""

_SETTLED_NS = 2_000_000_000
_SMALL_BYTES = 64 << 20
_seen: dict[str, str] = {}


@dataclass(frozen=True)
class Fetchable(Weights):
    """Published weights that are in none of the usual places: may be downloaded, since no `model_dir` was named."""


def usual_folders() -> list[Path]:
    """Where weights are looked for without a `model_dir`: Curator's cache, then those of the hub and of open_clip."""
    home = Path.home() / ".cache"
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub"
    return [cache_folder() / "models", Path(hub), home / "clip"]


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) of a file, remembered so that gigabytes are hashed once. OSError where it cannot be read.

    Remembered by path, size, times of change and of status change (which nobody can set back); not for a file that
    changed within the last two seconds, since a clock that ticks coarsely could miss another change.
    """
    known = _recalled(_stamp(path))
    return known if known is not None else refreshed(path)


def refreshed(path: Path) -> str:
    """SHA-256 (hex) of a file as it is now, whatever is remembered of it; what is remembered is put right."""
    stamp = _stamp(path)
    found = digest(path)
    status = path.stat()
    if stamp == _stamp(path) and time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
        _remember(stamp, found)
    return found


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file, read now."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> str:
    status = path.stat()
    return json.dumps([str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])


def _memory(stamp: str) -> Path:
    return cache_folder() / "fingerprints" / hashlib.sha256(stamp.encode()).hexdigest()


def _recalled(stamp: str) -> str | None:
    if stamp not in _seen:
        with suppress(OSError, ValueError):
            remembered = _memory(stamp).read_text().strip()
            if len(bytes.fromhex(remembered)) == 32:
                _seen[stamp] = remembered
    return _seen.get(stamp)


def _remember(stamp: str, found: str) -> None:
    _seen[stamp] = found
    memory = _memory(stamp)
    with suppress(OSError):  # a read-only home costs a second hashing, nothing else
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_name(f"{memory.name}.{os.getpid()}")
        partial.write_text(found)
        partial.replace(memory)


def find(published: Published, model_dir: str | None, names: Iterable[str] = (), trust: Iterable[str] = ()) -> Weights:
    """The file of a published model in `model_dir`, or in the usual folders where none is given.

    `names` that it may have besides the published ones; `trust`: hashes of files of one's own that may stand in
    for it, under their own hash as id. Raises WeightsError where `model_dir` holds only files that are something
    else; in the usual folders such a file is passed over. Where there is none, `missing` says what to do.
    """
    folders = [Path(model_dir)] if model_dir is not None else usual_folders()
    wrong = []
    for path in candidates(published, folders, names):
        if (known := _known(published, path, trust)) is not None:
            return known
        if whose(path) is None:
            wrong.append(path)
    if wrong and model_dir is not None:
        raise WeightsError(wrong_file(published, wrong))
    missing = _missing(published, model_dir, wrong)
    if model_dir is not None:
        return Weights(published.id, None, missing)
    return Fetchable(published.id, None, missing)


def candidates(published: Published, folders: Iterable[Path], names: Iterable[str] = ()) -> Iterator[Path]:
    """Files that may be the model: by name, by the exact size of one of its files, or by their folder."""
    wanted = {*(file.name for file in published.files), *names}
    sizes = {file.bytes for file in published.files if file.bytes}
    for folder in folders:
        if folder.is_file():
            yield folder
            continue
        below = (published.id, *published.folders, *(f"hub/{f}" for f in published.folders))
        its_own = [place for pattern in below for place in sorted(folder.glob(pattern))]
        for place in dict.fromkeys(place for place in (folder, *its_own) if place.is_dir()):
            for path in sorted(path for path in place.iterdir() if path.is_file()):
                likely = path.name in wanted or path.stat().st_size in sizes
                if likely or (place != folder and path.suffix == ".safetensors"):
                    yield path


def _known(published: Published, path: Path, trust: Iterable[str]) -> Weights | None:
    """The weights in a file, if it is published, or somebody vouches for it: by SHA256SUMS or by `trust`."""
    found = fingerprint(path)
    if found in {file.sha256 for file in published.files} or (published.numbers and whose(path) == published):
        return Weights(published.id, path)
    if found in trust or (path.suffix == ".safetensors" and listed(path) == found):
        return Weights(found, path)
    return None


def whose(path: Path) -> Published | None:
    """The published model that a file is: by its hash, or a small one by its numbers."""
    found = fingerprint(path)
    for published in PUBLISHED.values():
        if found in {file.sha256 for file in published.files}:
            return published
    if path.suffix == ".safetensors" and path.stat().st_size < _SMALL_BYTES:
        numbers = digest_of_tensors(path)
        return next((p for p in PUBLISHED.values() if numbers and p.numbers == numbers), None)
    return None


def digest_of_tensors(path: Path) -> str:
    """SHA-256 (hex) over the tensors of a safetensors file, whatever their order and metadata; "" if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, TypeError, KeyError):  # damaged, or of a type that NumPy lacks
        return ""
    parts = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        parts.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        parts.update(tensor.tobytes())
    return parts.hexdigest()


def listed(path: Path) -> str | None:
    """The hash that a SHA256SUMS beside a file gives for it."""
    with suppress(OSError):
        for line in (path.parent / SUMS).read_text().splitlines():
            found, _, name = line.partition(" ")
            if name.lstrip(" *") == path.name:
                return found.lower()
    return None


def own(path: Path, trust: Iterable[str] = ()) -> Weights:
    """Weights of one's own: their hash is their id, or that of the published model they turn out to be.

    Raises WeightsError where there is no such file, a SHA256SUMS beside it says otherwise, or it is a pickle that
    nobody vouched for.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file.")
    found, expected = fingerprint(path), listed(path)
    if (published := whose(path)) is not None:
        return Weights(published.id, path)
    if expected is not None and expected != found:
        raise WeightsError(
            f"{path}: SHA-256 {found} found, {expected} expected by the {SUMS} beside it. Copy the file again."
        )
    if path.suffix in PICKLES and found not in trust:
        raise WeightsError(refused_pickle(path, found))
    return Weights(found, path)


def refused_pickle(path: Path, found: str) -> str:
    """Why a pickle was not opened, and the two ways on."""
    return (
        f"{path}: is a pickle, which can run code, and its SHA-256 {found} is not a published one: it was not opened. "
        f'Convert it: python -c "import torch, safetensors.torch as s; s.save_file(torch.load({str(path)!r}, '
        f'weights_only=True), {str(path.with_suffix(".safetensors"))!r})"; or trust it: trust_sha256=[{found}].'
    )


def wrong_file(published: Published, paths: Sequence[Path]) -> str:
    """What was found in place of a published model, what was expected, and the remedy."""
    path = paths[0]
    size = path.stat().st_size
    forms = published.files
    expected = next((f for f in forms if f.name == path.name), next((f for f in forms if f.bytes == size), forms[0]))
    right = f", {expected.bytes:,} are right" if expected.bytes else ""
    if path.suffix in PICKLES:
        own_weights = "It is a pickle, which can run code, and was not opened."
    else:
        own_weights = f"Weights of your own? Say so: `sha256sum {path.name} > {SUMS}` in its folder."
    source = f", or take {expected.url}" if expected.url else ""
    return (
        f"{path}: is not {published.title}: SHA-256 {fingerprint(path)} found, {expected.sha256} expected for "
        f"{expected.name} ({size:,} bytes{right}). Remove it and run `curate-models fetch --model-dir {path.parent} "
        f"{published.id}`{source}. {own_weights}"
    )


def _missing(published: Published, model_dir: str | None, wrong: Sequence[Path] = ()) -> str:
    """Which weights are missing, on the first line; below it a line for each file that would do."""
    place = Path(model_dir) if model_dir is not None else cache_folder() / "models"
    why = f" ({wrong[0]} is something else)" if wrong else "" if place.is_dir() else " (there is no such folder)"
    return f"{published.title} is not in {place}{why}.\n{by_hand(published, place)}"


def by_hand(published: Published, place: Path) -> str:
    """How to put a published model below a model folder: a line for each of its files."""
    files = [f"  {f.name}, sha256 {f.sha256}{f', from {f.url}' if f.url else ''}" for f in published.files]
    fetch = f"  or, where there is a network: curate-models fetch --model-dir {place} {published.id}"
    return "\n".join([f"Put one of these into {place / published.id}:", *files, fetch])


def ensure(weights: Weights) -> Path:
    """The file of these weights, fetched into the user's cache where that is wanted. Raises WeightsError."""
    if weights.path is not None:
        return weights.path
    if not isinstance(weights, Fetchable):
        raise WeightsError(weights.missing or f"weights {weights.id} are missing.")
    from curator.models.fetch import fetch

    published = PUBLISHED[weights.id]
    return fetch(published.files[0], cache_folder() / "models" / published.id, weights.missing or "")
