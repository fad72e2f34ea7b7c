"""The whole surface of keys, frozen: a new knob, another default or another role is a changed line in review.

To accept a change: `python -m tests.golden.test_key_surface`.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from curator.cluster import ClusterSettings
from curator.compose import CONF
from curator.custom import BUILT_IN, stage_class
from curator.settings import Settings
from curator.stage import fields_of

FROZEN = Path(__file__).with_name("key_surface.txt")


def surface() -> list[str]:
    """`key: type = default (role)`, one per line."""
    lines = [f"{n}: {_type(f.annotation)} = {_default(f)}" for n, f in Settings.model_fields.items() if n != "cluster"]
    loaded = yaml.safe_load((CONF / "config.yaml").read_text())
    told = {"name": loaded["name"], **{f"sweep.{key}": value for key, value in loaded["sweep"].items()}}
    lines += [f"{name}: {type(value).__name__} = {value!r}" for name, value in told.items()]
    lines += [f"cluster.{n}: {_type(f.annotation)} = {_default(f)}" for n, f in ClusterSettings.model_fields.items()]
    for name, target in BUILT_IN.items():
        kind = stage_class(target, name, None)
        for key, field in fields_of(kind).items():
            lines.append(f"{name}.{key}: {_type(field.annotation)} = {_default(field)} ({kind.role_of(key).value})")
    return lines


def _type(annotation: object) -> str:
    plain = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"typing\.|Annotated\[|, AfterValidator\(.*?>\)\]", "", plain)


def _default(field: object) -> str:
    return repr(field.default)  # type: ignore[attr-defined]


def test_the_key_surface_is_the_frozen_one():
    """Every config key with type, default and role."""
    assert surface() == FROZEN.read_text().splitlines()


if __name__ == "__main__":
    FROZEN.write_text("\n".join(surface()) + "\n")
