"""What a stage is: a frozen description of settings, the verbs it has, and what each setting changes.

A stage is one of four kinds, told by its verbs, and takes part wherever it has one:

    source       list(inputs) -> shards, or index(shard) -> samples              touches files
    image        prepare(image) -> array, measure(batch) -> columns, keep(rows) -> mask
    collection   find(vectors, each) -> found, choose(rows, found, alive) -> Choice
    writer       write(rows, source, folder, each) -> columns, facts             touches files

A collection needs no `find`: then it chooses from columns alone. It may also `measure` the columns it chooses from.
An image stage needs no `measure`: then it keeps from columns that others measured, and another setting is free.
Beside `keep`, `why(rows)` says why each row is not kept, and `remarks(rows, mask)` what is to be told at the end.

`measure` knows no threshold and `keep` sees no image: what is measured is stored for good, what is decided
can be decided again in seconds. Knows nothing about Hydra, Dask, torch or any concrete stage.
Next to read: `stages/aesthetic.py`, the promise kept in 60 lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from curator.errors import ConfigError
from curator.wording import plain

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Columns = Mapping[str, Array]
"""NumPy arrays by column name, all of one length. Text columns are object arrays of str or None."""


class Role(StrEnum):
    """What a setting changes."""

    MEASURES = "measures"  # the numbers: part of the address
    DECIDES = "decides"  # decisions only
    SPEEDS = "speeds"  # neither


def measures(default: Any = ..., **limits: Any) -> Any:
    """A field that changes what is measured, and so is part of the address. `limits` as in pydantic: ge, lt ..."""
    return Field(default, json_schema_extra={"role": Role.MEASURES}, **limits)


def decides(default: Any = ..., **limits: Any) -> Any:
    """A field that changes decisions only: another value never measures again."""
    return Field(default, json_schema_extra={"role": Role.DECIDES}, **limits)


def speeds(default: Any = ..., **limits: Any) -> Any:
    """A field that changes neither numbers nor decisions."""
    return Field(default, json_schema_extra={"role": Role.SPEEDS}, **limits)


@dataclass(frozen=True)
class Pixels:
    """The stage's `prepare` is given the decoded image.

    `max_side=n` or `min_side=n` lets the decoder shrink it while its longer or shorter side stays at least n;
    neither means full size.
    """

    max_side: int | None = None
    min_side: int | None = None


@dataclass(frozen=True)
class Embedding:
    """The stage's `measure` or `find` is given an image stage's unit vectors; `spaces` that it was made for, or any."""

    spaces: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Column:
    """The stage is given a column that an earlier stage measures, such as `caption` or `width`.

    `measure` is given it, or `choose` in a stage that has that verb: another ranking must never measure again. `keep`
    is given it in a stage that does not measure, for every image that is alive, with None or NaN where it is empty.
    `number`: text will not do. `words`: what may have been meant where there is no such column.
    """

    name: str
    number: bool = False
    words: tuple[str, ...] = ()


Need = Pixels | Embedding | Column


@dataclass(frozen=True)
class Worker:
    """Where `setup` loads what `measure` works with: once per worker process."""

    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class ImageBatch:
    """What `measure` works on: B images. `model` is whatever `setup` returned.

    `pixels` are the prepared arrays, stacked (B, ...); `embedding` (B, D) float16 unit vectors; `columns` by name.
    Batches of pixels always have the same B; rows behind the last image are padding whose results are discarded.
    """

    pixels: Array | None = None
    embedding: Array | None = None
    columns: Columns = field(default_factory=dict)
    model: Any = None


@dataclass(frozen=True)
class Weights:
    """One weights file that a stage's numbers depend on. `id` is its SHA-256, or the id of the published model.

    `path` is where it lies, or None where the id is known without a file; `missing` then says, in words for a
    person, which file, where from and where to put it.
    """

    id: str
    path: Path | None = None
    missing: str | None = None


Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""`each(fn, items)`: fn of every item, on workers or in this process, yielded in order of completion."""


class Vectors(Protocol):
    """The stored embeddings of a collection: float16, unit length, piece by piece. Pickles as a description."""

    addresses: Sequence[str]  # sorted, distinct: one per piece
    desk: Any  # a `curator.desk.Desk`: what was found so far, for who goes on after a kill
    known: Any  # a `curator.pairs.known.Known`: what was found among a part of them before, or None

    def read(self, address: str) -> tuple[Array, Mask]:
        """One piece: (N, D) float16, memory-mapped where possible, and (N,) True where a row has a vector."""

    def only(self, addresses: Sequence[str]) -> Vectors:
        """The same with fewer pieces, for a task that needs no others."""


@dataclass(frozen=True)
class Choice:
    """What a collection stage decided about N rows.

    `dropped_by` (N,) int64: the row that is kept in its place, -1 where the row stays.
    `similarity` (N,) float64 to that row, NaN where the row stays. `reason` is what the ledger says of a dropped row,
    up to the name of the row in its place, which follows it; `{similarity}` in it is filled in. `unrepresented` (N,)
    True where a row is dropped and nobody is kept for it, as some published rules do: `resembles` (N,) int64 may then
    name the row that it is dropped for and that goes as well, -1 where that is not known, with `similarity` to it.
    `remarks` are shown at the end; `walked` counts rows whose pairs were too many to be stored and compared again.
    """

    dropped_by: Array
    similarity: Array
    cause: str = "near_duplicate"
    reason: str = "near-duplicate {similarity:.3f} of"
    unrepresented: Array | None = None
    resembles: Array | None = None
    remarks: tuple[str, ...] = ()
    walked: int = 0


class Source(Protocol):
    """What a writer takes from: the samples behind rows of the ledger. Pickles as a description."""

    ledger: Any  # the whole ledger, a pyarrow Table; for the writer itself, not for its tasks
    run: str  # the run's identity, as in run.json
    output: str  # where its output lies in the end: a path from the root, or a URL

    def shard(self, given: str) -> Any:
        """The shard that the ledger calls by this name: a `curator.formats.base.Shard`."""

    def sample(self, shard: str, index: int) -> Any:
        """One `curator.formats.base.Sample` by its place; cheap when asked in order."""

    def read(self, shard: str, members: Iterable[Any]) -> Iterator[bytes]:
        """The bytes of some members of a shard, in order."""

    def check(self, shard: str) -> None:
        """Raises InputChanged where the file is not the one that was measured."""

    def vectors(self, stage: str, rows: Any) -> Iterator[tuple[Array, Mask]]:
        """The stored embeddings that a stage is fed, in the order of `rows`, a table with `shard` and `index`.

        Parts of some hundred rows: (n, D) float16 unit vectors, and (n,) True where a row has one.
        """

    def embedded_by(self, stage: str) -> dict[str, Any]:
        """What made the embeddings that a stage is fed, as plain JSON: `Plan.embedding` says what is in it."""


class ProcessingStage(BaseModel):
    """The one base of all stages: frozen, keyword-only, checked when it is made, and thin.

    Subclasses add fields with `measures`, `decides` or `speeds` (a bare field measures), say what they `need`
    and which columns they `give`, and write their verbs. `version` names the algorithm: a class that sets it is
    trusted to change it when the numbers change; otherwise its file's hash stands in.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        validate_default=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )

    version: ClassVar[int | None] = None
    called: ClassVar[str] = ""  # the name in YAML; by default the class's name in snake case
    needs: ClassVar[tuple[Need, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()
    elsewhere: ClassVar[Mapping[str, str]] = {}  # settings by the names that other tools have: what is said here
    copies_images: ClassVar[bool] = False  # of a writer: whether the images' bytes go where it writes
    light: ClassVar[bool] = False  # of a writer: whether each job of a sweep may run it

    def __init__(self, *values: Any, **settings: Any) -> None:
        """Check the settings. Raises ConfigError with a line for each mistake."""
        kind = type(self)
        if values:
            raise ConfigError(f"{kind.__name__}: settings are given by name, as in {kind.__name__}(action='flag').")
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(
                plain(error, f"{settings.get('name') or kind.default_name()}.", fields_of(kind), kind.elsewhere)
            ) from None

    name: str = speeds("")
    action: Literal["drop", "flag"] = decides("drop")

    def model_post_init(self, _: Any) -> None:
        """A stage that was given no name takes that of its class."""
        if not self.name:
            object.__setattr__(self, "name", type(self).default_name())

    @classmethod
    def default_name(cls) -> str:
        """`called`, or the class's name in snake case without `Stage`: `MyFilterStage` is `my_filter`."""
        plain = cls.__name__.removesuffix("Stage") or cls.__name__
        return cls.called or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain).lower()

    @classmethod
    def role_of(cls, field_name: str) -> Role:
        """What a field changes; a field without a role measures, so that a forgotten one never lies."""
        extra = cls.model_fields[field_name].json_schema_extra
        return Role(str(extra["role"])) if isinstance(extra, dict) and "role" in extra else Role.MEASURES

    def measure_fields(self) -> dict[str, Any]:
        """The settings that are part of the address, as plain JSON values."""
        names = {n for n in type(self).model_fields if self.role_of(n) is Role.MEASURES}
        return self.model_dump(mode="json", include=names)

    def has(self, verb: str) -> bool:
        """Whether this stage brings the verb; override where that depends on its fields."""
        return callable(getattr(self, verb, None))

    def needed(self) -> tuple[Need, ...]:
        """What this stage is given; override where that depends on its fields."""
        return self.needs

    def weights(self) -> tuple[Weights, ...]:
        """The weights files that its numbers depend on; their ids enter the address."""
        return ()

    def decided_from(self) -> tuple[Path, ...]:
        """Files that `keep` reads. What stands in them takes part in the decision, and not where they lie."""
        return ()

    def fed_by(self, giver: ProcessingStage) -> ProcessingStage:
        """The same stage, told which one gives its embedding: for one that asks that one's model about texts.

        Raises ConfigError where it cannot.
        """
        return self

    def mistakes(self) -> Iterable[str]:
        """What is wrong with its settings that a constructor must not look at, such as a file: a line for each."""
        return ()

    def setup(self, worker: Worker) -> Any:
        """Load what `measure` works with, once per worker process; `measure` finds it in `batch.model`."""
        return None

    @property
    def kind(self) -> Literal["source", "image", "collection", "writer"]:
        """Which of the four kinds this stage is, told by its verbs."""
        if self.has("list") or self.has("index"):
            return "source"
        if self.has("choose"):
            return "collection"
        return "writer" if self.has("write") else "image"

    @property
    def space(self) -> str:
        """The space that this stage's embeddings live in: two spaces are never compared."""
        return f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"


def fields_of(stage_class: type[ProcessingStage]) -> dict[str, FieldInfo]:
    """Every setting of a stage class by name, as YAML spells it."""
    return {n: f for n, f in stage_class.model_fields.items() if n != "name"}
