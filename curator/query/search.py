"""`curator.search`: what is nearest to a text, an image or a vector, near-identical results folded into one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curator.errors import ConfigError
from curator.indexes.base import Hits
from curator.indexes.rows import unit
from curator.indexes.where import Condition, checked, parsed
from curator.query.model import embedder, of_image, of_text
from curator.query.places import Opened, opened
from curator.stage import Array
from curator.wording import plain

MOST = 10_000


class Question(BaseModel):
    """What is asked of which index. Each setting as `docs/search.md` explains it."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    index: str = Field(min_length=1)
    query: str | None = None
    image: str | None = None
    k: int = Field(12, ge=1, le=MOST)
    where: str | None = None
    fold: float = Field(0.98, gt=0, le=1)
    model_dir: str | None = None
    config_dir: Path | None = None
    embedding: str | None = None
    collection: str | None = None
    namespace: str | None = None

    def opened(self) -> AbstractContextManager[Opened]:
        """The index, open."""
        return opened(self.index, self.collection, self.namespace, self.embedding)


def asked(given: Mapping[str, Any], vector: Any = None) -> Question:
    """A question. Raises ConfigError with a line for each mistake."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    mistakes: list[str] = []
    question: Question | None = None
    try:
        question = Question(**given)
    except ValidationError as error:
        mistakes = plain(error, "", Question.model_fields)
    asks = [name for name in ("query", "image") if given.get(name)] + (["vector"] if vector is not None else [])
    if len(asks) != 1:
        mistakes.append(
            f"query: {' and '.join(asks)} are both given; ask one thing." if asks
            else "query: must be given: words such as query='a red car', or image=PATH."
        )  # fmt: skip
    if given.get("where"):
        try:
            parsed(str(given["where"]))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes or question is None:
        raise ConfigError(mistakes)
    return question


def search(
    index: str | Path,
    query: str | None = None,
    *,
    image: str | Path | None = None,
    vector: Any = None,
    k: int = 12,
    where: str | None = None,
    fold: float = 0.98,
    **more: Any,
) -> pa.Table:
    """The k images nearest to a text, an image file or a vector (D,), best first, as a table.

    Columns: `rank` from 1, `similarity` (the cosine), `folded` (how many near-identical results stand behind this
    one), `shard`, `key` and the index's others. Fewer rows where there are fewer. `where` is a condition on columns;
    a result whose cosine to a better one is at least `fold` is folded into it, 1 folds equal vectors only.
    `more`: `model_dir`, `config_dir`, `embedding`, `collection`, `namespace`. Raises ConfigError with every mistake.
    """
    given = {"index": index, "query": query, "image": image, "k": k, "where": where, "fold": fold, **more}
    question = asked({name: value for name, value in given.items() if value is not None}, vector)
    with question.opened() as at:
        if at.remark:
            warnings.warn(at.remark, stacklevel=2)
        return found(question, at, vector)


def found(question: Question, at: Opened, vector: Any = None) -> pa.Table:
    """The answer of an index that is open."""
    about = at.index.about
    condition = parsed(question.where) if question.where else None
    if condition is not None:
        checked(condition, about.columns)
    if not about.count:
        return results(Hits(_no_rows(about.columns), np.empty(0), np.empty((0, 0))), np.empty(0, np.int64))
    asked_for = _vector(question, at, vector)
    if about.dim and len(asked_for) != about.dim:
        raise ConfigError(f"vector: has {len(asked_for)} numbers, and {at.name} is of {about.dim} dimensions.")
    return _folded(question, at, asked_for, condition)


def _vector(question: Question, at: Opened, given: Any) -> Array:
    if given is not None:
        try:
            flat = np.asarray(given, np.float32).reshape(1, -1)
        except (TypeError, ValueError):
            raise ConfigError(f"vector: must be a list of numbers, not {_shortly(given)}.") from None
        if not np.isfinite(flat).all() or not flat.any():
            raise ConfigError("vector: must be finite numbers, not all zero.")
        vector: Array = unit(flat)[0]
        return vector
    stage = embedder(at, question.model_dir, question.config_dir)
    if question.image is not None:
        return of_image(stage, at.index.about.model["read"], question.image)
    return of_text(stage, question.query or "")


def _shortly(given: Any) -> str:
    told = repr(given)
    return told if len(told) <= 60 else f"a {type(given).__name__}"


def _folded(question: Question, at: Opened, vector: Array, condition: Condition | None) -> pa.Table:
    """Ask for more than k, since some will be folded; for yet more while too few are left."""
    ask = 2 * question.k + 16
    while True:
        hits = at.index.nearest(vector, ask, condition)
        kept, folded = fold(hits.vectors, question.fold, question.k)
        if len(kept) == question.k or len(hits.similarity) < ask:
            rows = hits.rows.take(pa.array(kept))
            return results(Hits(rows, hits.similarity[kept], hits.vectors[kept]), folded)
        ask *= 4


def fold(vectors: Array, least: float, k: int) -> tuple[Array, Array]:
    """Which of (N, D) unit rows, best first, are k results, and how many near-identical ones stand behind each.

    A row whose cosine to an earlier result is at least `least` is folded into the nearest such.
    """
    kept: list[int] = []
    folded: list[int] = []
    for number, row in enumerate(vectors):
        near = vectors[kept] @ row if kept else np.empty(0)
        if len(near) and near.max() >= least - 1e-6:  # float32 sums of equal vectors may fall short of 1
            folded[int(near.argmax())] += 1
        elif len(kept) == k:
            break
        else:
            kept.append(number)
            folded.append(0)
    return np.array(kept, np.int64), np.array(folded, np.int64)


def results(hits: Hits, folded: Array) -> pa.Table:
    """What is handed out."""
    count = hits.rows.num_rows
    first = {
        "rank": pa.array(np.arange(1, count + 1)),
        "similarity": pa.array(np.asarray(hits.similarity, np.float64)),
        "folded": pa.array(folded),
    }
    names = ["shard", "key", *(n for n in hits.rows.column_names if n not in ("shard", "key"))]
    return pa.table({**first, **{n: hits.rows.column(n) for n in names if n in hits.rows.column_names}})


def _no_rows(columns: Mapping[str, str]) -> pa.Table:
    types = {"number": pa.float64(), "truth": pa.bool_()}
    return pa.table({name: pa.array([], types.get(kind, pa.string())) for name, kind in columns.items()})
