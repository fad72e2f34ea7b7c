"""Who is better of two equal or nearly equal images: rows ranked by policies such as `resolution` or `width desc`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from curator.errors import ConfigError
from curator.stage import Array, Column, Columns

POLICIES = {"aesthetic": ("aesthetic_score",), "resolution": ("width", "height"), "bytes": ("bytes",), "first": ()}
BY_CELL = {"hard": 1, "easy": -1}
"""By the cosine to the centroid of one's cell: `hard` keeps who lies far out, `easy` who lies near it."""

Policies = Annotated[tuple[str, ...] | None, BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)]
"""One policy, or a list of them in order; None for the usual ones."""
CENTROID = "centroid_cosine"
TEXTS = ("caption", "format", "image", "notes", "content_hash")
USUAL = ("aesthetic", "resolution", "bytes")


def check_policies(keep: tuple[str, ...] | None) -> None:
    """Raises ValueError, in words for the person who wrote them, for policies that can rank nothing."""
    if keep == ():
        raise ValueError("keep: [] names no policy; null takes the usual ones, first the input order")
    seen: dict[tuple[str, ...], str] = {}
    for policy in keep or ():
        check_policy(policy)
        columns = tuple(column for column, _ in ranked_by(policy))
        if columns in seen:
            raise ValueError(f"keep: {policy} ranks by the same as {seen[columns]}, and has no say behind it; drop one")
        seen[columns] = policy


def check_policy(policy: str) -> None:
    """Raises ValueError for a policy that can rank nothing."""
    name, _, direction = policy.partition(" ")
    if direction not in ("", "asc", "desc"):
        raise ValueError(f"keep: {policy!r} must end in asc or desc")
    if direction and name in BY_CELL:
        raise ValueError(f"keep: {name} has its direction already")
    if name in TEXTS:
        raise ValueError(_no_ranks(name))


def columns_for(keep: tuple[str, ...] | None) -> list[Column]:
    """The columns that an explicit `keep` ranks by, as a stage needs them."""
    names = dict.fromkeys(column for policy in keep or () for column, _ in ranked_by(policy) if column != CENTROID)
    return [Column(name, number=True, words=(*POLICIES, *BY_CELL)) for name in names]


def ranked_by(policy: str) -> Iterator[tuple[str, int]]:
    """The columns of a policy, each with -1 where large comes first: `width desc`, `bytes asc`, `resolution`."""
    name, _, direction = policy.partition(" ")
    if name in BY_CELL:
        yield CENTROID, BY_CELL[name]
        return
    for column in POLICIES.get(name, (name,)):
        yield column, 1 if direction.strip() == "asc" else -1


def ranks(rows: Columns, keep: tuple[str, ...] | None, count: int) -> Array:
    """(N,) a permutation, 0 the best; ties by input order. Rows without a value come last.

    Rows that are `outside`, kept before and elsewhere, come before all.
    """
    keys: list[Any] = [np.arange(count)]
    policies = list(keep if keep is not None else USUAL)
    if "first" in policies:  # input order has no ties: nothing behind it has a say
        policies = policies[: policies.index("first")]
    for policy in reversed(policies):
        columns = [(_numbers(rows, name), sign) for name, sign in ranked_by(policy) if name in rows]
        if not columns:
            continue
        if policy.partition(" ")[0] == "resolution":
            columns = [(columns[0][0] * columns[1][0], columns[0][1])]
        for column, sign in columns:
            keys.append(np.nan_to_num(sign * column, nan=np.inf, neginf=-np.inf, posinf=np.inf))
    if "outside" in rows:
        keys.append(~rows["outside"])
    rank = np.empty(count, np.int64)
    rank[np.lexsort(keys)] = np.arange(count)
    return rank


def _numbers(rows: Columns, name: str) -> Array:
    """(N,) float64. Raises ConfigError on text, which shows only here where it is another stage's column."""
    try:
        return rows[name].astype(np.float64)
    except ValueError as error:
        raise ConfigError(_no_ranks(name)) from error


def _no_ranks(name: str) -> str:
    return f"keep: {name} is text, which has no better and worse"
