"""The soak's own oracle finds what it is there to find."""

from __future__ import annotations

from typing import Any

from tests.support.tally import Replica, Tally


def event(seq: int, key: int, op: str = "insert", **more: Any) -> dict[str, Any]:
    return {"sequence": str(seq), "subject": str(key), "data": {"op": op, "table": "t", "key": {"id": key}, "new": {"id": key, "n": seq}, **more}}


def test_repeats_and_disorder_are_counted_each() -> None:
    tally = Tally()
    for one in (event(1, 7), event(3, 7), event(2, 8), event(3, 7), event(2, 7)):
        tally.add(one)
    assert (tally.seen, tally.repeated, tally.disorder) == ({1, 2, 3}, 2, 0)
    tally.add(event(5, 9))
    tally.add(event(4, 9))
    assert tally.disorder == 1
    assert "4 of t/9 came behind 5" in tally.samples[-1]


def test_a_change_of_key_counts_under_both_keys() -> None:
    tally = Tally()
    tally.add(event(5, 2, "update", old={"id": 1}))
    tally.add(event(4, 1))
    assert tally.disorder == 1


def test_the_table_is_what_the_events_make_of_it() -> None:
    replica = Replica()
    for one in (event(1, 1), event(2, 2), event(3, 3, "update", old={"id": 1}), event(4, 2, "update", old={"n": 2}), event(5, 9), event(6, 9, "delete")):
        replica.apply(one)
    assert {key: new["n"] for key, new in replica.rows["t"].items()} == {"2": 4, "3": 3}
    replica.apply({"sequence": "7", "data": {"op": "truncate", "table": "t", "key": None}})
    assert replica.rows["t"] == {}
