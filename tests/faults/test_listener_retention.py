"""Retention under a sustained load: no writer waits for a lock of it, the journal stays bounded, and nothing is lost on its way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import asyncpg
from nats.aio.client import Client

from tests.faults.test_listener_crashes import STREAM, running_listener
from tests.support.pipeline import Pipeline

LEAF = 100 << 10
"""Bytes at which the written leaf is full in this test."""
MOST = 40 * LEAF
"""Bytes: five turns' worth for the ring of eight, since on a busy machine the stream may be behind for a while."""
BYTES_PER_ROW = 300
SIZE = "SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'tocsin.journal'::regclass"
WAITING = """
SELECT l.pid, l.relation::regclass::text AS relation, l.mode FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE NOT l.granted AND l.locktype = 'relation' AND a.application_name = 'writer'
"""
"""Not the lock that writers take from one another to make a table longer."""


class Load:
    """Writers whose every statement would fail had it waited 100 ms for a lock."""

    def __init__(self, running: Pipeline) -> None:
        self._running = running
        self.written = 0
        self.took: list[float] = []

    @contextlib.asynccontextmanager
    async def writing(self, count: int = 3) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._write(stop))
            try:
                yield
            finally:
                stop.set()

    async def _write(self, stop: asyncio.Event) -> None:
        connection = await asyncpg.connect(self._running.source_url, server_settings={"application_name": "writer", "lock_timeout": "100ms"})
        while not stop.is_set():
            begun = time.monotonic()
            await connection.execute("INSERT INTO t (n) SELECT generate_series(1, 40)")
            self.took.append(time.monotonic() - begun)
            self.written += 40
            await asyncio.sleep(0.01)
        await connection.close()

    def p99(self) -> float:
        """Seconds, of what was written since the last call."""
        ordered, self.took = sorted(self.took), []
        return ordered[int(len(ordered) * 0.99)]


class Waits:
    """Writers that were seen waiting for a table, by a session that looks all the time."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.seen: list[asyncpg.Record] = []
        self.looks = 0

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._look())
            try:
                yield
            finally:
                task.cancel()

    async def _look(self) -> None:
        while True:
            self.seen += await self._connection.fetch(WAITING)
            self.looks += 1
            await asyncio.sleep(0.005)


async def rotate(source: asyncpg.Connection, largest: int) -> bool:
    """As the leader does it, if the written leaf is as large."""
    number = await source.fetchval("SELECT tocsin.empty_next_leaf($1, interval '1 day')", largest)
    if number is not None:
        await source.execute("SELECT tocsin.advance($1)", number)
    return number is not None


async def test_leaves_are_rotated_under_load_and_no_writer_feels_it_and_nothing_bloats() -> None:
    """Half as much again goes through the journal as it may ever hold."""
    async with running_listener() as (running, source):
        watching = await asyncpg.connect(running.source_url)
        load, waits, rotations, largest = Load(running), Waits(watching), 0, 0
        async with waits.looking(), load.writing():
            while len(load.took) < 200:
                await asyncio.sleep(0.01)
            alone = load.p99()
            async with asyncio.timeout(60):
                while rotations < 24 or load.written * BYTES_PER_ROW < 1.5 * MOST:
                    rotations += await rotate(source, LEAF)
                    largest = max(largest, await source.fetchval(SIZE))
            rotating = load.p99()
        assert waits.looks > 100
        assert waits.seen == []
        # A shared machine makes writers wait for a processor; a lock that is held for a transaction or a flush would add far more.
        assert rotating < max(0.1, 5 * alone), f"p99 {rotating * 1000:.1f} ms while leaves rotate, {alone * 1000:.1f} ms without"
        assert largest < MOST, f"the journal grew to {largest >> 10} KiB with leaves of {LEAF >> 10} KiB"
        client = Client()
        await client.connect(running.nats.url)
        async with asyncio.timeout(60):
            count = 0
            while count < load.written:
                info = await client.jetstream().stream_info(STREAM, subjects_filter="pg.shop.change.>")
                count = sum((info.state.subjects or {}).values())
                await asyncio.sleep(0.05)
        assert count == load.written, "each row once: emptied leaves were never ahead of the cursor"
        await client.close()
        await everything_is_given_back(source)
        await watching.close()


async def everything_is_given_back(source: asyncpg.Connection) -> None:
    """Once all is in the stream, a turn of the ring leaves no page of the journal, and no dead rows elsewhere."""
    async with asyncio.timeout(20):
        while await source.fetchval(SIZE) > 8 * 5 * 8192:
            await rotate(source, 0)
            await asyncio.sleep(0.02)
    progress = await source.fetchval("SELECT pg_total_relation_size('tocsin.progress_0') + pg_total_relation_size('tocsin.progress_1')")
    assert progress < 8 << 20
    for table in ("tocsin.identity", "tocsin.watched"):
        assert await source.fetchval("SELECT pg_relation_size($1::regclass)", table) <= 2 * 8192, "pruned on the page"
