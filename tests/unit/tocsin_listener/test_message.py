"""Numbering: the same rows give the same messages, however they are paged and whatever is left out."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tocsin.event import BATCH, COPY, MSG_ID, SNAPSHOTS
from tocsin_listener.message import Address, Message, Numbering
from tocsin_listener.relay import CHUNK_BYTES, _chunks

ADDRESS = Address("pg", "my shop", "inc", "epoch")


class Row(NamedTuple):
    seq: int
    subject: str
    old_subject: str | None
    age: float
    message: bytes


rows = st.lists(
    st.builds(
        Row,
        seq=st.integers(1, 10**9),
        subject=st.sampled_from(["change.public.t.insert", "canary"]),
        old_subject=st.sampled_from([None, "change.public.t.insert.1"]),
        age=st.just(0.0),
        message=st.binary(max_size=9),
    ),
    min_size=1,
    unique_by=lambda row: row.seq,
)


def numbered(found: list[Row], quarantined: set[tuple[int, bool]] | None = None) -> list[Message]:
    return list(Numbering(ADDRESS, "1:1:", "2:2:", quarantined or set()).messages(found))


@given(rows, st.integers(1, 5))
def test_pages_do_not_show(found: list[Row], size: int) -> None:
    numbering = Numbering(ADDRESS, "1:1:", "2:2:", set())
    paged = [m for start in range(0, len(found), size) for m in numbering.messages(found[start : start + size])]
    assert paged == numbered(found)


@given(rows)
def test_every_message_has_its_place_and_only_the_first_the_snapshots(found: list[Row]) -> None:
    messages = numbered(found)
    assert [m.fields[BATCH] for m in messages] == [f"{found[0].seq};{n}" for n in range(len(messages))]
    assert [SNAPSHOTS in m.fields for m in messages] == [True] + [False] * (len(messages) - 1)
    assert len({m.fields[MSG_ID] for m in messages}) == len(messages)
    assert messages[0].fields[SNAPSHOTS] == "1:1:;2:2:"


@given(rows)
def test_a_copy_follows_its_original_at_once(found: list[Row]) -> None:
    messages = numbered(found)
    for before, message in zip([None, *messages], messages, strict=False):
        if COPY in message.fields:
            assert before is not None
            assert (before.seq, before.body, before.fields[MSG_ID] + "-old") == (message.seq, message.body, message.fields[MSG_ID])
            assert message.subject == "pg.my%20shop.change.public.t.insert.1"


@given(rows, st.data())
def test_what_is_set_aside_has_no_number_and_changes_nothing_before_it(found: list[Row], data: st.DataObject) -> None:
    messages = numbered(found)
    gone = data.draw(st.integers(0, len(messages) - 1))
    rest = numbered(found, {(messages[gone].seq, messages[gone].copy)})
    assert rest[:gone] == messages[:gone]
    assert [(m.seq, m.copy) for m in rest] == [(m.seq, m.copy) for n, m in enumerate(messages) if n != gone]
    assert [m.fields[BATCH] for m in rest] == [f"{found[0].seq};{n}" for n in range(len(rest))]


def test_the_canary_is_outside_of_every_subscription() -> None:
    (message,) = numbered([Row(1, "canary", None, 0.0, b"{}")])
    assert message.subject == "_tocsin.my%20shop.canary"


@given(st.lists(st.sampled_from([1, 1000, CHUNK_BYTES // 2, CHUNK_BYTES, 2 * CHUNK_BYTES]), max_size=40))
def test_chunks_keep_the_order_and_the_bounds(sizes: list[int]) -> None:
    bodies = {size: bytes(size) for size in set(sizes)}
    messages = [Message(n, False, "s", bodies[size], "", 0.0, 0.0) for n, size in enumerate(sizes)]
    chunks = _chunks(messages)
    assert [m.seq for chunk in chunks for m in chunk] == list(range(len(sizes)))
    assert all(len(chunk) == 1 or sum(len(m.body) for m in chunk) <= CHUNK_BYTES for chunk in chunks)


def test_chunks_hold_at_most_five_hundred() -> None:
    assert [len(chunk) for chunk in _chunks([Message(n, False, "s", b"", "", 0.0, 0.0) for n in range(1200)])] == [500, 500, 200]
