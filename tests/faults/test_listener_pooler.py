"""PgBouncer in transaction mode in front: writers may use it, what needs a session says what is wrong, with the fix."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.faults.test_listener_crashes import assert_exactly_once, running_listener
from tests.support.pgbouncer import pgbouncer
from tests.support.pipeline import Pipeline
from tocsin import postgres
from tocsin.errors import OperatorError

pytestmark = [pytest.mark.pgbouncer]


async def through(running: Pipeline, url: str, *arguments: str, expect: int) -> str:
    running.environment["TOCSIN_DATABASE_URL"] = url
    try:
        return await running.tocsin(*arguments, expect=expect)
    finally:
        running.environment["TOCSIN_DATABASE_URL"] = running.source_url


async def test_writers_through_the_pooler_lose_repeat_and_reorder_nothing() -> None:
    """More writers than sessions, so that each transaction gets whichever is free; prepared statements off, as PgBouncer's manual asks."""
    async with running_listener() as (running, source), pgbouncer(running.folder, running.source_url, mode="transaction") as url:
        served: set[int] = set()

        async def write(number: int) -> None:
            connection = await asyncpg.connect(url, statement_cache_size=0)
            for _ in range(40):
                async with connection.transaction():
                    served.add(await connection.fetchval("SELECT pg_backend_pid()"))
                    await connection.execute(f"SELECT tocsin.annotate('{{\"writer\": {number}}}')")
                    await connection.execute("INSERT INTO t (n) VALUES ($1)", number)
                    await connection.execute("UPDATE t SET n = n + 100 WHERE id = (SELECT max(id) FROM t WHERE n = $1)", number)
                async with connection.transaction():
                    await connection.execute("DELETE FROM t WHERE id = (SELECT min(id) FROM t WHERE n = $1)", number + 100)
            await connection.close()

        async with asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(write(number))
        assert 1 < len(served) <= 4, "the pooler shared its sessions among the writers"
        seen = await assert_exactly_once(running)
        assert len(seen.events) == 12 * 40 * 3
        by_op = {op: [e for e in seen.events if e["data"]["op"] == op] for op in ("insert", "delete")}
        assert all(e["annotation"] == {"writer": e["data"]["new"]["n"]} for e in by_op["insert"]), "an annotation stays in its transaction"
        assert not any("annotation" in e for e in by_op["delete"])
        assert await source.fetchval("SELECT count(*) FROM t") == 0


async def test_what_needs_a_session_of_its_own_says_so_with_the_fix() -> None:
    async with running_listener(start=False) as (running, _), pgbouncer(running.folder, running.source_url, mode="transaction") as url:
        for verb in (("listener",), ("install",), ("watch", "t"), ("doctor",)):
            said = await through(running, url, *verb, expect=1)
            assert "a pooler in transaction mode stands in between" in said, verb
            assert "point TOCSIN_DATABASE_URL at PostgreSQL itself" in said, verb
        await found_out_while_busy(url)


async def found_out_while_busy(url: str) -> None:
    """By chance the same session may come again and again; the proof does not hang on that."""
    stop = asyncio.Event()

    async def busy() -> None:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        while not stop.is_set():
            await connection.execute("INSERT INTO t (n) VALUES (1)")
        connection.terminate()

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(busy())
        for _ in range(20):
            with pytest.raises(OperatorError, match="pooler"):
                await postgres.connect(url, setting="TOCSIN_DATABASE_URL", application="a test")
        stop.set()


@pytest.mark.slow
async def test_a_pool_of_sessions_serves_everything() -> None:
    """Session mode keeps LISTEN and locks: install, watch and the listener work through it."""
    async with running_listener(start=False) as (running, source), pgbouncer(running.folder, running.source_url, mode="session", size=20) as url:
        assert "up to date" in await through(running, url, "install", expect=0)
        await running.start("listener", TOCSIN_DATABASE_URL=url)
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 50)")
        assert len((await assert_exactly_once(running)).events) == 50
