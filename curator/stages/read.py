"""read: the samples of each shard, and which member of a sample is its image; how images are decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from curator.decode import FORMATS, DecodeSettings
from curator.errors import Cause, Fault
from curator.formats import reader_of
from curator.formats.base import Member, Sample, Shard, ShardIndex
from curator.formats.folder import IMAGE_SUFFIXES, MAGIC, suffix_of
from curator.formats.recognise import Wanted, recognised
from curator.ledger import shown
from curator.signatures import format_of
from curator.stage import ProcessingStage, measures, speeds
from curator.units import Size, parse_bytes

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
    decode_timeout_s: float = speeds(20.0, gt=0)
    decode_memory: Size = speeds("2GiB")
    verbose: bool = speeds(False)
    dali_batch_size: Any = Field(None, json_schema_extra={"role": "speeds"})
    num_threads: Any = Field(None, json_schema_extra={"role": "speeds"})
    num_gpus_per_worker: Any = Field(None, json_schema_extra={"role": "speeds"})

    def model_post_init(self, context: Any) -> None:
        """A format that is never decoded is a mistake of the config."""
        super().model_post_init(context)
        self.decode_settings()

    def recognise(self, shards: Sequence[Shard]) -> list[Shard]:
        """The shards, tables among them as what they are. Raises ConfigError for columns that are not there."""
        roles = {role: getattr(self, f"{role}_column") for role in ("image", "url", "caption", "embedding", "key")}
        return recognised(shards, Wanted(self.format, roles, self.root, self.join_tables))

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
