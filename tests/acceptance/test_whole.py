"""journal == stream == what a client applied, over whole processes, under load and under kill -9."""

from __future__ import annotations

import asyncio

import asyncpg
from nats.aio.client import Client

from tests.support import oracle
from tests.support.pipeline import Pipeline, pipeline

WRITERS, SECONDS = 8, 3
SCRIPT = """\\set a random(1, 50)
\\set d random(1, 100)
BEGIN;
INSERT INTO ledger (account, amount) VALUES (:a, :d);
UPDATE accounts SET balance = balance + :d WHERE id = :a;
END;
"""


async def prepare(running: Pipeline) -> asyncpg.Connection:
    source = await asyncpg.connect(running.source_url)
    await source.execute("CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0)")
    await source.execute("CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int NOT NULL, amount int NOT NULL)")
    await source.execute("INSERT INTO accounts SELECT generate_series(1, 50)")
    await running.tocsin("install")
    await running.tocsin("watch", "accounts", "ledger")
    return source


async def assert_whole(running: Pipeline, source: asyncpg.Connection, seen: oracle.Seen, arrived: asyncio.Event) -> int:
    ledger = [row["id"] for row in await source.fetch("SELECT id FROM ledger")]
    await oracle.until_count(seen, arrived, 2 * len(ledger))
    client = Client()
    await client.connect(running.nats.url)
    stream = await oracle.stream_events(client, "TOCSIN_SHOP")
    await client.close()
    oracle.assert_same(ledger, stream.values("id"), "table and stream")
    oracle.assert_same(ledger, seen.values("id"), "table and client")
    oracle.assert_same(stream.ids, seen.ids, "stream and client")
    assert stream.ids == seen.ids, "the client's order is not the stream's"
    oracle.assert_ordered_per_key(stream, "stream")
    balances = {row["id"]: row["balance"] for row in await source.fetch("SELECT id, balance FROM accounts")}
    applied = {event["data"]["key"]["id"]: event["data"]["new"]["balance"] for event in seen.events if event["data"]["op"] == "update"}
    assert applied == {account: balance for account, balance in balances.items() if account in applied}, "the last update of a key is not its last value"
    return len(ledger)


async def test_eight_writers_lose_repeat_and_reorder_nothing() -> None:
    async with pipeline() as running:
        source = await prepare(running)
        await running.start("listener")
        await running.start("gateway")
        async with oracle.socket_client(running.socket_url, "pg.shop.change.>") as (seen, arrived):
            committed, _ = await running.pgbench(SCRIPT, writers=WRITERS, seconds=SECONDS)
            assert await assert_whole(running, source, seen, arrived) == committed
        await source.close()


async def test_a_killed_listener_and_a_killed_nats_lose_and_repeat_nothing() -> None:
    async with pipeline() as running:
        source = await prepare(running)
        await running.start("listener")
        await running.start("gateway")
        async with asyncio.TaskGroup() as group:
            load = group.create_task(running.pgbench(SCRIPT, writers=WRITERS, seconds=6))
            for _ in range(2):
                await asyncio.sleep(0.7)
                await running.kill("listener")
                await running.start("listener")
            await running.nats.kill()
            await running.nats.start()
        await running.until_ready(running.gateway_url, running.services["gateway"], "gateway")
        async with oracle.socket_client(running.socket_url, "pg.shop.change.>", since="start") as (seen, arrived):
            assert await assert_whole(running, source, seen, arrived) == load.result()[0]
        await source.close()
