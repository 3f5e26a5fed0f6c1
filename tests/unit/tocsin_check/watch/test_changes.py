"""What the event stream says about which rows changed, and when it can't say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_check.rows.reading import KeyPart
from tocsin_check.watch.changes import MOST_KEYS, NOT_WATCHED, Changes, Moment, covers, key_of


def event(op: str, key: object, **data: Any) -> bytes:
    return msgspec.json.encode({"specversion": "1.0", "id": "x-1", "data": {"op": op, "schema": "s", "table": "t", "key": key, **data}})


@pytest.fixture
def changes() -> Changes:
    """Watched, joined, and read wholly once."""
    made = Changes()
    made.watched({"s.t": "1"})
    made.begin("joined")
    made.whole_begins("s.t")
    assert made.obstacle("s.t") is None
    return made


def test_each_operation_names_its_key_and_an_update_the_one_before_too(changes: Changes) -> None:
    changes.note(event("insert", {"a": 1, "b": 'x"y'}))
    changes.note(event("delete", {"a": 2, "b": None}, old={"a": 2, "b": None, "v": 1}))
    changes.note(event("update", {"a": 3, "b": "é"}, new={}, old={"v": 1}))
    changes.note(event("update", {"a": 4, "b": "new"}, old={"b": "old", "v": {"deep": [1]}}))
    assert changes.take("s.t") == [
        (("a", "1"), ("b", 'x"y')),
        (("a", "2"), ("b", "null")),
        (("a", "3"), ("b", "é")),
        (("a", "4"), ("b", "new")),
        (("a", "4"), ("b", "old")),
    ]
    assert changes.take("s.t") == []


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (event("truncate", None), "truncated"),
        (event("insert", None), "no key"),
        (event("update", {"a": 1}), "what it held before"),
        (event("update", {"a": 1}, truncated=True), "what it held before"),
        (b"{", "could not be read"),
        (b'{"data": {"op": 1}}', "could not be read"),
    ],
)
def test_what_does_not_tell_every_row_marks_the_whole_table(changes: Changes, body: bytes, part: str) -> None:
    changes.note(event("insert", {"a": 1}))
    changes.note(body)
    changes.note(event("insert", {"a": 2}))
    assert part in (changes.obstacle("s.t") or "")
    assert changes.take("s.t") == []
    assert changes.dirty("s.t") is None
    changes.put_back("s.t", [(("a", "1"),)])
    assert changes.take("s.t") == []


def test_a_lost_stream_a_new_session_and_another_watch_mark_the_whole_table(changes: Changes) -> None:
    changes.lost("NATS is away")
    assert changes.obstacle("s.t") == "NATS is away"
    changes.whole_begins("s.t")
    assert changes.obstacle("s.t") == "NATS is away", "a full audit while nobody listens misses what changes during it"
    changes.begin("joined anew")
    assert changes.obstacle("s.t") == "joined anew"
    changes.whole_begins("s.t")
    changes.watched({"s.t": "1", "s.u": "2"})
    assert (changes.obstacle("s.t"), changes.obstacle("s.u")) == (None, "it was not read wholly yet")
    changes.watched({"s.t": "other"})
    assert "otherwise" in (changes.obstacle("s.t") or "")
    changes.watched({})
    assert changes.obstacle("s.t") == NOT_WATCHED


def test_what_happens_during_a_full_audit_outlives_it(changes: Changes) -> None:
    changes.whole_begins("s.t")
    changes.note(event("truncate", None))
    assert changes.obstacle("s.t") is not None
    changes.whole_begins("s.t")
    changes.note(event("insert", {"a": 7}))
    assert changes.take("s.t") == [(("a", "7"),)]


def test_too_many_keys_are_given_up(changes: Changes) -> None:
    for i in range(MOST_KEYS + 1):
        changes.note(event("insert", {"a": i}))
    assert "rows changed" in (changes.obstacle("s.t") or "")


def test_an_event_s_key_is_put_into_the_compared_key_s_order() -> None:
    parts = [KeyPart("b", "t.b", "text"), KeyPart("a", "t.a", "int", kind="int")]
    assert key_of(parts, (("a", "1"), ("b", "x"))) == ("x", "1")
    assert key_of(parts, (("a", "1"),)) is None
    assert key_of(parts, (("a", "1"), ("c", "x"))) is None


def _visible(xid: int, low: int, high: int, running: set[int]) -> bool:
    return xid < high and xid not in running


@given(st.integers(1, 12), st.sets(st.integers(1, 11)), st.integers(1, 12), st.sets(st.integers(1, 11)))
def test_a_cursor_covers_a_snapshot_only_if_it_shows_everything_that_this_shows(rmax: int, ropen: set[int], smax: int, sopen: set[int]) -> None:
    ropen, sopen = {x for x in ropen if x < rmax}, {x for x in sopen if x < smax}
    text = [f"{min(o, default=m)}:{m}:{','.join(map(str, sorted(o)))}" for m, o in ((rmax, ropen), (smax, sopen))]
    if covers(*text):
        assert all(_visible(xid, 0, rmax, ropen) for xid in range(1, 13) if _visible(xid, 0, smax, sopen))
    if rmax >= smax and ropen <= sopen:
        assert covers(*text)


def test_the_newest_covered_moment_is_told(changes: Changes) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for snapshot, position in (("5:5:", "0/1"), ("5:8:6", "0/2"), ("9:9:", "0/3")):
        changes.mark(Moment(snapshot, position, at))
    assert changes.told("4:4:") is None
    told = changes.told("5:8:6")
    assert told is not None
    assert told.position == "0/2"
    told = changes.told("20:20:")
    assert told is not None
    assert told.position == "0/3"
