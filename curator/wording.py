"""Mistakes in plain words: what pydantic found, and which name was probably meant. Knows no setting and no stage."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError


def meant(word: str, words: Any) -> str:
    """` Did you mean X?`, or nothing."""
    by_letters = {known.lower(): known for known in words}
    near = difflib.get_close_matches(word.lower(), by_letters, n=1, cutoff=0.6)
    return f" Did you mean {by_letters[near[0]]}?" if near else ""


def together(told: Iterable[tuple[str, str]]) -> list[str]:
    """`who: what` of each, and those who are told the same at once: `embed and concept: what`."""
    by_text: dict[str, dict[str, None]] = {}
    for who, what in told:
        by_text.setdefault(what, {})[who] = None
    return [f"{' and '.join(names)}: {what}" for what, names in by_text.items()]


def unknown(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """What to say of a setting that there is not; `elsewhere`: names that other tools have, and what is said here."""
    return f"no such setting; {elsewhere[name]}." if name in elsewhere else f"no such setting.{meant(name, known)}"


def as_written(value: Any) -> str:
    """A value as YAML spells it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def plain(
    error: ValidationError, prefix: str, known: Iterable[str] = (), elsewhere: Mapping[str, str] | None = None
) -> list[str]:
    """Pydantic's findings in plain words, one line each, `prefix` before the setting's name; `known`: all names."""
    lines = []
    for fault in error.errors():
        place = prefix + ".".join(str(part) for part in fault["loc"] if part != "str" and "[" not in str(part))
        is_strange = fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
        told = unknown(str(fault["loc"][0]), known, elsewhere or {}) if is_strange else _words(fault)
        lines.append(f"{place.rstrip('.')}: {told}")
    return list(dict.fromkeys(lines))


def _words(fault: Any) -> str:
    context = fault.get("ctx", {})
    given = fault.get("input")
    # of a picture, most likely: its bytes say nothing to a person
    given = f"{len(given):,} bytes" if isinstance(given, bytes | bytearray) else as_written(given)
    words = {
        "extra_forbidden": "no such setting",
        "missing": "must be given",
        "greater_than_equal": f"must be at least {context.get('ge')}, not {given}",
        "greater_than": f"must be more than {context.get('gt')}, not {given}",
        "less_than_equal": f"must be at most {context.get('le')}, not {given}",
        "less_than": f"must be less than {context.get('lt')}, not {given}",
        "literal_error": f"must be {context.get('expected')}, not {given}",
        "float_parsing": f"must be a number, not {given}",
        "float_type": f"must be a number, not {given}",
        "int_parsing": f"must be a whole number, not {given}",
        "int_type": f"must be a whole number, not {given}",
        "int_from_float": f"must be a whole number, not {given}",
        "finite_number": f"must be a finite number, not {given}",
        "bool_parsing": f"must be true or false, not {given}",
        "bool_type": f"must be true or false, not {given}",
        "string_pattern_mismatch": f"{given} cannot be used; it must fit {context.get('pattern')}",
        "string_too_short": "must not be empty" if context.get("min_length") == 1
        else f"must have at least {context.get('min_length')} characters, not {given}",
        "string_too_long": f"must have at most {context.get('max_length')} characters; {given} has more",
        "too_short": f"must have at least {context.get('min_length')} in it, not {given}",
        "too_long": f"must have at most {context.get('max_length')} in it, not {given}",
        "string_unicode": f"must be text, not {given}",
        "string_type": f"must be text, not {given}",
        "tuple_type": f"must be a list, such as [{given}], not {given}",
        "value_error": str(context.get("error", fault["msg"])),
    }
    return words.get(fault["type"], f"{fault['msg']}, not {given}")
