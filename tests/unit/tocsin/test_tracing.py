"""Trace ids and parents: what is taken, what is refused, what is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.tracing import MOST_WAITING, Exporter, Parent, Span, parse_parent, span_id, trace_id

hexes = st.text("0123456789abcdef", min_size=1)


@given(st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1), st.booleans())
def test_a_parent_is_read_as_it_was_written(trace: int, span: int, sampled: bool) -> None:
    parent = Parent(f"{trace:032x}", f"{span:016x}", sampled)
    assert parse_parent(str(parent)) == parent


@pytest.mark.parametrize("text", [None, 7, "", "00-0", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "0" * 16 + "-01", "01" + "x" * 53])
def test_what_is_no_parent_is_none(text: object) -> None:
    assert parse_parent(text) is None


@given(st.text())
def test_ids_follow_from_the_event_and_have_their_lengths(event: str) -> None:
    assert trace_id(event) == trace_id(event)
    assert (len(trace_id(event)), len(span_id(event, "publish"))) == (32, 16)
    assert span_id(event, "publish") != span_id(event, "journal")


def test_what_no_collector_takes_is_bounded_and_counted() -> None:
    exporter = Exporter("http://127.0.0.1:1", "test")
    for number in range(MOST_WAITING + 7):
        exporter.add(Span("1" * 32, f"{number:016x}", "", "journal", 0, 1))
    assert exporter.dropped == 7
