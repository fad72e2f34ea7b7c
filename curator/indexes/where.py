"""`where`: a condition on columns, parsed by hand and never evaluated as code.

    aesthetic_score > 0.6 and not (caption = 'a cat' or width in (64, 128))

Comparisons (= != < <= > >=), `in (...)`, `and`, `or`, `not`, brackets; text in quotes. `not` is worked into the
comparisons, so that a row without a value meets neither a condition nor its opposite, whichever index is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator.errors import ConfigError
from curator.stage import Mask
from curator.wording import meant

Value = str | float | int | bool
Kind = Literal["number", "text", "truth"]
"""What a column holds, as far as conditions care."""

OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_COMPARE: dict[str, Callable[[pa.ChunkedArray, pa.Scalar], pa.ChunkedArray]] = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*|`[^`]+`)"""
    r"""|(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<sign><=|>=|==|!=|<>|[=<>()\[\],]))"""
)
_DEEPEST = 50  # brackets inside brackets


@dataclass(frozen=True)
class Comparison:
    """One column against one value."""

    column: str
    sign: str
    value: Value


@dataclass(frozen=True)
class Together:
    """Several conditions, of which `all` or `any` must hold."""

    how: Literal["all", "any"]
    parts: tuple[Condition, ...]


Condition = Comparison | Together


def parsed(text: str) -> Condition:
    """The condition that a text states. Raises ConfigError, naming the place, where it states none."""
    return _Parser(text).whole()


def checked(condition: Condition, columns: Mapping[str, Kind | None]) -> None:
    """Raise ConfigError with a line for each column that there is not, or that holds something else.

    `columns`: what each holds, None where that is not known.
    """
    mistakes = []
    for one in comparisons(condition):
        if one.column not in columns:
            near = meant(one.column, columns)
            mistakes.append(f"where: there is no column {one.column}.{near} There are {', '.join(sorted(columns))}.")
            continue
        holds, given = columns[one.column], kind_of_value(one.value)
        if holds is not None and holds != given:
            mistakes.append(f"where: {one.column} holds {_NOUNS[holds]}, not {_NOUNS[given]} such as {one.value!r}.")
        elif given == "truth" and one.sign not in ("==", "!="):
            mistakes.append(f"where: {one.column} is true or false: = and != are all that can be asked of it.")
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))


_NOUNS = {"number": "numbers", "text": "text", "truth": "true or false"}


def comparisons(condition: Condition) -> Iterator[Comparison]:
    """Every comparison in a condition."""
    if isinstance(condition, Comparison):
        yield condition
    else:
        for part in condition.parts:
            yield from comparisons(part)


def mask_of(condition: Condition, table: pa.Table) -> Mask:
    """(N,) True for the rows of a table that meet the condition; a missing value meets none."""
    if isinstance(condition, Comparison):
        column = table.column(condition.column)
        found = _COMPARE[condition.sign](column, pa.scalar(condition.value))
        mask: Mask = pc.fill_null(found, False).to_numpy().astype(bool)
        return mask
    masks = [mask_of(part, table) for part in condition.parts]
    together: Mask = (np.logical_and if condition.how == "all" else np.logical_or).reduce(masks)
    return together


def kinds_of(schema: pa.Schema) -> dict[str, Kind]:
    """What the columns of a table hold; columns of other kinds, such as lists, cannot be asked about."""
    kinds: dict[str, Kind] = {}
    for field in schema:
        if pa.types.is_boolean(field.type):
            kinds[field.name] = "truth"
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            kinds[field.name] = "number"
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            kinds[field.name] = "text"
    return kinds


def kind_of_value(value: Value) -> Kind:
    """What a value is."""
    if isinstance(value, bool):
        return "truth"
    return "text" if isinstance(value, str) else "number"


class _Parser:
    """Reads a condition from left to right; `not` is handed down to the comparisons."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def whole(self) -> Condition:
        condition = self.either(False)
        if self.rest:
            raise self.stuck("'and', 'or' or the end")
        return condition

    def either(self, negated: bool) -> Condition:
        return self.joined("or", self.both, negated)

    def both(self, negated: bool) -> Condition:
        return self.joined("and", self.one, negated)

    def joined(self, word: str, part: Callable[[bool], Condition], negated: bool) -> Condition:
        parts = [part(negated)]
        while self.word(word):
            parts.append(part(negated))
        return parts[0] if len(parts) == 1 else Together("all" if (word == "and") != negated else "any", tuple(parts))

    def one(self, negated: bool) -> Condition:
        while self.word("not"):
            negated = not negated
        if self.sign("("):
            self.depth += 1
            if self.depth > _DEEPEST:
                raise ConfigError(f"where: more than {_DEEPEST} brackets inside each other.")
            condition = self.either(negated)
            self.depth -= 1
            if not self.sign(")"):
                raise self.stuck("')'")
            return condition
        return self.comparison(negated)

    def comparison(self, negated: bool) -> Condition:
        name = self.take("name", "a column")
        if self.word("not"):
            negated = not negated
            if not self.word("in"):
                raise self.stuck("'in'")
            return self.listed(name, negated)
        if self.word("in"):
            return self.listed(name, negated)
        sign = self.take("sign", "= != < <= > >= or in")
        sign = {"=": "==", "<>": "!="}.get(sign, sign)
        if sign not in OPPOSITE:
            raise self.stuck("= != < <= > >= or in")
        return Comparison(name, OPPOSITE[sign] if negated else sign, self.value())

    def listed(self, name: str, negated: bool) -> Condition:
        closing = ")" if self.sign("(") else "]" if self.sign("[") else None
        if closing is None:
            raise self.stuck("a list such as ('a', 'b')")
        values = [self.value()]
        while self.sign(","):
            values.append(self.value())
        if not self.sign(closing):
            raise self.stuck(f"',' or '{closing}'")
        parts = tuple(Comparison(name, "!=" if negated else "==", value) for value in values)
        return parts[0] if len(parts) == 1 else Together("all" if negated else "any", parts)

    def value(self) -> Value:
        for name, value in (("true", True), ("false", False)):
            if self.word(name):
                return value
        match = _TOKEN.match(self.text, self.at)
        if match is None or match.lastgroup not in ("number", "text"):
            raise self.stuck("a number, or text in quotes,")
        self.at = match.end()
        token: str = match[match.lastgroup]
        if match.lastgroup == "text":
            return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
        return int(token) if re.fullmatch(r"[+-]?\d{1,18}", token) else float(token)

    @property
    def rest(self) -> str:
        return self.text[self.at :].strip()

    def word(self, word: str) -> bool:
        """Take this word where it comes next."""
        match = _TOKEN.match(self.text, self.at)
        if match is None or (match["name"] or "").lower() != word:
            return False
        self.at = match.end()
        return True

    def sign(self, sign: str) -> bool:
        """Take this sign where it comes next."""
        match = _TOKEN.match(self.text, self.at)
        if match is None or match["sign"] != sign:
            return False
        self.at = match.end()
        return True

    def take(self, group: str, wanted: str) -> str:
        """Take what comes next, of this kind."""
        match = _TOKEN.match(self.text, self.at)
        if match is None or match[group] is None:
            raise self.stuck(wanted)
        self.at = match.end()
        return match[group].strip("`")

    def stuck(self, wanted: str) -> ConfigError:
        found = f"'{self.rest[:30]}'" if self.rest else "the end"
        return ConfigError(
            f"where: {wanted} was expected at {found} in: {self.text}. As in: aesthetic_score > 0.6 and format in "
            "('PNG', 'WEBP')."
        )


