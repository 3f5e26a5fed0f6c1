"""Scaled out as docs/scaling.md says: three NATS servers, a listener with its standby, two gateways; leaders killed under load."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from nats.aio.client import Client

from tests.faults.test_listener_crashes import STREAM, assert_exactly_once, running_listener, writers
from tests.faults.test_listener_stream_loss import cluster
from tests.support import oracle
from tocsin.broker import api
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.process import free_port


async def leader_of(servers: dict[str, NatsServer]) -> str:
    client = Client()
    await client.connect([server.url for server in servers.values() if server.pid is not None])
    try:
        async with asyncio.timeout(20):
            while not (leader := (await api(client, f"STREAM.INFO.{STREAM}"))["cluster"].get("leader")):
                await asyncio.sleep(0.1)
        return str(leader)
    finally:
        await client.close()


async def until_grown(seen: oracle.Seen, arrived: asyncio.Event, by: int) -> None:
    await oracle.until_count(seen, arrived, len(seen.events) + by)


@pytest.mark.slow
async def test_two_leaders_of_the_stream_and_the_leading_listener_killed_under_load_cost_no_event_at_any_end() -> None:
    """R3, each write synced to disk. Every gateway's client has what the table has, once and in order; so has the stream."""
    async with cluster(sync="always") as servers, running_listener(start=False) as (running, source):
        running.environment["TOCSIN_NATS_URL"] = ",".join(server.url for server in servers.values())
        running.environment["TOCSIN_STREAM_REPLICAS"] = "3"
        await running.start("listener")
        await running.start("listener", name="standby", TOCSIN_LISTENER_PORT=str(free_port()))
        sockets = []
        for name in ("gateway", "gateway 2"):
            port = free_port()
            await running.start("gateway", name=name, TOCSIN_GATEWAY_PORT=str(port))
            sockets.append(f"ws://127.0.0.1:{port}/ws")
        async with oracle.socket_client(sockets[0], "pg.shop.change.>") as one, oracle.socket_client(sockets[1], "pg.shop.change.>") as other:
            async with writers(running):
                for number in range(2):
                    await until_grown(*one, by=50)
                    leader = await leader_of(servers)
                    await servers[leader].kill()
                    for client in (one, other):
                        await until_grown(*client, by=50)
                    await servers[leader].start()
                    if number == 0:
                        await running.kill("listener")
                        await until_grown(*one, by=50)
            committed = await source.fetchval("SELECT count(*) FROM tocsin.events WHERE subject <> 'canary'")
            for seen, arrived in (one, other):
                await oracle.until_count(seen, arrived, committed)
        running.nats.port, kept = next(iter(servers.values())).port, running.nats.port
        try:
            stream = await assert_exactly_once(running)
        finally:
            running.nats.port = kept
        for seen, _ in (one, other):
            assert seen.ids == stream.ids, "a client's events, in its order, are the stream's"
        rows: list[asyncpg.Record] = await source.fetch("SELECT id FROM t")
        oracle.assert_same([row["id"] for row in rows], stream.values("id"), "table and stream")
