"""What was typed -> what Hydra's grammar takes: paths are quoted, plain settings may be new, lists stay lists.

Knows nothing about stages or runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from curator.errors import ConfigError

GROUPS = ("stages", "cluster", "recipe", "experiment")
PATHS = frozenset(
    "input output store against model_dir pretrained address local_directory tls_ca tls_cert tls_key file_paths "
    "output_dir file prompts".split()
)
"""Settings whose values are paths, addresses or words of one's own, by the last part of their name."""
LISTS = frozenset(("input", "file_paths", "against", "prompts"))  # of them that take several


def prepared(overrides: Sequence[str], multirun: bool) -> list[str]:
    """Overrides as Hydra takes them. Raises ConfigError with every one that cannot be meant."""
    result, mistakes = [], list(_taken_apart(overrides))
    for override in overrides:
        try:
            result.append(_parsed(_prepared(override, multirun), override))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return result


def _taken_apart(overrides: Sequence[str]) -> Iterator[str]:
    """An input given more than once: Hydra would read the last alone, and a shell makes this of unquoted braces."""
    given = [o.partition("=")[2] for o in overrides if o.lstrip("+").startswith("input=")]
    if len(given) > 1:
        yield (
            f"input: given {len(given)} times, and only one can count. Braces stand in quotes, "
            f"'input=shards/{{0..9}}.tar', or a shell takes them apart; several inputs are a list, "
            f"'input=[{','.join(given[:2])}{',...' if len(given) > 2 else ''}]'."
        )


def _prepared(override: str, multirun: bool) -> str:
    if override.startswith("~"):
        if not re.fullmatch(r"~[\w./@:-]+", override):
            raise ConfigError(f"{override}: a stage is taken out by its name alone, as in '~dedup'.")
        return override
    name, equals, value = override.partition("=")
    plain = name.lstrip("+")
    if not equals or not re.fullmatch(r"[\w./@:-]+", plain):
        raise ConfigError(f"{override}: is no setting. Write name=value, such as output=out or read.max_pixels=1000.")
    if plain in GROUPS and (value.strip() in ("", "null") or re.fullmatch(r"[\d.]+|true|false", value.strip())):
        raise ConfigError(f"{override}: {plain} is chosen by name. `curate --help` lists them.")
    if plain in GROUPS and any("[" in part.strip()[1:] for part in split(value)):
        raise ConfigError(f"{override}: a list of names, and no lists in it.")
    if plain == "stages":
        _check_stages(override, value)
    if plain in GROUPS and not multirun and _commas(value):
        listed = f"a list is written in brackets, '{plain}=[{value}]'; " if plain == "stages" else ""
        raise ConfigError(f"{override}: {listed}values with commas between them are a sweep, and that needs -m.")
    if plain == "output" and multirun and _commas(value) and not Path(value).exists():
        raise ConfigError(f"{override}: a sweep has one output, with a folder in it for each job.")
    if plain.rpartition(".")[2] in PATHS or plain == "name":
        value = _quoted(plain, value, multirun)
    elif _commas(value) and not multirun:
        raise ConfigError(
            f"{override}: values with commas between them are a sweep, and that needs -m. A list is written "
            f"'{plain}=[{value}]'."
        )
    is_group = plain in GROUPS or "/" in plain or plain.split(".")[0] == "hydra" or "@" in plain
    return f"{name if is_group else '++' + plain}={value}"


def _check_stages(override: str, value: str) -> None:
    """Raise ConfigError for a list that names nothing, or a stage twice: Hydra takes the second for the first."""
    for part in map(str.strip, split(value)):
        if not (part.startswith("[") and part.endswith("]")):
            continue
        names = [name.strip().strip("'\"") for name in split(part[1:-1])]
        if not any(names):
            raise ConfigError(f"{override}: names no stage. Without stages=..., the recipe's are run.")
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ConfigError(
                f"{override}: {' and '.join(twice)} stands in it more than once, and each runs once. A second one with "
                "other settings is a YAML of your own in stages/ (--config-dir), under another name."
            )


def _parsed(prepared: str, typed: str) -> str:
    """The override again. Raises ConfigError, in the words that were typed, where Hydra's grammar does not take it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_overrides([prepared])
    except HydraException as error:
        name, _, value = typed.partition("=")
        as_text = "" if name in GROUPS or value.startswith("[") else f" As text it is written {_in_shell(name, value)}."
        raise ConfigError(
            f"{typed}: cannot be read: a bracket, brace or quote is open, or a sign stands where it cannot.{as_text}"
        ) from error
    return prepared


def _in_shell(name: str, value: str) -> str:
    """A setting as it is typed where its value holds signs that mean something to Hydra, to a shell, or to both."""
    text = f"{name}={_in_quotes(value)}"
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def _commas(value: str) -> bool:
    return len(split(value)) > 1


def split(text: str) -> list[str]:
    """A text at its commas, those inside brackets, braces, parentheses and quotes left alone."""
    parts, depth, quote, escaped = [""], 0, "", False
    for sign in text:
        if quote:
            quote = "" if sign == quote and not escaped else quote
            escaped = sign == "\\" and not escaped
        elif sign in "'\"":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth = max(0, depth - 1)
        elif sign == "," and not depth:
            parts.append("")
            continue
        parts[-1] += sign
    return parts


def _quoted(name: str, value: str, multirun: bool) -> str:
    values = split(value)
    if len(values) > 1 and not multirun:
        if not Path(value).exists():
            several = (
                f"several values are written as a list, '{name}=[{value}]'"
                if name.rpartition(".")[2] in LISTS
                else f"a comma in a name is written {_in_shell(name, value)}"
            )
            raise ConfigError(f"{name}={value}: {several}; with commas alone they are a sweep, and that needs -m.")
        values = [value]
    return ",".join(_one(part.strip() if len(values) > 1 else part) for part in values)


def _one(value: str) -> str:
    if value.startswith("[") and value.endswith("]"):
        elements = split(value[1:-1]) if value[1:-1].strip() else []
        return f"[{','.join(_one(element.strip()) for element in elements)}]"
    if value in ("null", "") or _is_quoted(value):
        return value
    return _in_quotes(value)


def _in_quotes(value: str) -> str:
    """A value as Hydra's grammar takes any text: between quotes, those in it escaped."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=value, quote=Quote.single).with_quotes()


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def typed_names(overrides: Sequence[str]) -> Iterator[str]:
    """The settings that were typed, without signs and values."""
    for override in overrides:
        if not override.startswith("~") and "=" in override:
            yield override.partition("=")[0].lstrip("+")
