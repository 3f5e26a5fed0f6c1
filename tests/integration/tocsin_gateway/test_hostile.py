"""Clients that mean harm, or do not mind: each is answered or cut off, and the others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from tests.support import servers
from tests.support.gateway import RunningGateway, numbers, peer, running_gateway
from tests.support.stream import Stream
from tocsin_gateway.limits import Limits

SECRET = "a-secret-of-at-least-thirty-two-bytes"


def token(**claims: Any) -> str:
    return jwt.encode({"exp": int(time.time()) + 600, "subscribe": ["pg.>"], **claims}, SECRET, "HS256")


@pytest_asyncio.fixture
async def guarded(stream: Stream, nats_server: servers.Server) -> AsyncIterator[RunningGateway]:
    """A gateway that wants a token, soon."""
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET, limits=Limits(auth_seconds=0.5)) as running:
        yield running


@contextlib.asynccontextmanager
async def raw(gateway: RunningGateway, head: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection, and a WebSocket's where `head` is left out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    lines = (
        "GET /ws HTTP/1.1",
        f"Host: 127.0.0.1:{gateway.port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    writer.write(head or "\r\n".join((*lines, "", "")).encode())
    try:
        if not head:
            async with asyncio.timeout(10):
                assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        yield reader, writer
    finally:
        writer.transport.abort()


def masked(first: int, data: bytes) -> bytes:
    """A client's frame with an all-zero mask."""
    size = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BQ", 0xFF, len(data))
    return bytes((first,)) + size + b"\0\0\0\0" + data


async def still_serves(gateway: RunningGateway, stream: Stream) -> None:
    """Somebody else gets an event, soon."""
    async with asyncio.timeout(5), peer(gateway) as client:
        await client.subscribe(stream.subject("witness"))
        await stream.publish(stream.subject("witness"))
        await client.events(1)


def resident() -> int:
    """Bytes of this process, which is the gateway's too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil:1", "HTTP://LOCALHOST"])
async def test_a_foreign_page_is_refused_before_the_handshake(gateway: RunningGateway, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with peer(gateway, additional_headers={"Origin": origin}):
            pass
    assert refused.value.response.status_code == 403


async def test_a_name_that_a_stranger_leads_to_loopback_is_not_our_origin(gateway: RunningGateway) -> None:
    """DNS rebinding: then origin and host agree, and are the stranger's."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(
            gateway.socket_url.replace("127.0.0.1", "evil.example"),
            host="127.0.0.1",
            port=gateway.port,
            origin=Origin("http://evil.example"),
            proxy=None,
        ):
            pass
    assert refused.value.response.status_code == 403


async def test_our_own_page_may_connect(gateway: RunningGateway) -> None:
    async with peer(gateway, additional_headers={"Origin": gateway.url}) as client:
        assert client.welcome["op"] == "welcome"


async def test_who_sends_no_token_in_time_is_closed_and_asked_nothing_of_nats(guarded: RunningGateway, stream: Stream) -> None:
    async with peer(guarded) as client:
        assert client.welcome["auth"] is True
        answer = await client.subscribe(stream.subject())
        assert (answer["op"], answer["code"]) == ("error", "unauthenticated")
        assert (await client.closed())[0] == 4408
    info = await stream.client.jetstream().consumers_info(stream.name)
    assert info == []


@pytest.mark.parametrize(
    "text",
    ["garbage", token(exp=1), token() + "x", jwt.encode({"exp": 9_999_999_999, "subscribe": ["pg.>"]}, "some-other-secret-of-thirty-two-bytes", "HS256")],
)
async def test_a_bad_token_closes_with_4401_and_is_not_repeated(guarded: RunningGateway, text: str) -> None:
    async with peer(guarded) as client:
        await client.send(op="auth", token=text)
        answer = await client.next()
        assert answer["code"] == "unauthenticated"
        code, reason = await client.closed()
        assert code == 4401
        assert text not in reason + answer["message"]


async def test_a_token_allows_its_patterns_and_its_end_closes(guarded: RunningGateway, stream: Stream) -> None:
    async with peer(guarded) as client:
        await client.send(op="auth", token=token(exp=int(time.time()) + 2, subscribe=[stream.subject()]))
        answer = await client.next()
        assert (answer["op"], answer["expires"][-1]) == ("authenticated", "Z")
        assert (await client.subscribe("pg.>", "b"))["code"] == "forbidden"
        assert (await client.subscribe(stream.subject()))["op"] == "subscribed"
        await stream.publish(stream.subject("customers"), stream.subject())
        assert numbers(await client.events(1)) == [2]
        assert (await client.closed())[0] == 4401


async def test_a_token_in_the_headers_and_a_narrower_one_later(guarded: RunningGateway, stream: Stream) -> None:
    async with peer(guarded, additional_headers={"Authorization": f"Bearer {token()}"}) as client:
        assert (await client.next())["op"] == "authenticated"
        await client.subscribe("pg.>", "all")
        await client.subscribe(stream.subject(), "one")
        await client.send(op="auth", token=token(subscribe=[stream.subject()]))
        assert (await client.next())["op"] == "authenticated"
        ended = await client.next()
        assert (ended["code"], ended["id"]) == ("forbidden", "all")
        assert await client.next() == {"op": "unsubscribed", "id": "all"}
        await stream.publish(stream.subject("customers"), stream.subject())
        assert numbers(await client.events(1)) == [2]


async def test_a_binary_frame_is_a_bad_message(gateway: RunningGateway) -> None:
    async with peer(gateway) as client:
        await client.socket.send(b'{"op":"ping"}')
        assert (await client.closed())[0] == 4400


async def test_a_flood_of_messages_is_closed(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(2000):
                await client.socket.send('{"op":"ping"}')
        assert (await client.closed())[0] in (4429, 1006)
    await still_serves(gateway, stream)


async def test_a_flood_of_protocol_pings_is_cut_off(gateway: RunningGateway, stream: Stream) -> None:
    """Each would be answered, and the answers kept for whoever does not read them."""
    async with raw(gateway) as (_, writer):
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while not writer.transport.is_closing():
                    writer.write(masked(0x89, b"x" * 100) * 500)
                    await writer.drain()
                    await asyncio.sleep(0)
    await still_serves(gateway, stream)


async def test_a_message_over_the_limit_closes_with_1009(gateway: RunningGateway, stream: Stream) -> None:
    before = resident()
    async with peer(gateway) as client:
        with contextlib.suppress(ConnectionClosed):
            await client.socket.send("x" * (20 << 20))
        assert (await client.closed())[0] in (1009, 1006)
    assert resident() - before < 100 << 20, "20 MiB of it are the client's own"
    await still_serves(gateway, stream)


async def test_a_length_that_is_only_promised_is_refused(gateway: RunningGateway, stream: Stream) -> None:
    async with raw(gateway) as (reader, writer):
        writer.write(b"\x81\xff" + struct.pack("!Q", 1 << 62) + b"\0\0\0\0")
        async with asyncio.timeout(5):
            assert b"\x03\xf1" in await reader.read(), "1009"
    await still_serves(gateway, stream)


async def test_empty_fragments_are_not_collected(gateway: RunningGateway, stream: Stream) -> None:
    async with raw(gateway) as (reader, writer):
        writer.write(masked(0x01, b'{"op":'))
        before = resident()
        for _ in range(20):
            writer.write(masked(0x00, b"") * 10_000)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(masked(0x80, b'"ping"}'))
        async with asyncio.timeout(20):
            await reader.readuntil(b'{"op":"pong"}')
        assert resident() - before < 16 << 20


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (masked(0x81, b"\xff\xfe"), 1007),
        (masked(0xC1, b"{}"), 1002),
        (b"\x81\x02{}", 1002),
        (masked(0x09, b""), 1002),
        (masked(0x83, b""), 1002),
    ],
    ids=["not UTF-8", "reserved bit", "not masked", "fragmented ping", "reserved opcode"],
)
async def test_what_breaks_the_protocol_is_closed_as_rfc_6455_says(gateway: RunningGateway, stream: Stream, sent: bytes, code: int) -> None:
    async with raw(gateway) as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(5):
            assert struct.pack("!H", code) in await reader.read()
    await still_serves(gateway, stream)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        '{"op":"subscribe","id":"a","subject":"pg.>","where":' + '{"a":' * 10_000 + "1" + "}" * 10_001,
        '{"op":"subscribe","id":"a","subject":"pg.>","where":{"a":' + "9" * 60_000 + "}}",
        '{"op":NaN}',
        '{"op":"subscribe","id":"\\ud800","subject":"pg.\\ud800"}',
        '{"op":"subscribe","id":"a","subject":"pg.' + "x" * 5_000 + '"}',
        '{"op":"subscribe","id":"a","subject":"pg.\\u0000"}',
        '{"op":"subscribe","id":"a","subject":"pg.x\\r\\nPUB pg.x 0\\r\\n"}',
        '{"__proto__":{"op":"ping"}}',
    ],
)
async def test_json_that_means_harm_is_an_error_and_the_socket_lives(gateway: RunningGateway, stream: Stream, text: str) -> None:
    async with peer(gateway) as client:
        await client.socket.send(text)
        assert (await client.next())["op"] == "error"
        assert (await client.subscribe(stream.subject()))["op"] == "subscribed"
        await stream.publish(stream.subject())
        await client.events(1)


async def test_a_connection_that_does_not_finish_its_request_is_closed(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, limits=Limits(handshake_seconds=0.5)) as gateway:

        async def until_closed(head: bytes, drip: bytes = b"", answer: bytes = b"") -> None:
            async with raw(gateway, head or b"G") as (reader, writer):
                with contextlib.suppress(ConnectionError):
                    if answer:
                        await reader.readuntil(answer)
                    while drip and not writer.transport.is_closing():
                        writer.write(drip)
                        await writer.drain()
                        await asyncio.sleep(0.05)
                    assert await reader.read() == b""

        async with asyncio.timeout(8), asyncio.TaskGroup() as group:
            group.create_task(until_closed(b""))
            group.create_task(until_closed(b"GET /ws HTTP/1.1\r\nX: ", drip=b"x"))
            group.create_task(until_closed(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /ws HTTP/1.1\r\nX: ", drip=b"x", answer=b'{"status":"ok"}'))
            for _ in range(100):
                group.create_task(until_closed(b"GET"))
        async with peer(gateway) as client:
            await client.subscribe(stream.subject())
            await asyncio.sleep(0.7)
            await stream.publish(stream.subject())
            await client.events(1)


async def test_many_that_come_and_go_leave_nothing_behind(gateway: RunningGateway, stream: Stream) -> None:
    async def visit(number: int) -> None:
        async with peer(gateway) as client:
            for sub in range(3):
                await client.send(op="subscribe", id=f"s{sub}", subject=stream.subject("t", "insert", f"{number}-{sub}"), since="start" if sub else "now")
            if number % 2:
                await client.until("subscribed")

    for _ in range(2):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(visit(number))
    await gateway.until_metric("tocsin_gateway_clients", 0.0, kind="websocket")
    await gateway.until_metric("tocsin_gateway_subscriptions", 0.0)
    await gateway.until_metric("tocsin_gateway_replays", 0.0)
    await still_serves(gateway, stream)
    async with asyncio.timeout(20):
        while await stream.client.jetstream().consumers_info(stream.name):
            await asyncio.sleep(0.1)


async def test_more_replays_than_the_limit_take_turns(stream: Stream, nats_server: servers.Server) -> None:
    await stream.publish(*[stream.subject()] * 20)
    async with running_gateway(nats_server.url, stream.source, limits=Limits(replays=2)) as gateway, peer(gateway) as client:
        for number in range(10):
            await client.send(op="subscribe", id=str(number), subject=stream.subject(), since="start")
        frames = [await client.next() for _ in range(10 * 21)]
        assert sorted(frame["id"] for frame in frames if frame["op"] == "subscribed") == [str(number) for number in range(10)]
        got = [(next(iter(frame["for"])), frame["position"]) for frame in frames if frame["op"] == "event"]
        assert len(set(got)) == 200


async def test_nobody_is_answered_under_a_stranger_s_name_over_http_either(gateway: RunningGateway) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{gateway.url}/sse?subject=pg.%3E", headers={"host": "evil.example:8080"})
    assert answer.status_code == 403
