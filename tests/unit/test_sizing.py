"""The table in docs/scaling.md is the arithmetic that the page says it is."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sizing import NEEDS, PAGE, RESULTS, Need, figures_of, measured, section, size


def test_the_page_s_table_follows_from_the_figures_that_stand_with_it() -> None:
    page = PAGE.read_text()
    assert section(figures_of(page)) in page, "python -m benchmarks.sizing --write"


def test_it_goes_up_to_a_million_of_both() -> None:
    assert Need(1_000_000, 1_000_000, 10) in NEEDS


def test_the_words_around_the_table_say_what_was_measured() -> None:
    page = PAGE.read_text()
    relay = json.loads((RESULTS / "relay.json").read_text())
    drift = json.loads((RESULTS / "drift.json").read_text())
    for said, measured_ in (
        (r"about ([\d,]+) events/s from the journal", relay["default events/s"]),
        (r"into JetStream, ([\d,]+) where NATS", relay["sync always events/s"]),
        (r"about ([\d.]+) million rows/s", drift["rows_per_second"] / 1e6),
    ):
        found = re.search(said, page)
        assert found is not None, said
        assert float(found[1].replace(",", "")) == pytest.approx(measured_, rel=0.3), f"docs/scaling.md: {found[0]}"


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.1, 100))
def test_no_part_is_planned_beyond_what_was_measured(clients: int, events: int, per_client: float) -> None:
    figures = measured()
    need = Need(clients, events, min(per_client, events))
    made = size(need, figures)
    deliveries = need.clients * need.per_client / made.workers
    assert events / made.sources <= figures.relay_events * figures.head
    assert need.clients / made.workers <= figures.worker_clients
    assert deliveries <= figures.deliveries * figures.head * 1.001
    assert min(events, deliveries) <= figures.gateway_reads * figures.head * 1.001
    assert size(dataclasses.replace(need, clients=2 * clients), figures).workers >= made.workers
