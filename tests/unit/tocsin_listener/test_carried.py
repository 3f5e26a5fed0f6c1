"""Carried NOTIFYs are bounded in number and in bytes, and what is dropped is counted."""

from __future__ import annotations

import pytest

from tocsin_listener.carried import Carried
from tocsin_listener.health import readiness
from tocsin_listener.meters import Meters


def value(meters: Meters, name: str) -> float:
    found = meters.registry.get_sample_value(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize(("most", "most_bytes", "kept"), [(3, 1000, 3), (100, 25, 2)])
def test_the_oldest_are_dropped_and_counted(most: int, most_bytes: int, kept: int) -> None:
    meters = Meters()
    carried = Carried(meters, most=most, most_bytes=most_bytes)
    for number in range(10):
        carried.on_notify(None, 7, "c", f"{number:010}")
    assert value(meters, "tocsin_carried_waiting") == kept
    assert value(meters, "tocsin_carried_dropped_total") == 10 - kept
    assert readiness(meters).detail["notifies_dropped"] == 10 - kept


def test_nothing_is_dropped_below_the_bound() -> None:
    meters = Meters()
    carried = Carried(meters)
    for number in range(1000):
        carried.on_notify(None, 7, "c", str(number))
    assert (value(meters, "tocsin_carried_waiting"), value(meters, "tocsin_carried_dropped_total")) == (1000, 0)
    assert "notifies_dropped" not in readiness(meters).detail
