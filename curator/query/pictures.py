"""The pictures behind results, small: taken from the run's own inputs, and only where they are still the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from curator.custom import builtin_stage
from curator.decode import DecodeFault, decode
from curator.errors import ConfigError, CuratorError
from curator.formats import reader_of
from curator.formats.base import Sample, Shard
from curator.ledger import shown
from curator.phases import inputs
from curator.query.places import Opened
from curator.stage import Array, Pixels
from curator.store import Store

SIDE = 320  # pixels of a thumbnail's longer side
QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG, or why there is none."""

    jpeg: bytes = b""
    why: str = ""
    width: int = 0
    height: int = 0


class Pictures:
    """Finds the images of a run's rows, by the way that the run itself found them."""

    def __init__(self, at: Opened) -> None:
        self.at = at
        stages = at.run.get("config", {}).get("stages", {})
        read = at.index.about.model.get("read") or stages.get("read", {})
        self.read: Any = _built("read", {**stages.get("read", {}), **read})
        self._members: dict[str, Any] = {}

    @cached_property
    def _shards(self) -> dict[str, Shard]:
        """The run's shards as it found them."""
        told = (i["found"] for i in self.at.run.get("inputs", []) if "found" in i)
        shards = (Shard(**{**f, "skip": tuple(f["skip"]), "roles": tuple(map(tuple, f["roles"]))}) for f in told)
        return {shard.given: shard for shard in shards}

    def of(self, row: Mapping[str, Any]) -> Thumbnail:
        """The picture of one row of results."""
        if not row.get("image"):
            return Thumbnail(why="the input holds no images")
        try:
            shard = self._shards.get(row["shard"]) or _named(row["shard"])
            sample = self._sample(shard, int(row["index"]))
            member = next((m for m in sample.members if shown(m.name) == row.get("image")), None)
            if member is None or member.fault is not None:
                return Thumbnail(why="the input has changed")
            content = next(iter(reader_of(shard).read(shard, [member])))
        except FileNotFoundError as error:
            gone = os.fsdecode(error.filename or b"")
            its_folder_is_there = bool(gone) and os.path.isdir(os.path.dirname(gone) or ".")
            return Thumbnail(why=f"{gone} is gone" if its_folder_is_there else f"{row['shard']} is not found from here")
        except (ConfigError, OSError, IndexError, StopIteration):
            return Thumbnail(why=f"{row['shard']} is not found from here")
        except CuratorError:
            return Thumbnail(why="the input has changed")
        if row.get("content_hash") and hashlib.sha256(content).hexdigest() != row["content_hash"]:
            return Thumbnail(why="the input has changed")
        return thumbnail(content, self.read)

    def _sample(self, shard: Any, index: int) -> Sample:
        """One sample of a shard: from what the run remembered of it, else by reading the shard again."""
        if shard.given not in self._members:
            store = Path(self.at.run.get("store") or "/nonexistent")
            known = inputs.members_of(Store(store), shard) if store.is_dir() else None
            self._members[shard.given] = known or _Indexed(self.read.index(shard).samples)
        sample: Sample = self._members[shard.given].samples(index, index + 1)[0]
        return sample


@dataclass(frozen=True)
class _Indexed:
    """The samples of a shard that was just read, as `Members` gives them."""

    all: Any

    def samples(self, first: int, last: int) -> Iterable[Sample]:
        return self.all[first:last]  # type: ignore[no-any-return]


def _named(given: str) -> Shard:
    """A tar or a folder by its path, where no run.json knows it. Raises ConfigError where it is not there."""
    lists: Any = builtin_stage("partition")
    shard: Shard = lists.list([given])[0]
    return shard


def _built(name: str, fields: Mapping[str, Any]) -> Any:
    """A source as the run had it; as it is by default where the run was another version's."""
    try:
        return builtin_stage(name, **fields)
    except ConfigError:
        return builtin_stage(name)


def thumbnail(content: bytes, read: Any) -> Thumbnail:
    """A small JPEG of an image file, decoded within the run's limits and encoded anew: nothing else of it is kept."""
    try:
        decoded = decode(content, read.decode_settings(), [("thumbnail", Pixels(max_side=SIDE), _small)])
    except DecodeFault as fault:
        return Thumbnail(why=fault.detail)
    if "thumbnail" not in decoded.arrays:
        return Thumbnail(why=decoded.faults["thumbnail"][1])
    small = Image.fromarray(decoded.arrays["thumbnail"])
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return Thumbnail(file.getvalue(), "", small.width, small.height)


def _small(image: Image.Image) -> Array:
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


