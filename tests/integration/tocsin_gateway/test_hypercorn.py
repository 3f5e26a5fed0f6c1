"""The application on hypercorn: another ASGI server, with none of our extensions, and another loop's habits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
from hypercorn.asyncio import serve
from hypercorn.config import Config

from tests.support import servers
from tests.support.gateway import RunningGateway, numbers, peer
from tests.support.stream import Stream
from tocsin import broker
from tocsin.stack.process import free_port
from tocsin_gateway.admission.access import Access
from tocsin_gateway.app import create_app
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import Limits


@contextlib.asynccontextmanager
async def on_hypercorn(nats_url: str, stream: Stream) -> AsyncIterator[RunningGateway]:
    running, stop = RunningGateway(free_port()), asyncio.Event()
    config = Config()
    config.bind = [f"127.0.0.1:{running.port}"]
    config.graceful_timeout = 1
    async with broker.connect([nats_url], name="hypercorn") as link, asyncio.TaskGroup() as group:
        gateway = Gateway(link, stream.name, stream.source, Access("pg", stream.source), Limits(), ())
        following = group.create_task(gateway.run())
        group.create_task(serve(create_app(gateway), config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
        try:
            await running.until_ready()
            yield running
        finally:
            stop.set()
            following.cancel()


async def test_replay_live_and_history_are_the_same(stream: Stream, nats_server: servers.Server) -> None:
    async with asyncio.timeout(60), on_hypercorn(nats_server.url, stream) as gateway:
        await stream.publish_many([stream.subject()] * 300)
        async with peer(gateway) as client, peer(gateway) as other:
            await client.subscribe(stream.subject(), since="start")
            await other.subscribe(stream.subject())
            assert numbers(await client.events(300)) == list(range(1, 301))
            await stream.publish_many([stream.subject()] * 300)
            assert numbers(await client.events(300)) == numbers(await other.events(300)) == list(range(301, 601))
            await client.nothing_more()
        async with peer(gateway) as client:
            await client.socket.send(b"binary")
            assert (await client.closed())[0] == 4400
        async with httpx.AsyncClient(base_url=gateway.url) as http:
            page = (await http.get("/events", params={"subject": "pg.>", "limit": "5"})).json()
            assert len(page["events"]) == 5
            async with http.stream("GET", "/sse", params={"subject": "pg.>", "since": "start"}) as answer:
                first = [line async for line in _until(answer.aiter_lines(), "event: event", 3)]
                assert first.count("event: event") == 3
        await gateway.until_metric("tocsin_gateway_clients", 0.0, kind="websocket")
        await gateway.until_metric("tocsin_gateway_clients", 0.0, kind="sse")


async def _until(lines: AsyncIterator[str], wanted: str, count: int) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        count -= line == wanted
        if count == 0:
            return
