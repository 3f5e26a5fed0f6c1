"""What clients send: every refusal has its code, and nothing that they can send is anything but a ProtocolError."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tocsin.position import Position
from tocsin_gateway import protocol
from tocsin_gateway.limits import Limits
from tocsin_gateway.protocol import Auth, Ping, ProtocolError, Subscribe, Unsubscribe

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["op", "id", "subject", "since", "where", "token", "__proto__"]) | st.text(), inner)
    ),
    max_leaves=12,
)
likely = st.fixed_dictionaries(
    {"op": st.sampled_from(["subscribe", "unsubscribe", "auth", "ping", "dance"]) | json_values},
    optional={name: st.text() | json_values for name in ("id", "subject", "since", "where", "token")},
)


def understood(text: str | bytes) -> bytes | None:
    """Everything that the gateway does with a message before it acts; the answer's bytes where it is an error."""
    try:
        message = protocol.decode(text)
        if isinstance(message, Subscribe):
            protocol.checked_pattern(message)
            protocol.checked_since(message)
    except ProtocolError as problem:
        return protocol.error(problem)
    return None


@given(st.text() | st.binary())
@example("[" * 60_000)
@example('{"op":"subscribe","id":"a","subject":"pg.>","where":' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}")
@example('{"op":"subscribe","id":"a","subject":"pg.>","where":{"a":' + "9" * 60_000 + "}}")
@example('{"op":"ping","op":"ping"}')
@example('{"op":NaN}')
@example('{"op":"subscribe","id":"\\ud800","subject":"pg.\\udfff"}')
@example('{"op":"subscribe","id":"a","subject":"pg.\\u0000"}')
@example(b'{"op":"ping","\xff":1}')
@example("\ufeff{}")
@example("\ud800")
def test_arbitrary_text_is_understood_or_refused(text: str | bytes) -> None:
    """Refusals are valid JSON with a code of the contract."""
    answer = understood(text)
    assert answer is None or json.loads(answer)["op"] == "error"


@given(likely)
def test_arbitrary_json_is_understood_or_refused(value: object) -> None:
    answer = understood(json.dumps(value))
    assert answer is None or json.loads(answer)["code"] in {"bad-message", "bad-subject", "bad-since", "bad-where"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"op":"auth","token":"t"}', Auth("t")),
        ('{"op":"subscribe","id":"a","subject":"pg.>"}', Subscribe("a", "pg.>", "now")),
        ('{"subject":"pg.>","since":"start","id":"a","op":"subscribe"}', Subscribe("a", "pg.>", "start")),
        ('{"op":"unsubscribe","id":"a"}', Unsubscribe("a")),
        ('{"op":"ping"}', Ping()),
    ],
)
def test_the_contracts_messages_are_understood(text: str, message: object) -> None:
    assert protocol.decode(text) == message


def test_a_refusal_names_the_subscription_where_it_can() -> None:
    with pytest.raises(ProtocolError) as refused:
        protocol.decode('{"op":"subscribe","id":"mine"}')
    assert (refused.value.code, refused.value.id) == ("bad-message", "mine")
    with pytest.raises(ProtocolError) as refused:
        protocol.decode('{"op":"subscribe","id":7,"subject":"pg.>"}')
    assert refused.value.id is None


@pytest.mark.parametrize(
    ("since", "meaning"),
    [
        ("now", "now"),
        ("start", "start"),
        ("5m", timedelta(minutes=5)),
        ("250ms", timedelta(milliseconds=250)),
        ("k3v9q2m7xa-1042", Position("k3v9q2m7xa", 1042)),
        ("k3v9q2m7xa-0", Position("k3v9q2m7xa", 0)),
    ],
)
def test_since_is_now_start_an_age_or_a_position(since: str, meaning: object) -> None:
    assert protocol.checked_since(Subscribe("a", "pg.>", since)) == meaning


@pytest.mark.parametrize("since", ["", "yesterday", "-5m", "k3v9q2m7xa--1", "k3v9q2m7xa-1.5", "K3V9-1", "99999999999999d", "5m\n"])
def test_other_places_are_refused_with_what_is_allowed(since: str) -> None:
    with pytest.raises(ProtocolError, match=r"now|snapshot") as refused:
        protocol.checked_since(Subscribe("a", "pg.>", since))
    assert (refused.value.code, refused.value.id) == ("bad-since", "a")


@pytest.mark.parametrize("id", ["", "x" * 129])
def test_an_id_has_1_to_128_characters(id: str) -> None:  # noqa: A002
    with pytest.raises(ProtocolError) as refused:
        protocol.checked_pattern(Subscribe(id, "pg.>"))
    assert refused.value.code == "bad-message"


@pytest.mark.parametrize("subject", ["", "pg..x", ".pg", "pg.", "pg.>.x", "pg.a*", "pg.a b", "pg.\r\nPUB", "pg.\0", "x" * 5000, "a." * 40 + "a", "pg.\x7f"])
def test_a_subject_that_would_harm_nats_never_gets_there(subject: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        protocol.checked_pattern(Subscribe("a", subject))
    assert (refused.value.code, refused.value.id) == ("bad-subject", "a")
    assert len(protocol.error(refused.value)) < 12_000


def test_what_a_filter_says_wrong_is_told_to_its_subscription() -> None:
    each: tuple[Any, ...] = ({"customer": 42}, [], 5, {"customer": {"equals": 42}}, {"customer": {"eq": None}})
    for wrong in each:
        with pytest.raises(ProtocolError) as refused:
            protocol.checked_where(Subscribe("a", "pg.>", where=wrong))
        assert (refused.value.code, refused.value.id) == ("bad-where", "a")


def test_numbers_of_a_filter_are_not_made_doubles() -> None:
    request = protocol.decode('{"op":"subscribe","id":"a","subject":"pg.>","where":{"x":{"in":[0.1, 12345678901234567890123, 1e400]}}}')
    assert isinstance(request, Subscribe)
    assert request.where["x"]["in"] == [Decimal("0.1"), 12345678901234567890123, Decimal("1e400")]
    for hostile in ("1" * 5000, "1e99999999999999999999", "NaN", "[" * 5000):
        with pytest.raises(ProtocolError) as refused:
            protocol.decode('{"op":"subscribe","id":"a","subject":"pg.>","where":{"x":{"eq":' + hostile + "}}}")
        assert refused.value.code == "bad-message"


@pytest.mark.parametrize("select", [[], ["x"] * 300])
def test_a_selection_of_no_columns_or_very_many_is_refused(select: list[str]) -> None:
    with pytest.raises(ProtocolError):
        protocol.checked_select(Subscribe("a", "pg.>", select=select))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_we_say_is_json_whatever_the_client_called_it(id: str, subject: str) -> None:  # noqa: A002
    said = json.loads(protocol.subscribed(id, subject, Position("epoch", 5), "gap"))
    assert said == {"op": "subscribed", "id": id, "subject": subject, "position": "epoch-5", "recovered": False, "reason": "gap"}
    assert json.loads(protocol.unsubscribed(id))["id"] == id
    assert json.loads(protocol.position(id, Position("epoch", 5)))["position"] == "epoch-5"
    assert json.loads(protocol.error(ProtocolError("limit", subject, id)))["message"] == subject


def test_welcome_tells_every_limit() -> None:
    said = json.loads(protocol.welcome(Limits(), auth=True))
    assert (said["op"], said["version"], said["auth"]) == ("welcome", 1, True)
    assert said["limits"] == msgspec.to_builtins(Limits())
