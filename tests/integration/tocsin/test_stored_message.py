"""One message of a real stream, asked for in each of the three ways."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nats.aio.client import Client

from tocsin import broker


@pytest_asyncio.fixture
async def stream(nats: Client) -> AsyncIterator[str]:
    """A fresh stream on `stored.>`, with a message at 1 (headers), 2 (none of them), 3 (empty) and 4 (bytes that are no text)."""
    name = "STORED"
    await broker.api(nats, f"STREAM.CREATE.{name}", {"name": name, "subjects": ["stored.>"], "storage": "memory"})
    await broker.publish(nats, "stored.a", b'{"a":1}', {"Tocsin-Epoch": "k3v9", "Tocsin-Batch": "17;0", "Other": "a: b"})
    await broker.publish(nats, "stored.b", b"plain")
    await broker.publish(nats, "stored.a", b"", {"Tocsin-Batch": "17;1"})
    await broker.publish(nats, "stored.c", b"\x00\xff\r\n")
    yield name
    await broker.api(nats, f"STREAM.DELETE.{name}")


async def test_a_message_with_its_headers_body_and_time(nats: Client, stream: str) -> None:
    found = await broker.stored_message(nats, stream, seq=1)
    assert found is not None
    assert (found.sequence, found.subject, found.data) == (1, "stored.a", b'{"a":1}')
    assert found.headers == {"Tocsin-Epoch": "k3v9", "Tocsin-Batch": "17;0", "Other": "a: b"}
    assert abs(found.time.timestamp() - time.time()) < 60


async def test_messages_without_headers_without_a_body_and_with_any_bytes(nats: Client, stream: str) -> None:
    plain, empty, binary = [await broker.stored_message(nats, stream, seq=number) for number in (2, 3, 4)]
    assert plain is not None
    assert (plain.headers, plain.data) == ({}, b"plain")
    assert empty is not None
    assert (empty.headers, empty.data) == ({"Tocsin-Batch": "17;1"}, b"")
    assert binary is not None
    assert binary.data == b"\x00\xff\r\n"


async def test_the_last_and_the_next_of_a_subject_or_a_pattern(nats: Client, stream: str) -> None:
    asked = [
        await broker.stored_message(nats, stream, last_by_subj="stored.a"),
        await broker.stored_message(nats, stream, last_by_subj=">"),
        await broker.stored_message(nats, stream, seq=1, next_by_subj="stored.b"),
        await broker.stored_message(nats, stream, seq=2, next_by_subj="stored.a"),
        await broker.stored_message(nats, stream, seq=3, next_by_subj="stored.*"),
    ]
    assert [found.sequence if found else None for found in asked] == [3, 4, 2, 3, 3]


async def test_what_is_not_there_is_none_and_a_stream_that_is_not_there_is_told(nats: Client, stream: str) -> None:
    await broker.api(nats, f"STREAM.MSG.DELETE.{stream}", {"seq": 2})
    assert await broker.stored_message(nats, stream, seq=2) is None
    assert await broker.stored_message(nats, stream, seq=99) is None
    assert await broker.stored_message(nats, stream, last_by_subj="stored.none") is None
    assert await broker.stored_message(nats, stream, seq=4, next_by_subj="stored.a") is None
    with pytest.raises(broker.JetStreamError) as refusal:
        await broker.stored_message(nats, "NO_SUCH_STREAM", seq=1)
    assert refusal.value.err_code == broker.STREAM_NOT_FOUND
