"""Measuring where there is nothing to decode: vectors that were computed elsewhere, a piece at a time, columns at once.

What is stored is what `embed` would have stored: float16 rows of unit length, and reading's columns beside them.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa

from curator.errors import Cause
from curator.formats import tables, vectors
from curator.phases.columns import READ_SCHEMA, unit_float16
from curator.phases.piece import PieceRef
from curator.stage import Array, Mask
from curator.store import vectors_column

NO_VECTOR = "its vector has no direction: zeros, or numbers that are none"


def piece_of(ref: PieceRef) -> tuple[str, pa.Table]:
    """Content and stored columns of a piece of vectors."""
    emb_ND = vectors.rows_of(ref.shard, ref.first, ref.last)
    keys, facts = vectors.facts_of(ref.shard, ref.first, ref.last)
    return content_of(emb_ND, keys, facts), table_of(emb_ND, keys, facts)


def content_of(emb_ND: Array, keys: list[str], facts: pa.Table | None) -> str:
    """SHA-256 (hex) over the vectors as they lie in the file, and over what is known of each row."""
    digest = hashlib.sha256(b"curator:vectors:1\n")
    digest.update(struct.pack("<QQ", *emb_ND.shape) + emb_ND.dtype.str.encode())
    digest.update(np.ascontiguousarray(emb_ND).data)
    for text in (*keys, *(tables.rows_of(facts, facts.column_names) if facts is not None else ())):
        encoded = text.encode("utf-8", "surrogateescape")
        digest.update(struct.pack("<Q", len(encoded)) + encoded)
    return digest.hexdigest()


def table_of(emb_ND: Array, keys: list[str], facts: pa.Table | None) -> pa.Table:
    """The columns that reading gives: keys, what went along, vectors, and a fault where a row has none."""
    count = len(keys)
    unit = unit_float16(emb_ND)
    has: Mask = np.asarray(np.isfinite(unit).all(axis=1))
    columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in READ_SCHEMA}
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    columns |= {
        "key": pa.array(encoded, pa.binary()),
        "notes": pa.array([""] * count),
        "cause": pa.array([None if fit else Cause.SCORE_NOT_FINITE.value for fit in has], pa.string()),
        "detail": pa.array([None if fit else NO_VECTOR for fit in has], pa.string()),
        "open": pa.array(np.zeros(count, bool)),
    }
    if facts is not None:
        columns |= {name: facts.column(name) for name in facts.column_names}
    return pa.table({**columns, "embedding": vectors_column(np.where(has[:, None], unit, 0), has)})
