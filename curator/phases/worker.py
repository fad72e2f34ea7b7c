"""What a worker does with a partition: one pass over its bytes, each image decoded once for all stages that lack it.

Hashes the pieces, finds what the store lacks of them, streams their images through the decoders, gathers what
`prepare` made into batches, and stores each piece as soon as its last row is settled.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import chain
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator import address, here
from curator.decode import Decoded
from curator.decoders import Decoders
from curator.errors import Fault, InputChanged, StoreError
from curator.formats import reader_of
from curator.formats.base import Member, Sample, Shard
from curator.formats.pieces import piece_content
from curator.ledger import shown
from curator.phases import inputs
from curator.phases.batches import Batcher, run_model
from curator.phases.columns import Rows, as_columns, valid
from curator.phases.piece import Piece, PieceRef, Work
from curator.phases.vectors import piece_of
from curator.stage import Array, ImageBatch, Mask, ProcessingStage
from curator.store import vectors_of
from curator.wiring import measured_from, pixels_of

ROWS_AT_ONCE = 1024  # of stages that need no pixels: one shape, whatever their batch size, so always the same bits

AS_INDEXED: set[tuple[Shard, str]] = set()
"""Folders that this process has found as they were indexed."""


@dataclass
class Outcome:
    """What a task tells the runner: contents by (shard, piece), and how many images were worked on."""

    contents: dict[tuple[int, int], str] = field(default_factory=dict)
    decoded: int = 0
    measured: Counter[str] = field(default_factory=Counter)  # rows by stage
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by stage
    damaged: list[str] = field(default_factory=list)


def measure_partition(task: tuple[bytes, tuple[PieceRef, ...]]) -> Outcome:
    """Measure everything that the store lacks of these pieces. The first part of `task` is a pickled Work."""
    pickled, refs = task
    work: Work = here.keep(("work", hashlib.sha256(pickled).hexdigest()), lambda: cloudpickle.loads(pickled))
    return Partition(work).measure(refs)


class Partition:
    """The pieces that one task takes, in one pass."""

    def __init__(self, work: Work) -> None:
        self.work, self.store, self.outcome = work, work.store, Outcome()
        self.read: Any = work.stages[0]
        self.pixel_stages = [s for s in work.stages[1:] if pixels_of(s)]
        self.batchers = {s.name: Batcher(s, work.keys[s.name]) for s in self.pixel_stages}
        self.unfinished: list[Piece] = []

    def measure(self, refs: Sequence[PieceRef]) -> Outcome:
        """Do it, and tell what was done."""
        begin = time.monotonic()
        for ref in refs:
            if ref.shard.format == "vectors":
                self._take_vectors(ref)
        for (piece, row), result in self._decoded([ref for ref in refs if ref.shard.format != "vectors"]):
            self._settle(piece, row, result)
        for batcher in self.batchers.values():
            self._scatter(batcher)
        assert not self.unfinished, "every row of every piece is settled"
        in_stages = sum(self.outcome.seconds.values())
        self.outcome.seconds[self.read.name] = time.monotonic() - begin - in_stages
        self.outcome.damaged += self.store.taken_aside()
        return self.outcome

    def _take_vectors(self, ref: PieceRef) -> None:
        """Store vectors that were computed elsewhere, and measure from them whatever is missing."""
        if reader_of(ref.shard).stamp(ref.shard) != ref.stamp:
            raise self._changed(ref)
        name, content = self.read.name, ref.content
        if content is None or not self.store.has(name, address.measurement(self.work.keys[name], content)):
            content, table = piece_of(ref)
            header = {"stage": name, "open": False, "measured_with": provenance()}
            self.store.put(name, address.measurement(self.work.keys[name], content), table, header)
        self.outcome.contents[ref.shard_number, ref.number] = content
        piece = Piece(self.work, ref, range(ref.last - ref.first), content)  # type: ignore[arg-type]
        for stage in self.work.stages[1:]:
            self._measure_stored(piece, stage)
        here.report(done=piece.count)

    def _decoded(self, refs: Sequence[PieceRef]) -> Iterator[tuple[tuple[Piece, int], Decoded | Fault]]:
        """Every image that is to be decoded, with what came of it, in order of completion."""
        images = self._images(refs)
        first = next(images, None)
        if first is not None:  # where all is stored, no decoder is started
            yield from self._decoders().decode_all(chain([first], images))

    def _decoders(self) -> Decoders:
        names = tuple((s.name, self.work.keys[s.name]) for s in self.pixel_stages)
        settings = self.read.decode_settings()
        specs = {spec.name: spec for spec in self.work.specs}
        prepares = [(s.name, pixels_of(s), cloudpickle.dumps(specs[s.name].build)) for s in self.pixel_stages]
        key = ("decoders", names, settings)
        return here.keep(key, lambda: Decoders(here.decoder_count(), settings, prepares))  # type: ignore[arg-type]

    def _images(self, refs: Sequence[PieceRef]) -> Iterator[tuple[tuple[Piece, int], bytes]]:
        """The bytes of every image that some stage lacks, piece by piece, read in the order they lie."""
        for ref in refs:
            try:
                piece = self._piece(ref)
                self.unfinished.append(piece)
                here.report(done=piece.count - len(piece.to_decode))
                yield from self._images_of(piece)
            except OSError as error:
                inputs.forget(self.store, ref.shard)
                raise InputChanged(
                    f"{ref.shard.given}: cannot be read any more as it was: {error}. What was measured is kept; run "
                    "the same command again."
                ) from error
            piece.streamed = True
            self._finish_if_settled(piece)

    def _piece(self, ref: PieceRef) -> Piece:
        members = inputs.members_of(self.store, ref.shard)
        if members is None:
            raise InputChanged(f"{ref.shard.given}: what was known of it went missing; run the same command again.")
        if (ref.shard, ref.stamp) not in AS_INDEXED:
            if reader_of(ref.shard).stamp(ref.shard) != ref.stamp:
                raise self._changed(ref)
            if ref.shard.format == "folder":  # a look at every file below: once in a process, not in every task
                AS_INDEXED.add((ref.shard, ref.stamp))
        samples = members.samples(ref.first, ref.last)
        stamp = stamp_of(ref, samples)
        content = ref.content or content_of(ref, samples)
        self.outcome.contents[ref.shard_number, ref.number] = content
        piece = Piece(self.work, ref, samples, content)
        piece.stamp = stamp
        return piece

    def _changed(self, ref: PieceRef) -> InputChanged:
        inputs.forget(self.store, ref.shard)
        return InputChanged(f"{ref.shard.given}: changed while it was being measured. Run the same command again.")

    def _images_of(self, piece: Piece) -> Iterator[tuple[tuple[Piece, int], bytes]]:
        reader = reader_of(piece.ref.shard)
        chosen: list[tuple[int, Member, Member | None]] = []
        for row in sorted(piece.to_decode):
            image = self._image_of(piece, row)
            if image is not None:
                chosen.append((row, image, self.read.caption_of(piece.samples[row]) if piece.read else None))
        contents = reader.read(piece.ref.shard, [m for _, *members in chosen for m in members if m is not None])
        for row, image, caption in chosen:
            first = next(contents)
            captioned = next(contents) if caption is not None else None
            if piece.read is not None:
                piece.read.note(row, **image_facts(image, first), caption=caption_text(captioned))
            piece.waiting += 1
            yield (piece, row), first

    def _image_of(self, piece: Piece, row: int) -> Member | None:
        """The member that is this sample's image; what else is known of the sample is noted on the way."""
        sample, shard = piece.samples[row], piece.ref.shard
        image = self.read.image_of(sample, lambda member: next(reader_of(shard).read(shard, [member])))
        if piece.read is not None:
            piece.read.note(row, **sample_facts(sample), notes=" ".join(self.read.notes_of(sample)))
        if not isinstance(image, Fault):
            return image  # type: ignore[no-any-return]
        if piece.read is not None:
            piece.read.fail(row, image)
        here.report(done=1, failed=1)
        return None

    def _settle(self, piece: Piece, row: int, result: Decoded | Fault) -> None:
        """Take what the decoder made of one image to the stages that lack it."""
        piece.waiting -= 1
        self.outcome.decoded += 1
        if piece.read is not None:
            fault = result if isinstance(result, Fault) else None
            piece.read.note_decoded(row, getattr(result, "facts", None), fault)
        here.report(done=0 if self._awaited(piece, row, result) else 1, failed=isinstance(result, Fault))
        if not isinstance(result, Fault):
            names = [n for n in piece.wanted if piece.lacks_row(n, row)]
            piece.waiting += len(names)  # at once: a batch that runs full must not find the piece settled between two
            for name in names:
                if name in result.faults:
                    piece.wanted[name].fail(row, *result.faults[name])
                    piece.waiting -= 1
                elif self.batchers[name].add(piece, row, result.arrays[name]):
                    self._scatter(self.batchers[name])
        elif piece.read is None:
            self._fail_everywhere(piece, row, result)
        self._finish_if_settled(piece)

    def _awaited(self, piece: Piece, row: int, result: Decoded | Fault) -> bool:
        return not isinstance(result, Fault) and any(piece.lacks_row(name, row) for name in piece.wanted)

    def _fail_everywhere(self, piece: Piece, row: int, fault: Fault) -> None:
        """An image that was read well before and is not now: the machine's doing; its rows stay open."""
        for name in piece.wanted:
            if piece.lacks_row(name, row):
                piece.wanted[name].fail(row, fault.cause, fault.detail)

    def _scatter(self, batcher: Batcher) -> None:
        """Run a batch and bring its rows home."""
        with self._clock(batcher.stage.name):
            places, columns = batcher.measured()
        self.outcome.measured[batcher.stage.name] += len(places)
        for piece in dict.fromkeys(piece for piece, _ in places):
            mine = [i for i, (p, _) in enumerate(places) if p is piece]
            rows = [places[i][1] for i in mine]
            piece.wanted[batcher.stage.name].fill(rows, {name: column[mine] for name, column in columns.items()})
            piece.waiting -= len(mine)
            self._finish_if_settled(piece)
        if batcher is next(iter(self.batchers.values())):
            here.report(done=len(places))

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.outcome.seconds[stage] += time.monotonic() - begin

    def _finish_if_settled(self, piece: Piece) -> None:
        if not piece.streamed or piece.waiting or piece not in self.unfinished:
            return
        self.unfinished.remove(piece)
        if stamp_of(piece.ref, piece.samples) != piece.stamp:  # else other bytes would stand under this content
            raise self._changed(piece.ref)
        if piece.read is not None:
            self._put(piece, self.read.name, piece.read.table())
        for name, rows in piece.wanted.items():
            self._put(piece, name, rows.table())
        for stage in self.work.stages[1:]:
            if not pixels_of(stage):
                self._measure_stored(piece, stage)

    def _put(self, piece: Piece, stage: str, table: pa.Table) -> None:
        again = bool(pc.any(table.column("open")).as_py())
        piece.open = piece.open or again
        header = {"stage": stage, "open": piece.open, "measured_with": provenance()}
        self.store.put(stage, piece.address(stage), table, header)

    def _measure_stored(self, piece: Piece, stage: ProcessingStage) -> None:
        """A stage that needs no pixels: from what is stored of the piece, also in the run that stored it."""
        had = piece.stored(stage.name)
        if had is not None and not had.header["open"]:
            return
        rows = Rows(piece.count, stage.gives)
        embedding, columns, has = self._given(piece, stage)
        places = np.flatnonzero(has)
        for start in range(0, len(places), ROWS_AT_ONCE):
            some = places[start : start + ROWS_AT_ONCE]
            padded = np.concatenate([some, np.repeat(some[-1:], ROWS_AT_ONCE - len(some))])
            batch = ImageBatch(
                embedding=None if embedding is None else embedding[padded],
                columns={name: column[padded] for name, column in columns.items()},
            )
            with self._clock(stage.name):
                rows.fill(some, run_model(stage, self.work.keys[stage.name], batch, len(some)))
            self.outcome.measured[stage.name] += len(some)
        self._put(piece, stage.name, rows.table())

    def _given(self, piece: Piece, stage: ProcessingStage) -> tuple[Array | None, dict[str, Array], Mask]:
        """The embedding and columns that a stage is given, and which rows have all of them."""
        has = np.ones(piece.count, bool)
        embedding: Array | None = None
        if stage.name in self.work.feeds:
            embedding, has = vectors_of(self._stored(piece, self.work.feeds[stage.name]))
        columns: dict[str, Array] = {}
        for name in measured_from(stage):
            table = self._stored(piece, self.work.givers[name])
            columns.update(as_columns(table, [name]))
            has = has & valid(table, [name])
        return embedding, columns, has

    def _stored(self, piece: Piece, stage: str) -> pa.Table:
        stored = piece.stored(stage)
        if stored is None:
            raise StoreError(
                f"{self.store.path(stage, piece.address(stage))}: went missing; run the same command again."
            )
        return stored.table


def stamp_of(ref: PieceRef, samples: Sequence[Sample]) -> str:
    """A cheap fingerprint of the piece's files; `gone` where one is."""
    try:
        return reader_of(ref.shard).stamp(ref.shard, [m for sample in samples for m in sample.members])
    except OSError:
        return "gone"


def content_of(ref: PieceRef, samples: Sequence[Sample]) -> str:
    """SHA-256 (hex) over the piece's samples: name, size and bytes of their members, in index order."""
    readable = [member for sample in samples for member in sample.members if member.fault is None]
    return piece_content(samples, reader_of(ref.shard).read(ref.shard, readable))


def sample_facts(sample: Sample) -> dict[str, Any]:
    """What a ledger row knows of its sample before any byte is read."""
    suffixes = sorted(shown(sample.suffix_of(member)) for member in sample.members)
    return {"key": sample.key, "members": " ".join(suffixes), "carried": sample.carried or None}


def image_facts(image: Member, content: bytes) -> dict[str, Any]:
    """What is known of an image member before it is decoded."""
    return {"image": image.name, "bytes": image.size, "content_hash": hashlib.sha256(content).hexdigest()}


def caption_text(content: bytes | None) -> str | None:
    """A caption as text; bytes that are not UTF-8 are shown escaped."""
    return None if content is None else content.decode("utf-8", "backslashreplace")


@cache
def provenance() -> str:
    """What computed a measurement, such as `cpu, torch 2.13.0`: recorded beside it, and no part of its address."""
    packages = ("numpy", "open_clip_torch", "pillow", "torch")
    return ", ".join([here.this_worker().device, *(f"{name} {version(name)}" for name in packages)])
