"""`where` against a naive oracle over exact fractions, and its errors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_gateway.rows.condition import MISSING, OPERATORS, ConditionError, Where, parse_where

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(2**53 - 2, 2**53 + 2),
    st.integers(),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-3, max_value=3),
    st.sampled_from([Decimal("0.1"), Decimal("0.10"), Decimal("0.1000000000000000055511151231257827"), Decimal("1E+2"), 100]),
)
texts = st.one_of(
    st.text("ab%_1.0-\\\n", max_size=4),
    numbers.map(str),
    st.sampled_from(["9007199254740993", "9007199254740992", "42", "42.0", "042", "NaN", "2026-11-22T20:15:31+00:00"]),
)
scalars = st.one_of(numbers, texts, st.booleans())
values = st.one_of(scalars, st.none(), st.just(MISSING), st.just([1]), st.just({"a": 1}))
LIKE = st.text("ab%_.", max_size=5)


def fraction(value: Any) -> Fraction | None:
    """The number that it is, or reads like."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return Fraction(Decimal(value)) if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,6})?", value, re.ASCII) else None
    return Fraction(value) if isinstance(value, (int, Decimal)) else None


def order(value: Any, operand: Any) -> int | None:
    """-1, 0, 1 or None, by the words of the documentation."""
    if isinstance(value, bool) and isinstance(operand, bool):
        return value - operand
    if isinstance(value, bool) or isinstance(operand, bool):
        return None
    if isinstance(value, str) and isinstance(operand, str):
        return (value > operand) - (value < operand)
    a, b = fraction(value), fraction(operand)
    return None if a is None or b is None else (a > b) - (a < b)


def like(text: str, pattern: str) -> bool:
    """The naive recursion."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(like(text[at:], pattern[1:]) for at in range(len(text) + 1))
    return text != "" and pattern[0] in ("_", text[0]) and like(text[1:], pattern[1:])


def only(value: Any) -> Callable[[str], Any]:
    return lambda _column: value


def oracle(value: Any, operator: str, operand: Any) -> bool:
    if value is MISSING:
        return False
    match operator:
        case "null":
            return operand is (value is None)
        case "like":
            return isinstance(value, str) and like(value, operand)
        case "in":
            return any(order(value, one) == 0 for one in operand)
        case "ne":
            return value is not None and order(value, operand) != 0
    compared = order(value, operand)
    return compared is not None and {"eq": compared == 0, "lt": compared < 0, "lte": compared <= 0, "gt": compared > 0, "gte": compared >= 0}[operator]


def operand_of(operator: str) -> st.SearchStrategy[Any]:
    return {"null": st.booleans(), "like": LIKE, "in": st.lists(scalars, min_size=1, max_size=4)}.get(operator, scalars)


conditions = st.sampled_from(OPERATORS).flatmap(lambda operator: st.tuples(st.just(operator), operand_of(operator)))


@given(st.lists(st.tuples(st.sampled_from("xyz"), conditions), min_size=1, max_size=4), st.fixed_dictionaries(dict.fromkeys("xyz", values)))
def test_conditions_hold_exactly_where_the_oracle_says_so(tests: list[tuple[str, tuple[str, Any]]], row: dict[str, Any]) -> None:
    given_: dict[str, dict[str, Any]] = {}
    for column, (operator, operand) in tests:
        given_.setdefault(column, {})[operator] = operand
    where = parse_where(given_)
    assert where is not None
    wanted = all(oracle(row[column], operator, operand) for column, group in given_.items() for operator, operand in group.items())
    assert where.holds(row.__getitem__) == wanted


@given(scalars, scalars)
def test_equal_conditions_are_judged_once_and_different_ones_apart(a: Any, b: Any) -> None:
    """Equal ones share a judgement, so two that judge differently must not be equal."""
    first, second = Where({"x": {"eq": a}}), Where({"x": {"eq": b}})
    if first == second:
        assert hash(first) == hash(second)
        assert all(first.holds(only(value)) == second.holds(only(value)) for value in (a, b, str(a), str(b)))
    assert Where({"x": {"eq": 1}}) != Where({"x": {"eq": True}})
    assert Where({"x": {"eq": 1}}) != Where({"x": {"eq": "1"}})


def test_a_number_that_no_double_holds_is_compared_as_it_is() -> None:
    where = parse_where({"x": {"eq": 9007199254740993}})
    assert where is not None
    assert [where.holds(only(value)) for value in (9007199254740993, "9007199254740993", 9007199254740992, Decimal(9007199254740992))] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ([], ["where", "[]", "object"]),
        ({"customer": 42}, ["'customer'", "42", '{"eq": …}', "gte"]),
        ({"customer": {}}, ["'customer'", "{}", "eq, ne"]),
        ({"customer": {"equals": 42}}, ["'customer'", "'equals'", "42", "eq, ne, lt, lte, gt, gte, in, like, null"]),
        ({"customer": {"eq": None}}, ["'customer'", "'eq'", "None", "number", '{"null": true}']),
        ({"customer": {"lt": [1]}}, ["'customer'", "'lt'", "[1]", "text, a number"]),
        ({"customer": {"in": []}}, ["'customer'", "'in'", "[]", "1 to 1000"]),
        ({"customer": {"in": [1, None]}}, ["'customer'", "'in'", "None"]),
        ({"customer": {"in": list(range(1001))}}, ["'in'", "1 to 1000"]),
        ({"customer": {"like": 5}}, ["'customer'", "'like'", "5", "%"]),
        ({"customer": {"like": "a\\"}}, ["'like'", "backslash"]),
        ({"customer": {"null": "yes"}}, ["'customer'", "'null'", "'yes'", "true or false"]),
        ({"": {"eq": 1}}, ["column", "''"]),
        ({str(n): {"eq": 1} for n in range(33)}, ["33", "32"]),
        ({"x": {"eq": Decimal("NaN")}}, ["'x'", "NaN"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(given_: Any, named: list[str]) -> None:
    with pytest.raises(ConditionError) as refused:
        parse_where(given_)
    for part in named:
        assert part in str(refused.value)
    assert len(str(refused.value)) < 400


def test_like_takes_a_backslash_as_sql_does() -> None:
    where = Where({"x": {"like": r"100\%_"}})
    assert [where.holds(only(value)) for value in ("100%!", "100!!", "100%")] == [True, False, False]


def test_no_pattern_makes_like_slow() -> None:
    """What a regular expression with .* would take for ever."""
    where = Where({"x": {"like": "%a_" * 300 + "b"}})
    began = time.process_time()
    assert not where.holds(lambda _: "a" * 100_000)
    assert time.process_time() - began < 2
