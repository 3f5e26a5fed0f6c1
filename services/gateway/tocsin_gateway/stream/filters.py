"""The filters of the hub's consumer: few enough for NATS, none that overlaps another, together at least what clients ask for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tocsin.subject import Pattern, cover

MAX_FILTERS: Final = 256
"""NATS slows down with very many; then one that contains them all is cheaper, though it brings events that nobody wants."""

MAX_COVERED: Final = 4 * MAX_FILTERS
"""Of more patterns a cover is hardly ever few filters, and one with many wildcards takes long to make."""


def filters_of(patterns: Sequence[Pattern]) -> tuple[Pattern, ...]:
    """What a consumer is opened with so that it gets everything of the patterns."""
    found = cover(patterns) if len(patterns) <= MAX_COVERED else tuple(patterns)
    if len(found) <= MAX_FILTERS:
        return found
    whole = found[0]
    for pattern in found:
        if not whole.contains(pattern):
            whole = whole.union(pattern)
    return (whole,)
