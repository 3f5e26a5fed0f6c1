"""The application under uvicorn's own protocols, without our extensions: the same messages and close codes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

import httpx
import jwt
import pytest

from tests.support import servers
from tests.support.gateway import RunningGateway, numbers, peer
from tests.support.stream import Stream
from tocsin import broker
from tocsin.access import TokenRules
from tocsin.service import bind, serve_http
from tocsin.stack.process import free_port
from tocsin_gateway.admission.access import Access
from tocsin_gateway.app import create_app
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import Limits

SECRET = "a-secret-of-at-least-thirty-two-bytes"


@contextlib.asynccontextmanager
async def plain(nats_url: str, stream: Stream, *, secret: str | None = None, **limits: float) -> AsyncIterator[RunningGateway]:
    running, stop = RunningGateway(free_port()), asyncio.Event()
    sock = bind("127.0.0.1", running.port, "the port")
    async with broker.connect([nats_url], name="plain") as link, asyncio.TaskGroup() as group:
        access = Access("pg", stream.source, TokenRules(secret) if secret else None)
        gateway = Gateway(link, stream.name, stream.source, access, Limits(**limits), ())  # type: ignore[arg-type]
        following = group.create_task(gateway.run())
        group.create_task(serve_http(create_app(gateway), sock, stop, ws="websockets-sansio", timeout_graceful_shutdown=1, log_level="warning"))
        try:
            await running.until_ready()
            yield running
        finally:
            stop.set()
            following.cancel()
    sock.close()


async def test_replay_and_live_are_the_same(stream: Stream, nats_server: servers.Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with plain(nats_server.url, stream) as gateway:
            await stream.publish_many([stream.subject()] * 300)
            async with peer(gateway) as client, peer(gateway) as other:
                await client.subscribe(stream.subject(), since="start")
                await other.subscribe(stream.subject())
                assert numbers(await client.events(300)) == list(range(1, 301))
                await stream.publish_many([stream.subject()] * 300)
                assert numbers(await client.events(300)) == numbers(await other.events(300)) == list(range(301, 601))
                await client.nothing_more()
            # One that vanishes while events are on their way to it is no error of ours.
            async with peer(gateway) as client:
                await client.subscribe(stream.subject())
                client.socket.transport.abort()
                await stream.publish_many([stream.subject()] * 300)
            await gateway.until_metric("tocsin_gateway_clients", 0.0, kind="websocket")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_our_close_codes_get_out(stream: Stream, nats_server: servers.Server) -> None:
    async with plain(nats_server.url, stream, secret=SECRET, auth_seconds=0.3) as gateway:
        async with peer(gateway) as client:
            assert (await client.closed())[0] == 4408
        async with peer(gateway) as client:
            await client.send(op="auth", token="garbage")
            assert (await client.next())["code"] == "unauthenticated"
            assert (await client.closed())[0] == 4401
        async with peer(gateway) as client:
            await client.send(op="auth", token=jwt.encode({"exp": int(time.time()) + 2, "subscribe": ["pg.>"]}, SECRET, "HS256"))
            assert (await client.next())["op"] == "authenticated"
            assert (await client.closed())[0] == 4401
        async with peer(gateway) as client:
            await client.socket.send(b"binary")
            assert (await client.closed())[0] == 4400
        async with peer(gateway) as client:
            for _ in range(250):
                await client.socket.send('{"op":"ping"}')
            assert (await client.closed())[0] == 4429


async def test_the_interface_is_shown_without_another_host(gateway: RunningGateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "//" not in page.text.replace("</", "").partition("<h2>HTTP")[0].partition("</style>")[0]
        assert "<script" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for path in ("GET /sse", "GET /readyz", "<code>subscribe</code>", "<code>event</code>"):
            assert path in page.text
