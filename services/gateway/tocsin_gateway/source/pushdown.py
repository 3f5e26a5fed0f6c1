"""Conditions of a snapshot that PostgreSQL can judge before a row is read: so a filtered snapshot of a large table costs what it finds, by its indexes.

What is pushed down holds for every row of which the whole `where` holds, and each row that comes is judged again as any event is: so this may let too
many through, never too few. Left to us alone are other types (floats, times, JSON), text by order or `like`, and operands of another kind than the
column. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from tocsin_gateway.rows.condition import Where

INTEGERS: Final = frozenset(("smallint", "integer", "bigint"))
TEXTS: Final = frozenset(("text", "character varying"))
TYPES: Final = INTEGERS | TEXTS | {"numeric", "boolean", "uuid"}
MAX_DIGITS: Final = 500
_COMPARISONS: Final = {"eq": "=", "ne": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Column = tuple[str, str]
"""A column's type below domains, as PostgreSQL writes it, and how its value is reached in SQL."""


def pushed(wheres: Iterable[Where], columns: Mapping[str, Column], *, unicode: bool) -> tuple[list[str], list[Any]]:
    """(conditions in SQL, all of which must hold, with parameters from $1 on; the parameters). `unicode`: the database has every character."""
    found: list[str] = []
    values: list[Any] = []
    for where in wheres:
        for name, operator, operand in where.conditions:
            kind, value = columns.get(name, ("", ""))
            if kind not in TYPES:
                continue
            if operator == "null":
                found.append(f"{value} IS {'' if operand else 'NOT '}NULL")
                continue
            asked = _operands(kind, operator, operand if operator == "in" else [operand], unicode=unicode)
            if asked is None:
                continue
            cast, parameters = asked
            values.append(parameters if operator == "in" else parameters[0])
            value = f"{value}::numeric" if cast == "numeric" and kind in INTEGERS else value
            # Text that a collation calls equal is not the same text: it may let too many through, and must not leave any out.
            value = f'{value} COLLATE "C"' if cast == "text" and operator == "ne" else value
            found.append(f"{value} = ANY (${len(values)}::{cast}[])" if operator == "in" else f"{value} {_COMPARISONS[operator]} ${len(values)}::{cast}")
    return found, values


def _operands(kind: str, operator: str, operands: list[Any], *, unicode: bool) -> tuple[str, list[Any]] | None:
    """(the type to compare as, the operands); None where PostgreSQL might judge otherwise than we do."""
    if operator != "in" and operator not in _COMPARISONS:
        return None
    if kind in INTEGERS or kind == "numeric":
        return _numbers(kind, operands) if all(map(_is_modest, operands)) else None
    fits = operator in _EQUALITY[kind] and all(_fits(kind, operand, unicode=unicode) for operand in operands)
    return ("text" if kind in TEXTS else kind, operands) if fits else None


_EQUALITY: Final = {"boolean": ("eq", "ne", "in"), "uuid": ("eq", "in"), **dict.fromkeys(TEXTS, ("eq", "ne", "in"))}


def _numbers(kind: str, operands: list[Any]) -> tuple[str, list[Any]]:
    whole = kind in INTEGERS and all(operand == int(operand) and -(2**63) <= operand < 2**63 for operand in operands)
    return ("bigint", [int(operand) for operand in operands]) if whole else ("numeric", [Decimal(operand) for operand in operands])


def _fits(kind: str, operand: Any, *, unicode: bool) -> bool:
    if kind == "boolean" or not isinstance(operand, str):
        return kind == "boolean" and isinstance(operand, bool)
    return _UUID.fullmatch(operand) is not None if kind == "uuid" else _is_storable(operand, unicode=unicode)


def _is_modest(operand: Any) -> bool:
    """A number that PostgreSQL can write out."""
    if isinstance(operand, bool) or not isinstance(operand, (int, Decimal)):
        return False
    if isinstance(operand, int):
        return operand.bit_length() < 3 * MAX_DIGITS
    exponent = operand.as_tuple().exponent
    return isinstance(exponent, int) and abs(exponent) < MAX_DIGITS and len(operand.as_tuple().digits) < MAX_DIGITS


def _is_storable(operand: str, *, unicode: bool) -> bool:
    return "\0" not in operand and (operand.isascii() or (unicode and not any("\ud800" <= character <= "\udfff" for character in operand)))
