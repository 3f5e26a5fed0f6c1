"""One client, address or user too many: refused with a code, counted by name, and the others are not touched."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.support import servers
from tests.support.gateway import RunningGateway, peer, running_gateway
from tests.support.stream import Stream
from tocsin_gateway.limits import Limits

SECRET = "a-secret-of-at-least-thirty-two-bytes"


def token(**claims: Any) -> str:
    return jwt.encode({"exp": int(time.time()) + 600, "iat": int(time.time()) - 1, "subscribe": ["pg.>"], **claims}, SECRET, "HS256")


async def status_of(gateway: RunningGateway, **headers: str) -> int:
    try:
        async with connect(gateway.socket_url, additional_headers=headers, proxy=None):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code if "retry-after" in refused.response.headers else -1


@contextlib.asynccontextmanager
async def unread(gateway: RunningGateway, request: bytes, *, room: int = 4096) -> AsyncIterator[asyncio.StreamReader]:
    """A request's answer, of which this side takes no more than about `room` before it is read."""
    loop = asyncio.get_running_loop()
    with socket.socket() as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        there.setblocking(False)
        await loop.sock_connect(there, ("127.0.0.1", gateway.port))
        reader, writer = await asyncio.open_connection(sock=there, limit=room)
        writer.write(request)
        try:
            yield reader
        finally:
            writer.transport.abort()


async def expected(reader: asyncio.StreamReader) -> int:
    """The body's length, from the head, which is read."""
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])


async def test_an_address_has_so_many_connections_and_a_trusted_proxy_says_which(stream: Stream, nats_server: servers.Server) -> None:
    limits = Limits(connections_per_address=2)
    async with (
        running_gateway(nats_server.url, stream.source, limits=limits, trusted_proxies="127.0.0.0/8,10.9.9.9") as gateway,
        contextlib.AsyncExitStack() as held,
    ):
        for _ in range(2):
            await held.enter_async_context(peer(gateway, additional_headers={"X-Forwarded-For": "10.0.0.1"}))
        # What a client writes there itself stands before what the proxies add.
        for forged in ("10.0.0.1", "10.0.0.2, 10.0.0.1", "127.0.0.1, 10.0.0.1", "10.0.0.1, 10.9.9.9"):
            assert await status_of(gateway, **{"X-Forwarded-For": forged}) == 429
        assert await status_of(gateway, **{"X-Forwarded-For": "10.0.0.1, 10.0.0.2"}) == 101
        assert await status_of(gateway) == 101
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{gateway.url}/sse?subject={stream.subject()}", headers={"X-Forwarded-For": "10.0.0.1"})
        assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (429, "1", "limit")
        assert await gateway.metric("tocsin_gateway_refused_total", limit="connections_per_address") == 5
        await held.aclose()
        assert await status_of(gateway, **{"X-Forwarded-For": "10.0.0.1"}) == 101


async def test_nobody_else_s_word_for_an_address_is_taken(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, limits=Limits(connections_per_address=1)) as gateway, contextlib.AsyncExitStack() as held:
        for _ in range(3):
            await held.enter_async_context(peer(gateway, additional_headers={"X-Forwarded-For": "10.0.0.1"}))


async def test_a_user_has_so_many_connections(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, limits=Limits(connections_per_user=2), jwt_secret=SECRET) as gateway:
        alice = {"Authorization": f"Bearer {token(sub='alice')}"}
        async with peer(gateway, additional_headers=alice) as first, httpx.AsyncClient() as client:
            assert (await first.next())["op"] == "authenticated"
            async with client.stream("GET", f"{gateway.url}/sse?subject={stream.subject()}", headers=alice) as events:
                assert events.status_code == 200
                async with peer(gateway) as third:
                    await third.send(op="auth", token=token(sub="alice"))
                    assert (await third.next())["code"] == "limit"
                    assert (await third.closed())[0] == 4429
                assert (await client.get(f"{gateway.url}/sse?subject={stream.subject()}", headers=alice)).status_code == 429
                async with peer(gateway) as other:
                    await other.send(op="auth", token=token(sub="bob"))
                    assert (await other.next())["op"] == "authenticated"
                # The same user again on a living socket is no further one.
                await first.send(op="auth", token=token(sub="alice"))
                assert (await first.next())["op"] == "authenticated"
            async with asyncio.timeout(5):
                while True:
                    async with peer(gateway, additional_headers=alice) as again:
                        if (await again.next())["op"] == "authenticated":
                            break
        assert await gateway.metric("tocsin_gateway_refused_total", limit="connections_per_user") >= 2


async def test_a_full_worker_refuses_with_503_and_serves_who_is_there(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, limits=Limits(connections=3)) as gateway, contextlib.AsyncExitStack() as held:
        clients = [await held.enter_async_context(peer(gateway)) for _ in range(3)]
        await clients[0].subscribe(stream.subject())
        statuses = await asyncio.gather(*(status_of(gateway) for _ in range(100)))
        assert set(statuses) == {503}
        await stream.publish(stream.subject())
        await clients[0].events(1)
        assert await gateway.metric("tocsin_gateway_refused_total", limit="connections") == 100
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{gateway.url}/healthz")).status_code == 200


async def test_a_head_without_end_is_refused(gateway: RunningGateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        for number in range(200):
            writer.write(b"X-%d: " % number + b"x" * 4000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(5):
            assert b"431" in (await reader.read()).partition(b"\r\n")[0]
    writer.transport.abort()
    await gateway.until_metric("tocsin_gateway_refused_total", 1.0, limit="header_bytes")


async def test_requests_that_come_before_the_answers_are_not_collected(gateway: RunningGateway) -> None:
    """449,000 of them from one connection that read nothing took a gigabyte."""
    request = b"GET /docs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request * 90)
    async with asyncio.timeout(10):
        for _ in range(90):
            await reader.readexactly(await expected(reader))
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(request * 500)
                await writer.drain()
                await asyncio.sleep(0)
    writer.transport.abort()
    assert await gateway.metric("tocsin_gateway_refused_total", limit="messages_per_second") == 1


async def test_an_answer_that_nobody_takes_is_not_kept(stream: Stream, nats_server: servers.Server) -> None:
    """It held its megabytes for as long as the client liked; one that takes it slowly has all of it."""
    await stream.publish(*[stream.subject()] * 40, note="x" * 100_000)
    async with running_gateway(nats_server.url, stream.source, limits=Limits(handshake_seconds=0.5)) as gateway, asyncio.timeout(30):
        request = f"GET /events?subject={stream.subject()} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        async with unread(gateway, request) as idle, unread(gateway, request, room=256 << 10) as slow:
            size, taken = await expected(slow), 0
            while taken < size:
                taken += len(await slow.read(256 << 10))
                await asyncio.sleep(0.1)
            assert taken == size
            await gateway.until_metric("tocsin_gateway_refused_total", 1.0, limit="outbox_bytes")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await idle.readexactly(await expected(idle))


@pytest.mark.parametrize(
    ("request_line", "more", "status"),
    [
        ("GET /ws", "Content-Length: 5\r\n", b"400"),
        ("POST /ws", "Transfer-Encoding: chunked\r\n", b"400"),
        ("GET /ws?" + "x" * 10_000, "", b"414"),
        ("GET /ws", "X: " + "x" * 10_000 + "\r\n", b"431"),
        ("GET /ws", "X: y\r\n" * 200, b"431"),
    ],
    ids=["a body", "a chunked body", "a long line", "a long field", "many fields"],
)
async def test_a_handshake_that_is_none_is_answered_and_closed(gateway: RunningGateway, request_line: str, more: str, status: bytes) -> None:
    """It was left open without a word, uncounted and for ever."""
    wanted = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"{request_line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{wanted}{more}\r\n".encode())
    async with asyncio.timeout(5):
        assert (await reader.read()).split(b" ")[1] == status
    writer.transport.abort()


@pytest.mark.parametrize(
    ("limit", "message"), [("message_bytes", "x" * 70_000), ("messages_per_second", '{"op":"ping"}')], ids=["a large message", "many messages"]
)
async def test_what_ends_a_socket_is_counted_by_its_name(gateway: RunningGateway, limit: str, message: str) -> None:
    async with peer(gateway) as client:
        with contextlib.suppress(Exception):
            for _ in range(300):
                await client.socket.send(message)
        await client.closed()
    await gateway.until_metric("tocsin_gateway_refused_total", 1.0, limit=limit)


async def test_who_is_late_is_counted_by_its_name(stream: Stream, nats_server: servers.Server) -> None:
    limits = Limits(auth_seconds=0.2, handshake_seconds=0.2)
    async with running_gateway(nats_server.url, stream.source, limits=limits, jwt_secret=SECRET) as gateway:
        async with peer(gateway) as client:
            assert (await client.closed())[0] == 4408
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /ws")
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.transport.abort()
        for name in ("auth_seconds", "handshake_seconds"):
            await gateway.until_metric("tocsin_gateway_refused_total", 1.0, limit=name)
