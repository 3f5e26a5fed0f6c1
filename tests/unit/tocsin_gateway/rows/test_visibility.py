"""A token's rules: refused where they are not well formed, and never missing the table that they mean."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tocsin_gateway.rows.visibility import Visibility, VisibilityError


@pytest.mark.parametrize(
    ("rows", "hidden", "named"),
    [
        ([], {}, ["`rows`", "object"]),
        ({"orders": {"a": {"eq": 1}}}, {}, ["`rows`", "'orders'", "public.orders"]),
        ({"public.": {"a": {"eq": 1}}}, {}, ["'public.'"]),
        ({"public.orders": {"a": 1}}, {}, ["`rows`", "'public.orders'", "'a'", "eq"]),
        ({"public.orders": {}}, {}, ["'public.orders'", "no condition"]),
        ({"public.orders": {"a": {"eq": float("nan")}}}, {}, ["'a'", "NaN"]),
        ({}, {"public.orders": "note"}, ["`hidden`", "'public.orders'", "list"]),
        ({}, {"public.orders": [1]}, ["`hidden`"]),
        ({}, None, ["`hidden`", "object"]),
    ],
)
def test_a_claim_that_is_not_well_formed_is_refused_and_named(rows: Any, hidden: Any, named: list[str]) -> None:
    with pytest.raises(VisibilityError) as refused:
        Visibility.from_claims(rows, hidden)
    for part in named:
        assert part in str(refused.value)


def test_a_dot_in_a_name_does_not_free_a_table_of_its_rule() -> None:
    visibility = Visibility.from_claims({"a.b.c": {"x": {"eq": 1}}}, {"public.Order Items": ["note"]})
    assert visibility.rule(("a%2Eb", "c")) is not None
    assert visibility.rule(("a", "b%2Ec")) is not None
    assert visibility.hidden(("public", "Order%20Items")) == {"note"}
    assert visibility.hidden(("public", "orders")) == frozenset()


def test_numbers_of_a_token_are_the_decimals_that_were_written() -> None:
    rule = Visibility.from_claims({"public.orders": {"x": {"eq": 0.1}}}, {}).rule(("public", "orders"))
    assert rule is not None
    assert rule.holds(lambda _: Decimal("0.10"))
    assert not rule.holds(lambda _: Decimal("0.1000000000000000055511151231257827"))
