"""Positions: text and back, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.position import Position, PositionError, new_epoch


@given(st.integers(min_value=0, max_value=10**18))
def test_a_position_survives_its_text(sequence: int) -> None:
    position = Position(new_epoch(), sequence)
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    ["", "now", "k3v9q2m7xa", "k3v9q2m7xa-", "-5", "k3v9q2m7xa--5", "k3v9q2m7xa-05", "k3v9q2m7xa-1 ", "K3V9-1", "k3v9q2m7xa-99999999999999999999", "é123-4"],
)
def test_what_is_not_a_position_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(PositionError, match="not a position"):
        Position.parse(text)


def test_epochs_do_not_repeat() -> None:
    assert len({new_epoch() for _ in range(1000)}) == 1000
