"""How long an audit rests: by the share of a backend and by rows a second."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tocsin_check.fencing.pace import Pace


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("tocsin_check.fencing.pace.asyncio.sleep", sleep)
    return pauses


@pytest.mark.parametrize(
    ("kind", "seconds", "rows", "expected"),
    [
        (Pace(), 0.4, 1000, []),
        (Pace(share=0.25), 0.4, 1000, [1.2]),
        (Pace(rows_per_second=1000), 0.4, 1000, [0.6]),
        (Pace(rows_per_second=1000), 2.0, 1000, []),
        (Pace(share=0.5, rows_per_second=1000), 0.4, 1000, [0.6]),
        (Pace(share=0.1, rows_per_second=1000), 0.4, 1000, [3.6]),
        (Pace(share=0.05, busy=True), 0.01, 1000, [4.99]),
        (Pace(share=0.05, busy=True), 10.0, 1000, [190 + 60]),
        (Pace(share=0.75, busy=True), 0.3, 1000, [0.1]),
    ],
)
async def test_the_longer_of_both_rests_is_taken(kind: Pace, seconds: float, rows: int, expected: list[float], slept: list[float]) -> None:
    kind.spent(seconds, rows)
    await kind.rest()
    assert slept == pytest.approx(expected, abs=0.1)


async def test_keys_that_writers_change_are_read_at_a_greater_share_than_the_rest(slept: list[float]) -> None:
    kind = Pace(share=0.05, busy=True)
    kind.spent(0.01, 1000, following=True)
    await kind.rest()
    assert slept == pytest.approx([0.99], abs=0.1)


async def test_a_worry_holds_a_block_back_until_it_is_gone_and_for_a_minute_at_most(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    worries: list[str | None] = ["busy", "busy", None]

    class Worried(Pace):
        async def _worry(self, sides: Any) -> str | None:
            return worries.pop(0) if worries else "busy for ever"

    kind = Worried(looked=-10)
    await kind.clear(None)  # type: ignore[arg-type]
    assert len(slept) == 2
    assert kind.waiting is None
    kind.looked = -10
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    await kind.clear(None)  # type: ignore[arg-type]
    assert 2 < len(slept) < 12


def test_blocks_grow_from_a_half_share_on_and_a_little_less_than_all_is_as_fast() -> None:
    slices = [Pace(share=share).slice for share in (0.01, 0.05, 0.5, 0.75, 0.99, 1.0)]
    assert slices[0] == slices[1] == slices[2] == 0.01
    assert 0.1 < slices[3] < slices[4] < slices[5] == 0.35
    assert slices[5] - slices[4] < 0.02
    assert [Pace(share=share).fast for share in (0.5, 0.74, 0.75, 0.99, 1.0)] == [False, False, True, True, True]
