"""What a measurement is stored under: a tagged hash of everything that its numbers depend on, and of nothing else.

In an address: the stage's class and version, its measure-fields, the ids of its weights, the keys of the stages
that it was computed from, and the content of the piece. Not in it: paths, hosts, clocks, devices, library
versions, batch sizes, partitions, worker counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a value: sorted keys, no blanks, plain ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def tagged(tag: str, value: Any) -> str:
    """SHA-256 (64 hex digits) of a tag and a canonical value; two kinds of thing never share an address."""
    return hashlib.sha256(b"curator:" + tag.encode() + b":1\n" + canonical(value)).hexdigest()


def stage_key(identity: str, fields: dict[str, Any], weights: Iterable[str], inputs: Iterable[str]) -> str:
    """Everything an address holds except the piece. `inputs` are the keys of the stages it is computed from."""
    return tagged("stage", {"class": identity, "fields": fields, "weights": list(weights), "inputs": sorted(inputs)})


def measurement(key: str, content: str) -> str:
    """The address of one stage's columns for one piece: `content` is the piece's SHA-256."""
    return tagged("measurement", [key, content])


def gathered(stages: Iterable[str], addresses: Iterable[Iterable[str]]) -> str:
    """The address of what several stages say together, in input order; their names name its columns."""
    return tagged("gathered", [list(stages), *(list(row) for row in addresses)])


def found(key: str, addresses: Iterable[str]) -> str:
    """The address of what a collection stage found among a set of embeddings, in whatever order they came."""
    return tagged("found", [key, sorted(set(addresses))])
