"""What the frames of a subscription mean, and what is asked when the link is made anew."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.cli.tail import conditions
from tocsin.errors import OperatorError
from tocsin.retry import Pauses
from tocsin.subscription import (
    Delivery,
    Frame,
    Gap,
    GapError,
    Row,
    SnapshotEnd,
    SnapshotStart,
    SubscribeError,
    Subscription,
    Unready,
    decode_frame,
    socket_url,
)

EPOCH = "abcdefghij"
SUBJECT = "pg.shop.change.public.orders.*"


def body(number: int) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"inc-{number}",
        "source": "/pg/shop",
        "type": "public.orders.insert",
        "time": "2026-11-22T20:15:31.123456Z",
        "sequence": str(number),
        "txid": "7",
        "data": {"op": "insert", "schema": "public", "table": "orders", "key": {"id": number}, "new": {"id": number}},
    }


def frame(**parts: Any) -> Frame:
    return decode_frame(msgspec.json.encode(parts))


def event(number: int, position: str, subject: str = "pg.shop.change.public.orders.insert") -> Frame:
    return frame(op="event", subject=subject, position=position, event=body(number))


def asked(subscription: Subscription) -> Any:
    return msgspec.json.decode(subscription.request())


def test_the_first_request_has_the_asked_since() -> None:
    assert asked(Subscription(SUBJECT, "5m")) == {"op": "subscribe", "id": "a", "subject": SUBJECT, "since": "5m"}


def test_a_delivery_gives_the_parts_of_a_change_and_its_position() -> None:
    delivery = Subscription(SUBJECT, "now").take(event(3, "abcd-30"))
    assert isinstance(delivery, Delivery)
    assert (delivery.id, delivery.op, delivery.key, delivery.new, delivery.old) == ("inc-3", "insert", {"id": 3}, {"id": 3}, None)
    assert (delivery.position, delivery.subject) == ("abcd-30", "pg.shop.change.public.orders.insert")


def test_an_event_that_is_no_change_has_no_op() -> None:
    emitted = frame(op="event", subject="pg.shop.event.order.paid", position="abcd-1", event={**body(1), "data": [1, 2]})
    delivery = Subscription("pg.>", "now").take(emitted)
    assert isinstance(delivery, Delivery)
    assert (delivery.op, delivery.data) == (None, [1, 2])


@given(st.lists(st.sampled_from(["event", "position", "subscribed"]), max_size=12))
def test_a_resume_begins_after_the_last_position_of_any_frame(kinds: list[str]) -> None:
    subscription = Subscription(SUBJECT, "start")
    expected = "start"
    for number, kind in enumerate(kinds, 1):
        expected = f"abcd-{number}"
        subscription.take(event(number, expected) if kind == "event" else frame(op=kind, id="a", position=expected))
    assert asked(subscription)["since"] == expected


def test_the_copy_of_the_last_event_is_not_a_second_event_but_moves_the_position() -> None:
    subscription = Subscription("pg.>", "now")
    assert subscription.take(event(1, "abcd-1", "pg.shop.change.public.orders.update.2")) is not None
    assert subscription.take(event(1, "abcd-2", "pg.shop.change.public.orders.update.1")) is None
    assert asked(subscription)["since"] == "abcd-2"


def test_what_can_not_be_recovered_is_an_error_with_reason_and_position() -> None:
    with pytest.raises(GapError) as raised:
        Subscription(SUBJECT, "abcd-1").take(frame(op="subscribed", id="a", position="efgh-9", recovered=False, reason="epoch"))
    assert (raised.value.reason, raised.value.position) == ("epoch", "efgh-9")


def test_a_tolerated_gap_is_yielded_and_the_subscription_goes_on_behind_it() -> None:
    subscription = Subscription(SUBJECT, "abcd-1", tolerate_gaps=True)
    gap = subscription.take(frame(op="subscribed", id="a", position="efgh-9", recovered=False, reason="expired"))
    assert gap == Gap(SUBJECT, "efgh-9", "expired")
    assert asked(subscription)["since"] == "efgh-9"


def test_unavailable_passes_and_every_other_code_is_permanent() -> None:
    subscription = Subscription(SUBJECT, "now")
    with pytest.raises(Unready, match="NATS"):
        subscription.take(frame(op="error", id="a", code="unavailable", message="NATS is away"))
    with pytest.raises(SubscribeError, match="not yours") as refused:
        subscription.take(frame(op="error", id="a", code="forbidden", message="not yours"))
    assert refused.value.code == "forbidden"


def test_a_malformed_subject_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(SubscribeError, match="only as the last token") as refused:
        Subscription("pg.>.orders", "now")
    assert refused.value.code == "bad-subject"


def test_messages_and_fields_of_a_later_version_are_left_out() -> None:
    assert Subscription(SUBJECT, "now").take(frame(op="weather", id="a", mood={"x": 1})) is None


@pytest.mark.parametrize("text", ["", "hello", "[]", '{"no":"op"}', '{"op":"event","event":{"id":1}}'])
def test_an_answer_that_is_no_gateways_says_so(text: str) -> None:
    with pytest.raises(SubscribeError, match="Tocsin gateway"):
        decode_frame(text)


@pytest.mark.parametrize(
    ("given_url", "expected"),
    [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/ws"),
        ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/ws"),
        ("https://live.example.org/tocsin", "wss://live.example.org/tocsin/ws"),
        ("ws://127.0.0.1:8080/ws", "ws://127.0.0.1:8080/ws"),
        ("wss://live.example.org/other", "wss://live.example.org/other"),
        ("ws://[::1]:8080", "ws://[::1]:8080/ws"),
    ],
)
def test_a_gateways_url_leads_to_its_socket(given_url: str, expected: str) -> None:
    assert socket_url(given_url) == expected


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "nats://127.0.0.1:4222", "http://"])
def test_a_url_that_is_none_is_named_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8080"):
        socket_url(url)


def test_pauses_grow_to_their_bound_with_chance_and_begin_again() -> None:
    pauses = Pauses(longest=5.0)
    waits = [pauses.next() for _ in range(40)]
    assert 0.05 <= waits[0] <= 0.1
    assert all(2.5 <= wait <= 5.0 for wait in waits[6:])
    assert len(set(waits[6:])) > 10
    pauses.reset()
    assert pauses.next() <= 0.1


def test_what_is_asked_names_its_filter_and_every_digit_of_it() -> None:
    subscription = Subscription(SUBJECT, "now", where={"total": {"gte": Decimal("0.10000000000000000001")}}, select=["id"])
    assert '"where":{"total":{"gte":0.10000000000000000001}},"select":["id"]' in subscription.request()
    subscription.take(event(1, f"{EPOCH}-1"))
    assert asked(subscription)["since"] == f"{EPOCH}-1"
    assert asked(subscription)["select"] == ["id"]


def test_an_event_says_what_it_does_to_the_rows_that_were_asked_for() -> None:
    delivery = Subscription(SUBJECT, "now").take(frame(**{"for": {"a": "leave"}}, op="event", subject="s", position=f"{EPOCH}-1", event=body(1)))
    assert isinstance(delivery, Delivery)
    assert delivery.effect == "leave"


def test_a_snapshot_that_is_cut_begins_again_and_one_that_is_whole_is_resumed() -> None:
    subscription = Subscription(SUBJECT, "snapshot")
    whole = [
        frame(op="subscribed", id="a", subject=SUBJECT, position=f"{EPOCH}-5", recovered=True),
        frame(op="row", id="a", key={"id": 1}, row={"id": 1, "customer": 42}),
        event(6, f"{EPOCH}-6"),
    ]
    for _ in range(2):
        start, row, change = (subscription.take(one) for one in whole)
        assert (start, row) == (SnapshotStart(), Row({"id": 1}, {"id": 1, "customer": 42}))
        assert isinstance(change, Delivery)
        assert asked(subscription)["since"] == "snapshot", "a resume from the change would skip the rest of the rows"
    assert subscription.take(frame(op="snapshot-end", id="a", position=f"{EPOCH}-7")) == SnapshotEnd(f"{EPOCH}-7")
    assert asked(subscription)["since"] == f"{EPOCH}-7"
    assert subscription.take(frame(op="subscribed", id="a", subject=SUBJECT, position=f"{EPOCH}-7", recovered=True)) is None


def test_a_gap_behind_a_snapshot_has_the_rows_read_anew() -> None:
    subscription = Subscription(SUBJECT, "snapshot")
    subscription.take(frame(op="snapshot-end", id="a", position=f"{EPOCH}-7"))
    with pytest.raises(Unready):
        subscription.take(frame(op="subscribed", id="a", subject=SUBJECT, position=f"{EPOCH}-9", recovered=False, reason="gap"))
    assert asked(subscription)["since"] == "snapshot"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("customer=42", {"customer": {"eq": Decimal(42)}}),
        ("total>=9.50", {"total": {"gte": Decimal("9.50")}}),
        ("total<3", {"total": {"lt": Decimal(3)}}),
        ("status!=paid", {"status": {"ne": "paid"}}),
        ("note~%a=b%", {"note": {"like": "%a=b%"}}),
        ("paid=true", {"paid": {"eq": True}}),
        ("paid=NULL", {"paid": {"null": True}}),
        ("paid!=NULL", {"paid": {"null": False}}),
        ("zip=01234", {"zip": {"eq": "01234"}}),
        ('{"customer": {"in": [1, 2]}}', {"customer": {"in": [1, 2]}}),
    ],
)
def test_the_terminal_s_conditions(text: str, meant: dict[str, Any]) -> None:
    assert conditions([text]) == meant


@pytest.mark.parametrize("text", ["customer", "=42", "", "{", '{"a": 5}'])
def test_what_is_no_condition_is_named(text: str) -> None:
    with pytest.raises(OperatorError, match="is no condition"):
        conditions([text])
