"""How long the next batch is let grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tocsin_listener.follow import BUSY, FULL, LONGEST, gather


@given(st.one_of(st.none(), st.integers(0, BUSY - 1), st.integers(FULL, 10**9)))
def test_few_events_and_a_backlog_never_wait(relayed: int | None) -> None:
    assert gather(relayed) == 0


@given(st.integers(BUSY, FULL - 1))
def test_what_waits_waits_in_proportion_and_not_long(relayed: int) -> None:
    assert 0 < gather(relayed) <= LONGEST
    assert gather(relayed) <= gather(min(FULL - 1, relayed + 1))
