"""Conditions on a row: column → {eq ne lt lte gt gte in like null}, all of which must hold. Pure.

Numbers are compared as the decimals that they are, never as doubles; a column of an exact-numbers watch is text that reads
like a number, and is compared with a number as one. Text is compared by code points. As in SQL, NULL is neither equal to
anything nor different from it: only `null` asks for it. A column that the row does not have is unknown, and holds nothing.
"""

from __future__ import annotations

import operator as operators
import re
from collections.abc import Callable, Hashable, Mapping
from decimal import Decimal
from typing import Any, Final

MAX_COLUMNS: Final = 32
MAX_IN: Final = 1000
MAX_LIKE: Final = 1024
MAX_ASKED: Final = 16
"""With more values, a condition is judged for each event rather than found by them."""

OPERATORS: Final = ("eq", "ne", "lt", "lte", "gt", "gte", "in", "like", "null")

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,6})?")

Test = Callable[[Any], bool]


class ConditionError(ValueError):
    """A condition that is not one; the message names the column, the operator, the value and what is allowed."""


class Missing:
    """The value of a column that a row does not have."""


MISSING: Final = Missing()


class Where:
    """Conditions that must all hold. Equal ones are equal, so that an event is judged once for all who ask the same.

    `asks` is (column, keys) where a value there must have one of these `value_keys` for the row to hold; None where there is no such column.
    """

    __slots__ = ("_hash", "_identity", "_tests", "asks", "columns", "conditions")

    def __init__(self, conditions: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises ConditionError."""
        self.conditions: Final = tuple((column, operator, operand) for column, tests in conditions.items() for operator, operand in tests.items())
        self._tests = tuple((column, _test(column, operator, operand)) for column, operator, operand in self.conditions)
        self.columns: Final = frozenset(conditions)
        self._identity = frozenset((column, operator, _identity(operand)) for column, operator, operand in self.conditions)
        self._hash = hash(self._identity)
        self.asks: Final = _asks(conditions)

    def holds(self, value: Callable[[str], Any]) -> bool:
        """`value` gives a column's value: None for NULL, int or Decimal, str, bool, or MISSING."""
        return all(test(value(column)) for column, test in self._tests)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Where) and self._identity == other._identity

    def __hash__(self) -> int:
        return self._hash


def parse_where(given: object) -> Where | None:
    """The conditions of a JSON object whose numbers are int or Decimal; None where there are none. Raises ConditionError."""
    if not isinstance(given, Mapping):
        raise ConditionError(f'where is {_shown(given)}; an object is allowed: column → conditions, such as {{"customer_id": {{"eq": 42}}}}')
    if len(given) > MAX_COLUMNS:
        raise ConditionError(f"where names {len(given)} columns; at most {MAX_COLUMNS} are allowed")
    for column, tests in given.items():
        if not isinstance(column, str) or not column:
            raise ConditionError(f"where has the column name {_shown(column)}; a column's name is allowed")
        if not isinstance(tests, Mapping) or not tests:
            raise ConditionError(
                f'where, column {column!r}: {_shown(tests)} is not an object of conditions; write {{"{column}": {{"eq": …}}}}, with one or more of {_OPERATORS}'
            )
    return Where(given) if given else None


_OPERATORS: Final = ", ".join(OPERATORS)


def _test(column: str, operator: str, operand: Any) -> Test:
    def fail(allowed: str) -> ConditionError:
        return ConditionError(f"where, column {column!r}, operator {operator!r}: {_shown(operand)} is not allowed; {allowed} is")

    if operator not in OPERATORS:
        raise ConditionError(
            f"where, column {column!r}: there is no operator {_shown(operator)} (its value here is {_shown(operand)}); allowed are {_OPERATORS}"
        )
    if operator == "null":
        if not isinstance(operand, bool):
            raise fail("true or false")
        return (lambda value: value is None) if operand else (lambda value: value is not None and value is not MISSING)
    if operator == "like":
        if not isinstance(operand, str) or len(operand) > MAX_LIKE:
            raise fail(f"a text of at most {MAX_LIKE} characters, in which % stands for any characters and _ for one,")
        return _like(operand, fail)
    if operator == "in":
        if not isinstance(operand, list) or not 0 < len(operand) <= MAX_IN or not all(map(_is_scalar, operand)):
            raise fail(f"a list of 1 to {MAX_IN} texts, numbers or booleans")
        return _in(operand)
    if not _is_scalar(operand):
        raise fail('a text, a number or a boolean (for NULL write {"null": true})')
    return _comparison(operator, operand)


def _comparison(operator: str, operand: Any) -> Test:
    """Made for the operand's kind, since it is asked of every event. What can't be compared is not equal, and neither below nor above."""
    compare: Callable[[Any, Any], bool] = _COMPARISONS[operator]
    differs = operator == "ne"
    if isinstance(operand, bool):
        return lambda value: compare(value, operand) if isinstance(value, bool) else differs and value is not None and value is not MISSING
    number = as_number(operand)
    text = operand if isinstance(operand, str) else None

    def test(value: Any) -> bool:
        if isinstance(value, str):
            if text is not None:
                return compare(value, text)
            value = as_number(value)
            return differs if value is None else compare(value, number)
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            return differs if number is None else compare(value, number)
        return differs and value is not None and value is not MISSING

    return test


_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": operators.eq,
    "ne": operators.ne,
    "lt": operators.lt,
    "lte": operators.le,
    "gt": operators.gt,
    "gte": operators.ge,
}


def as_number(value: Any) -> int | Decimal | None:
    """A number, or text that reads like one, as a number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, Decimal)):
        return value
    return Decimal(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _in(operands: list[Any]) -> Test:
    texts = frozenset(operand for operand in operands if isinstance(operand, str))
    truths = frozenset(operand for operand in operands if isinstance(operand, bool))
    numbers = frozenset(operand for operand in operands if isinstance(operand, (int, Decimal)) and not isinstance(operand, bool))
    any_number = numbers | {number for text in texts if (number := as_number(text)) is not None}

    def test(value: Any) -> bool:
        if isinstance(value, bool):
            return value in truths
        if isinstance(value, str):
            return value in texts or (bool(numbers) and as_number(value) in numbers)
        return isinstance(value, (int, Decimal)) and value in any_number

    return test


def _asks(conditions: Mapping[str, Mapping[str, Any]]) -> tuple[str, frozenset[Hashable]] | None:
    operands = [(column, tests["in"] if "in" in tests else [tests["eq"]]) for column, tests in conditions.items() if not tests.keys().isdisjoint(("eq", "in"))]
    column, asked = min(operands, key=lambda found: len(found[1]), default=("", []))
    return (column, frozenset(key for operand in asked for key in operand_keys(operand))) if 0 < len(asked) <= MAX_ASKED else None


def operand_keys(operand: Any) -> tuple[Hashable, ...]:
    """What the `value_keys` of every value that is equal to this share with these."""
    if isinstance(operand, bool):
        return (("truth", operand),)
    if isinstance(operand, str):
        number = as_number(operand)
        return (("text", operand),) if number is None else (("text", operand), ("text of", number))
    return (("number", operand),)


def value_keys(value: Any) -> tuple[Hashable, ...]:
    """Keys by which conditions are found that may hold for the value."""
    if isinstance(value, bool):
        return (("truth", value),)
    if isinstance(value, str):
        number = as_number(value)
        return (("text", value),) if number is None else (("text", value), ("number", number))
    return (("number", value), ("text of", value)) if isinstance(value, (int, Decimal)) else ()


def _like(pattern: str, fail: Callable[[str], ConditionError]) -> Test:
    """SQL's LIKE: % any characters, _ one, backslash takes the next as it is. Its time is at most the text's length times the pattern's."""
    parts = _parts(pattern)
    if parts is None:
        raise fail("a text in which a character follows each backslash")
    pieces = [re.compile("".join("." if character is None else re.escape(character) for character in part), re.DOTALL) for part in parts]
    lengths = [len(part) for part in parts]

    def test(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        if len(pieces) == 1:
            return pieces[0].fullmatch(value) is not None
        at, end = lengths[0], len(value) - lengths[-1]
        if at > end or pieces[0].match(value) is None or pieces[-1].match(value, end) is None:
            return False
        for piece in pieces[1:-1]:
            found = piece.search(value, at, end)
            if found is None:
                return False
            at = found.end()
        return True

    return test


def _parts(pattern: str) -> list[list[str | None]] | None:
    """What stands between the %, as characters, None being any one; None where the last backslash has nothing behind it."""
    parts: list[list[str | None]] = [[]]
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            parts.append([])
        elif character == "\\":
            literal = next(characters, None)
            if literal is None:
                return None
            parts[-1].append(literal)
        else:
            parts[-1].append(None if character == "_" else character)
    return parts


def _is_scalar(value: Any) -> bool:
    return value.is_finite() if isinstance(value, Decimal) else isinstance(value, (str, int, bool))


def _identity(operand: Any) -> Any:
    if isinstance(operand, list):
        return tuple(map(_identity, operand))
    return (type(operand) is bool, isinstance(operand, str), operand)


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
