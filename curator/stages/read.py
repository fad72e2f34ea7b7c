"""read: the samples of each shard, and which member of a sample is its image; how images are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from curator.decode import FORMATS, DecodeSettings
from curator.download import DownloadSettings, Place, Shelf, download
from curator.errors import Cause, ConfigError, Fault
from curator.formats import reader_of, vectors
from curator.formats.base import Member, Sample, Shard, ShardIndex
from curator.formats.files import GZIPPED
from curator.formats.folder import IMAGE_SUFFIXES, MAGIC, suffix_of
from curator.formats.lists import BROKEN, urls_of
from curator.formats.recognise import Wanted, recognised
from curator.ledger import shown
from curator.models import catalogue
from curator.models.likeness import COLUMNS, LEAST, SPACE, likeness
from curator.signatures import format_of
from curator.stage import ProcessingStage, measures, speeds
from curator.units import Size, counted, parse_bytes
from curator.wording import meant

LOOKED_AT = 1024  # rows of an input of vectors
LENGTH_OFF = 0.01  # float16 rounding moves the length of a unit vector by less
NO_IMAGES = frozenset(b"txt json cls npy npz pyd pkl pth cbor mp msgpack xml csv html mp3 mp4 wav flac gz".split())


class ImageReaderStage(ProcessingStage):
    """Read tars with any image suffix and any order of members, folders of images, and tables that name or hold them.

    Which column of a table is what changes its samples, and so their content: no part of the address needs to say it.
    """

    called: ClassVar[str] = "read"
    version: ClassVar[int] = 3
    ignored: ClassVar[tuple[str, ...]] = ("dali_batch_size", "num_threads", "num_gpus_per_worker")

    exact: bool = measures(False)
    formats: tuple[str, ...] = measures(FORMATS)
    max_pixels: int = measures(100_000_000, ge=1)
    max_member_bytes: Size = measures("256MiB")
    image_suffix: str | None = measures(None)
    format: Literal["auto", "list", "urls", "parquet", "vectors"] = speeds("auto")
    image_column: str | None = speeds(None)
    url_column: str | None = speeds(None)
    caption_column: str | None = speeds(None)
    embedding_column: str | None = speeds(None)
    key_column: str | None = speeds(None)
    root: str | None = speeds(None)
    join_tables: bool = speeds(True)
    max_growth: float = speeds(100.0, gt=0)
    embedding_space: str | None = speeds(None)
    download: DownloadSettings = speeds(DownloadSettings())
    decode_timeout_s: float = speeds(20.0, gt=0)
    decode_memory: Size = speeds("2GiB")
    verbose: bool = speeds(False)
    dali_batch_size: Any = Field(None, json_schema_extra={"role": "speeds"})
    num_threads: Any = Field(None, json_schema_extra={"role": "speeds"})
    num_gpus_per_worker: Any = Field(None, json_schema_extra={"role": "speeds"})

    @field_validator("download", mode="before")
    @classmethod
    def _settings(cls, given: Any) -> DownloadSettings:
        """A mapping, as YAML has it."""
        if isinstance(given, DownloadSettings):
            return given
        known = [f.name for f in fields(DownloadSettings)]
        if not isinstance(given, dict):
            raise ValueError(f"must be settings by name, not {given!r}")
        if unknown := [name for name in given if name not in known]:
            raise ValueError("; ".join(f"{name}: no such setting.{meant(name, known)}" for name in unknown))
        try:
            return DownloadSettings(**given)
        except ConfigError as error:
            raise ValueError("; ".join(error.mistakes)) from error

    def model_post_init(self, context: Any) -> None:
        """A format that is never decoded is a mistake of the config."""
        super().model_post_init(context)
        self.decode_settings()

    def recognise(self, shards: Sequence[Shard], fetched: Path) -> list[Shard]:
        """The shards, tables among them as what they are. Raises ConfigError for columns that are not there.

        `fetched` is the folder of what was, and will be, fetched from URLs.
        """
        roles = {role: getattr(self, f"{role}_column") for role in ("image", "url", "caption", "embedding", "key")}
        found = recognised(shards, Wanted(self.format, roles, self.root, self.join_tables, str(fetched)))
        return [replace(s, growth=self.max_growth) if s.path.lower().endswith(GZIPPED) else s for s in found]

    def fetch(self, shards: Sequence[Shard], begin: Callable[[int, str], Callable[[dict[str, int]], None]]) -> None:
        """Fetch what is lacking of the URLs that these shards list; what became of each is in the shards' rows.

        `begin` is told how many those are, where there are any, and what it returns takes counts.
        """
        listed = [shard for shard in shards if shard.format == "urls"]
        urls = list(dict.fromkeys(url for shard in listed for url in _urls(shard) if url))
        if not urls:
            return
        folder = Path(listed[0].root)
        known = Shelf(folder).look(urls)
        lacking = [url for url, place in zip(urls, known, strict=True) if self._lacks(place)]
        if lacking:
            advance, told = begin(len(lacking), "fetching"), Counter[str]()

            def report(*, done: int, failed: Mapping[Cause, int]) -> None:
                now = Counter(done=done, failed=sum(failed.values()))
                advance(dict(now - told))
                told.update(now - told)

            download(lacking, folder, self.download, report)

    def _lacks(self, place: Place | Fault) -> bool:
        """Whether a URL is to be asked, for the first time or again."""
        if not isinstance(place, Fault):
            return False
        return place.cause is Cause.NOT_FETCHED or self.download.tries_again(place.cause)

    def of_vectors(self, shards: Sequence[Shard]) -> EmbeddingReaderStage:
        """The reader of an input that is vectors alone. Raises ConfigError where they are not what they seem."""
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "embedding_space"}
        seen = Seen.of(shards)
        space, told = seen.space(self.embedding_space, self.name)
        return EmbeddingReaderStage(**fields, embedding_space=space, told=told)

    def index(self, shard: Shard) -> ShardIndex:
        """The samples of a shard in order, and what of it is damaged. OSError where it cannot be opened."""
        return reader_of(shard).index(shard, parse_bytes(self.max_member_bytes))

    def decode_settings(self) -> DecodeSettings:
        """How decoders decode."""
        return DecodeSettings(
            self.formats, self.max_pixels, self.exact, self.decode_timeout_s, parse_bytes(self.decode_memory)
        )

    def image_of(self, sample: Sample, peek: Callable[[Member], bytes]) -> Member | Fault:
        """The member that is the sample's image, or why there is none.

        The one with `image_suffix` if that is set; else the first with a known image suffix, plain suffixes (`jpg`)
        before longer ones (`left.jpg`); else the first whose bytes (`peek`) begin like an image. A sample with a
        member that must not be read (a link, a device) fails as a whole: it could not leave as it came.
        """
        for member in sample.members:
            if member.fault is not None:
                return Fault(member.fault, f"{label(member)} is {member.detail}" if _is(member) else _has(member))
        images = self._images(sample)
        if images:
            return images[0]
        if self.image_suffix is None:
            for member in sample.members:
                if suffix_of(member.name) not in NO_IMAGES and format_of(peek(_beginning(member))) is not None:
                    return member
        return Fault(Cause.NO_IMAGE, f"No image among {', '.join(label(m) for m in sample.members)}")

    def _images(self, sample: Sample) -> list[Member]:
        if self.image_suffix is not None:
            wanted = self.image_suffix.lstrip(".").lower().encode()
            return [m for m in sample.members if sample.suffix_of(m).lower() == wanted]
        images = [m for m in sample.members if suffix_of(m.name) in IMAGE_SUFFIXES]
        return sorted(images, key=lambda m: b"." in sample.suffix_of(m))

    def notes_of(self, sample: Sample) -> tuple[str, ...]:
        """Codes of what is worth knowing about the sample."""
        return (*sample.notes, *(("several_images",) if len(self._images(sample)) > 1 else ()))

    def caption_of(self, sample: Sample) -> Member | None:
        """The member that holds the caption, if there is one."""
        return next((m for m in sample.members if m.fault is None and suffix_of(m.name) == b"txt"), None)


class EmbeddingReaderStage(ImageReaderStage):
    """Read vectors that were computed elsewhere: stands in for `read` where the input is no images but these.

    `embedding_space` names the model that made them, as `embed` would: model and pretrained tag.
    """

    called: ClassVar[str] = "read_vectors"
    version: ClassVar[int] = 2
    gives: ClassVar[tuple[str, ...]] = ("embedding",)

    told: tuple[str, ...] = speeds(())

    def measure_fields(self) -> dict[str, Any]:
        """Nothing of how images are decoded: what the vectors are, alone."""
        return {"embedding_space": self.embedding_space}

    @property
    def space(self) -> str:
        """Whose vectors they are."""
        return str(self.embedding_space)


@dataclass(frozen=True)
class Seen:
    """What a look at the vectors of an input says."""

    rows: int
    columns: int
    length: float  # median over the rows that were looked at
    likeness: float | None  # None where the number of columns rules the known model out

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Seen:
        """Look at the beginning. Raises ConfigError where shards have different numbers of columns."""
        shapes = {shard.given: vectors.shape_of(shard) for shard in shards}
        widths = {shape[1]: given for given, shape in shapes.items() if shape[0]}
        if len(widths) > 1:
            told = ", ".join(f"{given} {width}" for width, given in widths.items())
            raise ConfigError(f"input: vectors have different numbers of columns: {told}. A run reads one model's.")
        count, width = sum(shape[0] for shape in shapes.values()), next(iter(widths), 0)
        full = next((shard for shard in shards if shapes[shard.given][0]), None)
        if full is None:
            return cls(0, 0, 1.0, None)
        some = vectors.rows_of(full, 0, min(LOOKED_AT, shapes[full.given][0])).astype(np.float64)
        lengths = np.linalg.norm(some, axis=1)
        fit = np.isfinite(lengths) & (lengths > 0)
        if not fit.any():
            raise ConfigError(f"input: {full.given}: none of its first {counted(len(some), 'row')} is a vector.")
        unit = some[fit] / lengths[fit, None]
        return cls(count, width, float(np.median(lengths[fit])), likeness(unit) if width == COLUMNS else None)

    def _fit(self, given: str, name: str) -> None:
        """Raises ConfigError where a space is none, or a model that open_clip knows has other columns."""
        model, slash, _ = given.partition("/")
        if not slash:
            raise ConfigError(f"{name}.embedding_space: must be MODEL/PRETRAINED, such as {SPACE}, not {given}.")
        with suppress(KeyError):
            columns = catalogue.architecture(model).get("embed_dim")
            if self.rows and columns not in (None, self.columns):
                raise ConfigError(
                    f"{name}.embedding_space: vectors of {model} have {columns} columns, and these have {self.columns}."
                )

    def space(self, given: str | None, name: str) -> tuple[str, tuple[str, ...]]:
        """Whose vectors they are, and what a person should know of it. Raises ConfigError where nobody can say."""
        scaled = f"; they were {self.length:.3g} long (median), and are made unit length"
        told = f"{counted(self.rows, 'vector')} of {self.columns} columns" + (
            scaled if abs(self.length - 1) > LENGTH_OFF else ""
        )
        if given is not None:
            self._fit(given, name)
            return given, (f"{name}: {told}, of {given} as {name}.embedding_space says",)
        if self.likeness is None:
            if not self.rows:
                return SPACE, ()
            return f"unknown/{self.columns}", (f"{name}: {told}; whose they are, {name}.embedding_space may say",)
        if not self.likeness >= LEAST:
            raise ConfigError(
                f"{name}.embedding_space: the vectors have {self.columns} columns as those of {SPACE}, but do not look "
                f"like its image vectors (likeness {self.likeness:.2f}, about 1 expected): another model's, or texts'. "
                f"Say whose they are, as {name}.embedding_space=MODEL/PRETRAINED; {SPACE} is believed if said."
            )
        return SPACE, (f"{name}: {told}, taken for those of {SPACE} (likeness {self.likeness:.2f})",)


def _urls(shard: Shard) -> list[str]:
    """The URLs of a list; none where it cannot be read, which its index tells."""
    try:
        return urls_of(shard)
    except BROKEN:
        return []


def _beginning(member: Member) -> Member:
    """What of a member in a tar tells an image, so that no more of it is read; a file in a folder as a whole."""
    return replace(member, size=min(member.size, MAGIC)) if member.offset else member


def label(member: Member) -> str:
    """A member's name in a sentence."""
    return f'"{shown(member.name)}"'


def _is(member: Member) -> bool:
    return member.detail.startswith("a ")


def _has(member: Member) -> str:
    return f"{label(member)} {member.detail}"
