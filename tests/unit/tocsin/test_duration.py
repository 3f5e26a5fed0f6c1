"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tocsin.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("90s", timedelta(seconds=90)),
        (" 5m ", timedelta(minutes=5)),
        ("1.5h", timedelta(minutes=90)),
        ("2w", timedelta(days=14)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "5 minutes", "1e9s", "5m5s", "999999999999w"])
def test_what_is_not_a_duration_names_the_units(text: str) -> None:
    with pytest.raises(ValueError, match="ms, s, m, h, d, w"):
        parse_duration(text)
