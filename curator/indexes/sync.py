"""A service brought up to date with the rows of a run: what is new is sent, what is no longer kept goes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator.errors import ConfigError
from curator.indexes.base import Entry, Shelf
from curator.indexes.rows import batches, columns_of, ids_of
from curator.stage import Array, Source

LONGEST_TEXT = 2000
"""Characters of a text column that go to a service, which all limit what a row may carry; files take the whole."""

AT_ONCE = 500  # ids of one deletion
MOST_OF_A_NAME = 48  # characters of an output's name in its namespace
SENT = "What was sent is kept; run again to go on."


def put(
    shelf: Shelf, rows: pa.Table, source: Source, stage: str, namespace: str, with_status: bool, size: int
) -> dict[str, int]:
    """Bring the shelf up to date with the rows, `size` at a time; counts of `rows`, `sent`, `there` and `deleted`."""
    model = source.embedded_by(stage)
    parts = (
        entries(rows.take(pa.array(numbers)), emb_ND, namespace, with_status, model, source.output)
        for numbers, emb_ND in batches(rows, source, stage, size)
    )
    return brought_up_to_date(shelf, parts)


def entries(
    rows: pa.Table, emb_ND: Array, namespace: str, with_status: bool, model: Mapping[str, Any], output: str
) -> list[Entry]:
    """Rows and vectors as a service takes them; each says which model it is of, and which output wrote it."""
    of = {"curator_space": model["space"], "curator_weights": weights_of(model), "curator_output": owner_of(output)}
    made = []
    told = columns_of(rows, with_status).to_pylist()
    for id_, row, vector in zip(ids_of(rows, namespace), told, emb_ND, strict=True):
        columns = {_free(name): _plain(value) for name, value in row.items()} | of
        columns = {name: value for name, value in columns.items() if value is not None}
        content = json.dumps(columns, sort_keys=True, ensure_ascii=True).encode() + vector.astype("<f2").tobytes()
        made.append(Entry(id_, hashlib.sha256(content).hexdigest()[:32], vector, columns))
    return made


def weights_of(model: Mapping[str, Any]) -> str:
    """The ids of a model's weights as one text."""
    return " ".join(model["weights"])[:LONGEST_TEXT]


def owner_of(output: str) -> str:
    """An output as its rows name it."""
    return _text(output)[-LONGEST_TEXT:]


def _text(output: str) -> str:
    """A path as text: bytes of it that are no UTF-8 are escaped."""
    return output.encode("utf-8", "backslashreplace").decode()


def namespace_of(output: str) -> str:
    """The namespace of an output whose run names none: its folder's name, and six digits of a hash of its whole path.

    Two outputs that are only called the same have one each.
    """
    name = _text(output).rstrip("/").rpartition("/")[2][:MOST_OF_A_NAME]
    return f"{name}-{hashlib.sha256(_text(output).encode()).hexdigest()[:6]}"


def check_owner(stage: str, place: str, namespace: str, there: str | None, overwrite: bool) -> None:
    """Raise ConfigError where another output wrote the rows of a namespace: ours would take their place."""
    if there is not None and not overwrite:
        raise ConfigError(
            f"{stage}.namespace: {place}: the rows of {namespace} were written by the output {there}, and this run "
            "would delete them. Nothing was written; name another namespace, or say "
            f"{stage}.overwrite=true to replace them."
        )


def _free(name: str) -> str:
    """A column's name; the two that every service has for itself get a `_` behind them."""
    return f"{name}_" if name in ("id", "vector") else name


def _plain(value: Any) -> Any:
    """What every service takes: text of some length, finite numbers, true and false; None for what is missing."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)[:LONGEST_TEXT]


def brought_up_to_date(shelf: Shelf, parts: Iterator[Sequence[Entry]]) -> dict[str, int]:
    """Send what is not there in this form, then take away what is no longer among the rows; counts of both.

    Killed anywhere, the next call sends only what is missing. New rows come before old ones go, so that a search
    meanwhile misses nothing.
    """
    counts = {"rows": 0, "sent": 0}
    try:
        return _sent(shelf, parts, counts)
    except Exception as error:
        if counts["sent"]:
            error.add_note(SENT)
        raise


def _sent(shelf: Shelf, parts: Iterator[Sequence[Entry]], counts: dict[str, int]) -> dict[str, int]:
    keep: set[bytes] = set()
    for part in parts:
        there = shelf.hashes([entry.id for entry in part])
        new = [entry for entry in part if there.get(entry.id) != entry.hash]
        if new:
            shelf.upsert(new)
        keep.update(bytes.fromhex(entry.id) for entry in part)
        counts["rows"] += len(part)
        counts["sent"] += len(new)
    gone = [id_ for some in shelf.ids() for id_ in some if _is_ours(id_) and bytes.fromhex(id_) not in keep]
    for start in range(0, len(gone), AT_ONCE):
        shelf.delete(gone[start : start + AT_ONCE])
    return {**counts, "there": counts["rows"] - counts["sent"], "deleted": len(gone)}


def _is_ours(id_: str) -> bool:
    """Whether an id has the form of Curator's: what somebody else put there is left alone."""
    return len(id_) == 64 and all(letter in "0123456789abcdef" for letter in id_)


def told(counts: Mapping[str, int], place: str) -> list[str]:
    """What a run says of a service at its end."""
    parts = [f"{counts['sent']:,} sent", f"{counts['there']:,} there already"]
    if counts["deleted"]:
        parts.append(f"{counts['deleted']:,} no longer kept and deleted")
    return [f"{place}: {counts['rows']:,} vectors ({', '.join(parts)})"]


def check_model(stage: str, place: str, there: tuple[str, str] | None, model: Mapping[str, Any]) -> None:
    """Raise ConfigError where a service holds vectors of another space or other weights: they say nothing of ours."""
    ours = (str(model["space"]), weights_of(model))
    if there is not None and there != ours:
        which = there[0] if there[0] != ours[0] else f"{there[0]} with the weights {there[1][:16]}"
        raise ConfigError(
            f"{stage}: {place} holds vectors of {which}, and these are of {ours[0]}"
            f"{f' with {ours[1][:16]}' if there[0] == ours[0] else ''}: the two cannot be compared. "
            "Nothing was written; name another place for these."
        )
