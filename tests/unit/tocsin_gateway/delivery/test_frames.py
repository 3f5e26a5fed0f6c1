"""An event's bytes: the JSON is spliced, and must be JSON; the frame is ours, and another's parser must agree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from tocsin.subject import encode_token
from tocsin_gateway.delivery.frames import StreamEvent, addressed, frame

bodies = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text()), max_size=5)


def parsed(data: bytes) -> list[Frame]:
    """What the websockets library reads as a client."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    client.receive_data(data)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


@given(st.integers(0, 70_000) | st.sampled_from([125, 126, 65_535, 65_536, 1 << 20]))
@example(125)
@example(126)
@example(65_535)
@example(65_536)
def test_a_frame_is_read_back_by_another_parser(length: int) -> None:
    payload = b"x" * length
    (read,) = parsed(frame(payload))
    assert (read.opcode, read.fin, bytes(read.data)) == (Opcode.TEXT, True, payload)


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_frames_can_be_joined(payloads: list[bytes]) -> None:
    assert [bytes(read.data) for read in parsed(b"".join(map(frame, payloads)))] == payloads


@given(bodies, st.lists(st.text(min_size=1), min_size=1, max_size=4), st.integers(1, 2**63), st.lists(st.text(), min_size=1, max_size=3, unique=True))
def test_the_splice_is_the_json_that_the_contract_shows(body: dict[str, Any], names: list[str], sequence: int, ids: list[str]) -> None:
    subject = "pg." + ".".join(encode_token(name.encode(errors="replace").decode()) for name in names)
    clean = [id_.encode(errors="replace").decode() for id_ in ids]
    event = StreamEvent("epoch2345", sequence, subject, json.dumps(body).encode())
    said = {"op": "event", "subject": subject, "position": f"epoch2345-{sequence}", "event": json.loads(json.dumps(body))}
    assert json.loads(event.payload) == said
    assert json.loads(bytes(parsed(event.framed)[0].data)) == said
    assert json.loads(addressed(event.payload, [(json.dumps(id_).encode(), b"null") for id_ in clean])) == {"for": dict.fromkeys(clean), **said}


def test_each_form_is_made_once() -> None:
    event = StreamEvent("epoch2345", 7, "pg.x", b"{}")
    assert event.payload is event.payload
    assert event.framed is event.framed


@pytest.mark.parametrize(
    ("copy", "original", "expected"),
    [
        (("m-old", True), "m", True),
        (("m-old", True), "n", False),
        (("m-old", False), "m", False),
        (("m-old", True), None, False),
    ],
)
def test_a_copy_belongs_to_the_original_directly_before_it(copy: tuple[str, bool], original: str | None, expected: bool) -> None:
    before = None if original is None else StreamEvent("e", 1, "pg.new", b"{}", original)
    assert StreamEvent("e", 2, "pg.old", b"{}", copy[0], copy=copy[1]).is_copy_of(before) is expected
