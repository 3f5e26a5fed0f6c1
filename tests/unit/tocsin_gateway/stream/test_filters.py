"""However many patterns clients ask for, the consumer's filters are few, have all of them, and are found at once."""

from __future__ import annotations

import itertools
import time

import pytest

from tocsin.subject import Pattern
from tocsin_gateway.stream.filters import MAX_FILTERS, filters_of


@pytest.mark.parametrize("count", [1, 256, 257, 1024, 5000])
def test_filters_are_few_contain_every_pattern_and_overlap_nowhere(count: int) -> None:
    asked = [Pattern(f"pg.shop.change.public.orders.*.{number}") for number in range(count)]
    found = filters_of(asked)
    assert len(found) <= MAX_FILTERS
    assert all(any(one.contains(pattern) for one in found) for pattern in asked)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(found, 2))
    if count > MAX_FILTERS:
        assert [one.text for one in found] == ["pg.shop.change.public.orders.*.*"], "not more than all of these have in common"


def test_thousands_of_patterns_take_milliseconds() -> None:
    """Also those with wildcards where others differ; a loop over all pairs took eight seconds, in which no client got anything."""
    for asked in (
        [Pattern(f"pg.shop.change.public.orders.*.{number}") for number in range(5000)],
        [Pattern(f"pg.shop.change.public.*.*.{number}" if number % 2 else f"pg.shop.change.public.orders{number}.*.x") for number in range(5000)],
    ):
        began = time.process_time()
        filters_of(asked)
        assert time.process_time() - began < 0.5
