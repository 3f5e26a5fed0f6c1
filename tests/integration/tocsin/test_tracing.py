"""One trace from the commit to the socket; nothing of it where tracing is off; events flow whether the collector answers or not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_listener import messages, until_ready
from tests.support import oracle
from tests.support.collector import collector
from tests.support.servers import Server
from tocsin.settings import Settings, load_settings
from tocsin.stack.process import free_port
from tocsin.tracing import TRACEPARENT, trace_id
from tocsin_gateway.__main__ import serve as serve_gateway
from tocsin_listener.__main__ import serve as serve_listener
from tocsin_listener.install import install
from tocsin_listener.watch import watch

WAY = ("journal", "publish", "gateway", "send")
APPLICATION = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextlib.asynccontextmanager
async def running(source: asyncpg.Connection, source_url: str, nats_server: Server, **flags: Any) -> AsyncIterator[tuple[Settings, oracle.Seen, asyncio.Event]]:
    """Listener and gateway in this process, a watched table `t`, and a WebSocket client of it."""
    await install(source)
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(source, ["t"])
    settings = load_settings(
        database_url=source_url, nats_url=nats_server.url, listener_port=free_port(), gateway_port=free_port(), stream_max_bytes="64MB", **flags
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve_listener(settings, stop))
        group.create_task(serve_gateway(settings, stop))
        for port in (settings.listener_port, settings.gateway_port):
            await until_ready(settings.model_copy(update={"listener_port": port}))
        async with oracle.socket_client(f"ws://127.0.0.1:{settings.gateway_port}/ws", f"pg.{settings.source_name}.change.>") as (seen, arrived):
            yield settings, seen, arrived
        stop.set()


def assert_one_way(spans: dict[str, dict[str, Any]], root: str | None) -> None:
    """Each is the child of the one before, and none begins before it."""
    assert [spans[name]["service"] for name in WAY] == ["tocsin-listener", "tocsin-listener", "tocsin-gateway", "tocsin-gateway"]
    assert spans["journal"].get("parentSpanId") == root
    for above, below in itertools.pairwise(WAY):
        assert spans[below]["parentSpanId"] == spans[above]["spanId"], f"{below} under {above}"
        assert int(spans[above]["startTimeUnixNano"]) <= int(spans[below]["startTimeUnixNano"]) + 2_000_000, f"{below} begins before {above}"


async def test_one_trace_has_journal_publish_gateway_and_send_under_the_events_id(source: asyncpg.Connection, source_url: str, nats_server: Server) -> None:
    async with collector() as collected, running(source, source_url, nats_server, otlp_url=collected.url, trace_sample=1) as (_, seen, arrived):
        await source.execute("INSERT INTO t VALUES (1)")
        await oracle.until_count(seen, arrived, 1)
        spans = await collected.until(trace_id(seen.ids[0]), *WAY)
        assert_one_way(spans, None)
        told = {a["key"]: a["value"].get("stringValue") for a in spans["publish"]["attributes"]}
        assert told["tocsin.event.id"] == seen.ids[0]


async def test_an_applications_trace_goes_on_and_nothing_else_is_traced(source: asyncpg.Connection, source_url: str, nats_server: Server, nats: Client) -> None:
    async with collector() as collected, running(source, source_url, nats_server, otlp_url=collected.url, trace_sample=0) as (settings, seen, arrived):
        await source.execute("INSERT INTO t VALUES (1)")
        for number, parent in ((2, APPLICATION.replace("-01", "-00")), (3, "00-broken"), (4, APPLICATION)):
            async with source.transaction():
                await source.execute("SELECT tocsin.annotate(jsonb_build_object('actor', 'a', 'traceparent', $1::text))", parent)
                await source.execute(f"INSERT INTO t VALUES ({number})")
                await source.execute(f"DELETE FROM t WHERE id = {number}")
        await oracle.until_count(seen, arrived, 7)
        _, trace, root, _ = APPLICATION.split("-")
        assert_one_way(await collected.until(trace, *WAY), root)
        await asyncio.sleep(1.5)  # the exporters' interval: what else they had, they have sent
        assert {span["traceId"] for span in collected.spans} == {trace}
        assert len(collected.spans) == len(WAY), "the transaction's first event alone"
        headers = [message.headers or {} for message in await messages(nats, settings, 7)]
        assert [TRACEPARENT in h for h in headers] == [False] * 5 + [True, False]


async def test_without_a_collector_no_message_has_the_header(source: asyncpg.Connection, source_url: str, nats_server: Server, nats: Client) -> None:
    async with running(source, source_url, nats_server) as (settings, seen, arrived):
        async with source.transaction():
            await source.execute("SELECT tocsin.annotate(jsonb_build_object('traceparent', $1::text))", APPLICATION)
            await source.execute("INSERT INTO t VALUES (1)")
        await oracle.until_count(seen, arrived, 1)
        (message,) = await messages(nats, settings, 1)
        assert TRACEPARENT not in (message.headers or {})
        assert seen.events[0]["annotation"]["traceparent"] == APPLICATION, "a client may still go on with the application's trace"


async def test_a_collector_that_is_away_costs_no_event(source: asyncpg.Connection, source_url: str, nats_server: Server) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with running(source, source_url, nats_server, otlp_url=nowhere, trace_sample=1) as (_, seen, arrived):
        for number in range(50):
            await source.execute(f"INSERT INTO t VALUES ({number})")
        await oracle.until_count(seen, arrived, 50)
        assert seen.values("id") == list(range(50))
