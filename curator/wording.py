"""Mistakes in plain words: what pydantic found, and which name was probably meant. Knows no setting and no stage."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError


def meant(word: str, words: Any) -> str:
    """` Did you mean X?`, or nothing."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def plain(error: ValidationError, prefix: str, known: Iterable[str] = ()) -> list[str]:
    """Pydantic's findings in plain words, one line each, `prefix` before the setting's name; `known`: all names."""
    lines = []
    for fault in error.errors():
        place = prefix + ".".join(str(part) for part in fault["loc"] if part != "str" and "[" not in str(part))
        is_strange = fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
        near = f".{meant(str(fault['loc'][0]), known)}" if is_strange else ""
        lines.append(f"{place.rstrip('.')}: {_words(fault)}{near}")
    return list(dict.fromkeys(lines))


def _words(fault: Any) -> str:
    context = fault.get("ctx", {})
    given = fault.get("input")
    words = {
        "extra_forbidden": "no such setting",
        "missing": "must be given",
        "greater_than_equal": f"must be at least {context.get('ge')}, not {given!r}",
        "greater_than": f"must be more than {context.get('gt')}, not {given!r}",
        "less_than_equal": f"must be at most {context.get('le')}, not {given!r}",
        "less_than": f"must be less than {context.get('lt')}, not {given!r}",
        "literal_error": f"must be {context.get('expected')}, not {given!r}",
        "float_parsing": f"must be a number, not {given!r}",
        "float_type": f"must be a number, not {given!r}",
        "int_parsing": f"must be a whole number, not {given!r}",
        "int_type": f"must be a whole number, not {given!r}",
        "int_from_float": f"must be a whole number, not {given!r}",
        "finite_number": f"must be a finite number, not {given!r}",
        "bool_parsing": f"must be true or false, not {given!r}",
        "bool_type": f"must be true or false, not {given!r}",
        "string_type": f"must be text, not {given!r}",
        "tuple_type": f"must be a list, such as [{given}], not {given!r}",
        "value_error": str(context.get("error", fault["msg"])),
    }
    return words.get(fault["type"], f"{fault['msg']}, not {given!r}")
