"""Where to go on: every difference between cursor and stream has its own answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tocsin.broker import StreamState
from tocsin_listener.progress import BEGINNING, Cursor, Identity
from tocsin_listener.resume import plan
from tocsin_listener.stream import STRANGE, Stored

IDENTITY = Identity("inc", "sys", "1", "shop", "pg", "S", "then", "e1")
PRESENT = replace(IDENTITY, stream_created=None, epoch=None)
IDLE = Cursor("5:5:", None, 100)
UNDER_WAY = Cursor("5:5:", "9:9:", 100)


def stream(last: int, *, epoch: str = "e1", created: str = "then") -> StreamState:
    return StreamState(name="S", created=created, epoch=epoch, first_sequence=1, last_sequence=last, messages=last, bytes=0, config={})


def test_an_idle_cursor_at_the_streams_end_goes_on() -> None:
    decided = plan(IDENTITY, PRESENT, IDLE, stream(100), None)
    assert (decided.cursor, decided.published, decided.new_epoch, decided.identity.incarnation) == (IDLE, 0, None, "inc")


@pytest.mark.parametrize("published", [0, 1, 7])
def test_a_batch_under_way_goes_on_where_the_stream_ends(published: int) -> None:
    last = Stored("e1", 50, published - 1, None) if published else Stored("e1", 40, 3, None)
    decided = plan(IDENTITY, PRESENT, UNDER_WAY, stream(100 + published), last)
    assert (decided.cursor, decided.published, decided.new_epoch) == (UNDER_WAY, published, None)


def test_a_purge_or_an_aged_out_message_is_nothing_new() -> None:
    decided = plan(IDENTITY, PRESENT, UNDER_WAY, stream(105), None)
    assert (decided.published, decided.new_epoch) == (5, None)


@pytest.mark.parametrize("last", [STRANGE, Stored("e0", 50, 4, None), Stored("e1", 50, 3, None)])
def test_a_message_of_another_hand_begins_a_new_epoch_and_incarnation(last: Stored) -> None:
    decided = plan(IDENTITY, PRESENT, UNDER_WAY, stream(105), last)
    assert decided.new_epoch is not None
    assert decided.identity.incarnation != "inc"
    assert decided.cursor == Cursor("5:5:", None, 105)


def test_messages_after_an_idle_cursor_are_not_ours() -> None:
    """So it is also where the database was set back to an earlier state."""
    assert plan(IDENTITY, PRESENT, IDLE, stream(101), Stored("e1", 50, 0, None)).new_epoch is not None


def test_a_stream_that_went_backwards_is_filled_again() -> None:
    decided = plan(IDENTITY, PRESENT, IDLE, stream(60), None)
    assert (decided.rewind, decided.new_epoch is not None, decided.identity.incarnation) == (True, True, "inc")


def test_a_stream_made_anew_gets_the_whole_journal() -> None:
    decided = plan(IDENTITY, PRESENT, IDLE, stream(0, created="now"), None)
    assert (decided.cursor, decided.new_epoch is not None) == (Cursor(BEGINNING, None, 0), True)


def test_another_system_begins_a_new_incarnation_from_the_cursor_that_survived() -> None:
    decided = plan(IDENTITY, replace(PRESENT, system="other"), UNDER_WAY, stream(103), Stored("e1", 50, 2, None))
    assert decided.identity.incarnation != "inc"
    assert (decided.cursor, decided.new_epoch is not None) == (Cursor("5:5:", None, 103), True)


def test_a_failover_goes_on_in_the_batch_that_the_new_primary_knows_of() -> None:
    """A batch whose intent was replicated is there whole, so that what the stream has of it is not sent again."""
    decided = plan(IDENTITY, replace(PRESENT, timeline="2"), UNDER_WAY, stream(103), Stored("e1", 50, 2, None))
    assert decided.identity.incarnation != "inc"
    assert (decided.cursor, decided.published, decided.new_epoch is not None) == (UNDER_WAY, 3, True)


@pytest.mark.parametrize(
    ("end", "last"), [(120, Stored("e1", 60, 2, None)), (99, None), (103, Stored("other", 50, 2, None))], ids=["behind", "backwards", "stranger"]
)
def test_a_failover_to_a_standby_that_was_behind_begins_from_its_cursor(end: int, last: Stored | None) -> None:
    """The stream has batches that the new primary does not know of: its own rows come again, under the new incarnation."""
    decided = plan(IDENTITY, replace(PRESENT, timeline="2"), UNDER_WAY, stream(end), last)
    assert (decided.cursor, decided.published) == (Cursor("5:5:", None, end), 0)
    assert decided.identity.incarnation != "inc"


@pytest.mark.parametrize("present", [PRESENT, replace(PRESENT, timeline="2")], ids=["restored", "failed over"])
def test_a_database_set_back_knows_what_the_stream_has_of_its_batch(present: Identity) -> None:
    """The stream went on behind it. What of the batch was sent does not come again; the rest, if any, stands at the stream's end."""
    decided = plan(IDENTITY, present, UNDER_WAY, stream(120), Stored("e1", 60, 2, None), 7)
    assert (decided.cursor, decided.published, decided.new_epoch is not None) == (Cursor("5:5:", "9:9:", 113), 7, True)
    assert decided.identity.incarnation != "inc"


def test_the_first_start_begins_at_the_journals_begin() -> None:
    decided = plan(replace(IDENTITY, epoch=None, system=None, timeline=None, stream=None), PRESENT, None, stream(7), None)
    assert (decided.cursor, decided.new_epoch is not None) == (Cursor(BEGINNING, None, 7), True)
