"""The listener's links half open, its doorbell abused, and long transactions: late is allowed, lost or repeated is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import httpx
from nats.aio.client import Client

from tests.faults.test_listener_crashes import assert_exactly_once, events_in, running_listener, writers
from tests.support.pipeline import DATABASE, Pipeline
from tests.support.proxy import TcpProxy
from tocsin.stack.postgres_server import USER
from tocsin.stack.process import free_port
from tocsin_listener.doorbell import LOCK as BELL

NOTICED_WITHIN = 15


async def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None


async def until_events(running: Pipeline, count: int, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            while await events_in(running) < count:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{await events_in(running)} of {count} messages after {seconds:g} s") from None


async def metric(running: Pipeline, name: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{running.listener_url}/metrics")).text
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


async def test_a_half_open_link_to_postgres_is_noticed_and_costs_nothing() -> None:
    """F5. No packet comes any more, and no reset: within 15 s the listener gives its sessions up and asks for new ones."""
    async with running_listener(start=False) as (running, source), TcpProxy(running.source.port) as proxy:
        await running.start("listener", TOCSIN_DATABASE_URL=f"postgresql://{USER}@127.0.0.1:{proxy.port}/{DATABASE}")
        await source.execute("INSERT INTO t (n) VALUES (1)")
        await until_events(running, 1, 10)
        proxy.freeze()
        before = proxy.accepted
        async with writers(running, 2):
            await until(lambda: proxy.accepted > before, NOTICED_WITHIN, "new connections to PostgreSQL")
        proxy.cut()
        proxy.thaw()
        await assert_exactly_once(running)


async def test_behind_a_half_open_link_to_postgres_a_standby_takes_over() -> None:
    """F5 with F17: the frozen leader's session is ended by PostgreSQL itself, since it no longer beats."""
    async with running_listener(start=False) as (running, _), TcpProxy(running.source.port) as proxy:
        await running.start("listener", TOCSIN_DATABASE_URL=f"postgresql://{USER}@127.0.0.1:{proxy.port}/{DATABASE}")
        await running.start("listener", name="second", TOCSIN_LISTENER_PORT=str(free_port()))
        async with writers(running, 2):
            await until_events(running, 50, 10)
            proxy.freeze()
            before = await events_in(running)
            await until_events(running, before + 100, 8)
            proxy.cut()
            proxy.thaw()
        await assert_exactly_once(running)


async def test_a_half_open_link_to_nats_is_noticed_and_costs_nothing() -> None:
    """What was under way when the link died may be stored or not: the stream's end decides."""
    async with running_listener(start=False) as (running, source), TcpProxy(running.nats.port) as proxy:
        await running.start("listener", TOCSIN_NATS_URL=f"nats://127.0.0.1:{proxy.port}")
        await source.execute("INSERT INTO t (n) VALUES (1)")
        await until_events(running, 1, 10)
        async with writers(running, 2):
            proxy.freeze()
            before = proxy.accepted
            await until(lambda: proxy.accepted > before, NOTICED_WITHIN, "a new connection to NATS")
            proxy.cut()
            proxy.thaw()
        await assert_exactly_once(running)


async def test_links_that_are_cut_again_and_again_under_load() -> None:
    """F3, F4 and F9 at random places: acknowledgements are lost after the commit of a batch, cursors before theirs."""
    async with running_listener(start=False) as (running, _), TcpProxy(running.source.port) as postgres, TcpProxy(running.nats.port) as nats:
        await running.start(
            "listener",
            TOCSIN_DATABASE_URL=f"postgresql://{USER}@127.0.0.1:{postgres.port}/{DATABASE}",
            TOCSIN_NATS_URL=f"nats://127.0.0.1:{nats.port}",
        )
        async with writers(running):
            for number in range(12):
                before = await events_in(running)
                (nats, postgres, nats)[number % 3].cut()
                await until_events(running, before + 30, 15)
        await assert_exactly_once(running)


async def test_junk_on_the_doorbell_only_causes_reads() -> None:
    """F15: any login may NOTIFY any channel. The payload means nothing, and the events come as ever."""
    async with running_listener() as (running, source):
        for number in range(500):
            await source.execute("SELECT pg_notify('tocsin', $1)", ("junk", "'; DROP TABLE t; --", "\U0001f514" * 900)[number % 3])
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 10)")
        seen = await assert_exactly_once(running, patience=10)
        assert len(seen.events) == 10
        assert await metric(running, "tocsin_fallback_finds") == 0


async def test_a_silenced_doorbell_delays_by_about_the_fallback_read() -> None:
    """F15: a row whose bell was lost on its way, here one that never rang: the fallback read finds it, and the metric tells."""
    async with running_listener() as (running, source):
        await until_asleep(source)
        await source.execute(
            "INSERT INTO tocsin.journal (stmt, subject, type, key, data)"
            """ SELECT nextval('tocsin.seq'), 'event.unrung', 'unrung', '1', '{"op":"emit","table":"x","schema":"x"}'"""
        )
        seen = await assert_exactly_once(running, patience=5)
        assert len(seen.events) == 1
        async with asyncio.timeout(5):
            # It counts after a moment in which the bell may still come.
            while await metric(running, "tocsin_fallback_finds") != 1:
                await asyncio.sleep(0.05)


async def until_asleep(source: asyncpg.Connection) -> None:
    asleep = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid::bigint = $1)"
    async with asyncio.timeout(10):
        while not await source.fetchval(asleep, BELL & 0xFFFFFFFF):
            await asyncio.sleep(0.02)


async def test_long_transactions_delay_only_themselves() -> None:
    """F7: one that wrote here, one that wrote in another database, and one that only reads; others' events flow meanwhile."""
    async with running_listener(configuration={"max_prepared_transactions": "5"}) as (running, source):
        here, reading, elsewhere = [await asyncpg.connect(url) for url in (running.source_url, running.source_url, running.source.url())]
        await here.execute("BEGIN; INSERT INTO t (n) VALUES (100)")
        await reading.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t")
        await elsewhere.execute("CREATE TABLE other (n int); BEGIN; INSERT INTO other VALUES (1)")
        await source.execute("BEGIN; INSERT INTO t (n) VALUES (200); PREPARE TRANSACTION 'long'")
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 20)")
        await until_events(running, 20, 3)
        await here.execute("COMMIT")
        await source.execute("COMMIT PREPARED 'long'")
        seen = await assert_exactly_once(running, patience=5)
        assert [event["data"]["new"]["n"] for event in seen.events] == [*range(1, 21), 100, 200]
        for connection in (here, reading, elsewhere):
            connection.terminate()


async def test_leaves_rotate_under_load_beside_a_long_writer_and_no_writer_waits() -> None:
    """Writers with a lock_timeout: had any waited behind the long writer, which does not end, its INSERT would have failed. The long writer's rows stay."""
    async with running_listener() as (running, source):
        long = await asyncpg.connect(running.source_url)
        await long.execute("BEGIN; INSERT INTO t (n) VALUES (-1)")
        written = 0
        stop = asyncio.Event()

        async def write() -> None:
            nonlocal written
            connection = await asyncpg.connect(running.source_url)
            await connection.execute("SET lock_timeout = '2s'")
            while not stop.is_set():
                await connection.execute("INSERT INTO t (n) VALUES (1)")
                written += 1
            await connection.close()

        rotated: list[int] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(write())
            async with asyncio.timeout(60):
                while len(rotated) < 12 and len(set(rotated)) < 7:
                    number = await source.fetchval("SELECT tocsin.empty_next_leaf(0, interval '0')")
                    if number is not None:
                        await source.execute("SELECT tocsin.advance($1)", number)
                        rotated.append(number)
                    await asyncio.sleep(0.02)
            stop.set()
        assert len(rotated) >= 7, "every leaf but the long writer's had its turn"
        for _ in range(3):
            assert await source.fetchval("SELECT tocsin.empty_next_leaf(0, interval '0')") is None, "the leaf of the long writer must not be emptied"
        assert written > 100
        await long.execute("COMMIT")
        client = Client()
        await client.connect(running.nats.url)
        count = 0
        async with asyncio.timeout(60):
            while count < written + 1:
                info = await client.jetstream().stream_info("TOCSIN_SHOP", subjects_filter="pg.shop.change.>")
                count = sum((info.state.subjects or {}).values())
                await asyncio.sleep(0.05)
        assert count == written + 1
        await client.close()
