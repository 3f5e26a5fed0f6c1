"""Where `watch` and `unwatch` meet writers, it is they that give way: no writer fails for them, and none waits long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest

from tocsin.errors import OperatorError
from tocsin_listener.watch import unwatch, watch

Verb = Callable[..., Coroutine[Any, Any, list[Any]]]


async def blocked(connection: asyncpg.Connection, by: asyncpg.Connection) -> None:
    """Until somebody waits for a lock that the session `by` holds."""
    async with asyncio.timeout(20):
        while not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND $1 = ANY (pg_blocking_pids(pid)))", by.get_server_pid()
        ):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("verb", [watch, unwatch])
async def test_in_a_circle_it_is_never_the_writer_that_fails(verb: Verb, installed: asyncpg.Connection, source_url: str) -> None:
    """A writer has the second table and wants the first, which has its new triggers already."""
    await installed.execute("CREATE TABLE a (id int); CREATE TABLE b (id int)")
    if verb is unwatch:
        await watch(installed, ["a", "b"])
    writer, looker = await asyncpg.connect(source_url), await asyncpg.connect(source_url)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        async with writer.transaction():
            await writer.execute("INSERT INTO b VALUES (1)")
            changing = group.create_task(verb(installed, ["a", "b"], patience=20))
            await blocked(looker, by=writer)
            await writer.execute("INSERT INTO a VALUES (1)")
        await changing
    assert await installed.fetchval("SELECT count(*) FROM tocsin.watched") == (2 if verb is watch else 0)
    await writer.close()
    await looker.close()


@contextlib.asynccontextmanager
async def writing(url: str, table: str) -> AsyncIterator[list[float]]:
    """The seconds that each INSERT of one writer took, the last first at the end of the context."""
    took: list[float] = []
    stop = asyncio.Event()

    async def write() -> None:
        connection = await asyncpg.connect(url)
        while not stop.is_set():
            begun = time.perf_counter()
            await connection.execute(f"INSERT INTO {table} VALUES (1)")
            took.append(time.perf_counter() - begun)
            await asyncio.sleep(0.002)
        await connection.close()

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        try:
            yield took
        finally:
            stop.set()


async def test_all_tables_of_a_command_are_watched_or_none_and_the_others_writers_hardly_wait(installed: asyncpg.Connection, source_url: str) -> None:
    tables = [f"t{number}" for number in range(40)]
    for table in tables:
        await installed.execute(f"CREATE TABLE {table} (id int)")
    holder = await asyncpg.connect(source_url, server_settings={"application_name": "the nightly job"})
    async with writing(source_url, "t0") as took:
        async with holder.transaction():
            await holder.execute("INSERT INTO t39 VALUES (1)")
            with pytest.raises(OperatorError) as raised:
                await watch(installed, tables, patience=2)
        assert f"In the way: process {holder.get_server_pid()} (the nightly job), open for " in str(raised.value)
        assert str(raised.value).endswith(" on t39")
        assert not await installed.fetchval("SELECT EXISTS (SELECT FROM tocsin.watched)")
        assert not await installed.fetchval("SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname ~ '^tocsin_')")
        assert not await installed.fetchval("SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'tocsin'::regnamespace AND proname ~ '_[0-9]+$')")
        await watch(installed, tables)
    assert await installed.fetchval("SELECT count(*) FROM tocsin.watched") == 40
    assert max(took) < 1.5, f"a writer of another table waited for {max(took):.1f} s"
    assert await installed.fetchval("SELECT count(*) FROM tocsin.journal") > 0
    await holder.close()
