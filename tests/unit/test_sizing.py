"""The table in docs/scaling.md is the arithmetic that the page says it is."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sizing import NEEDS, PAGE, Need, figures_of, measured, section, size


def test_the_page_s_table_follows_from_the_figures_that_stand_with_it() -> None:
    page = PAGE.read_text()
    assert section(figures_of(page)) in page, "python -m benchmarks.sizing --write"


def test_it_goes_up_to_a_million_of_both() -> None:
    assert Need(1_000_000, 1_000_000, 10) in NEEDS


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
