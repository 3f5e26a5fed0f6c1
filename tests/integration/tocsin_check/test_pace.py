"""An audit gives way: to other backends, to lag, and to WAL that is held back. And it never writes, waits for a lock or holds a snapshot for long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tocsin_check.audit import TableAudit
from tocsin_check.checker import Checker
from tocsin_check.pace import Pace
from tocsin_check.sides import open_sides
from tocsin_check.table import Comparable

Setup = Callable[..., Awaitable[None]]


async def test_an_audit_pauses_for_work_lag_and_wal_and_goes_on_when_they_are_gone(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 500)")
    await setup("t")
    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]

        async def waits(pace: Pace, until: str) -> None:
            async with asyncio.timeout(20):
                while pace.waiting is None or until not in pace.waiting:
                    await asyncio.sleep(0.02)

        async def audited(pace: Pace) -> int:
            return (await TableAudit(sides, table, pace=pace, patience=10).run()).rows

        busy = await asyncpg.connect(source_url)
        pace = Pace(active=0)
        working = asyncio.create_task(busy.execute("SELECT pg_sleep(30)"))
        audit = asyncio.create_task(audited(pace))
        await waits(pace, "backends are at work")
        assert not audit.done()
        await source.execute("SELECT pg_cancel_backend($1)", busy.get_server_pid())
        with contextlib.suppress(asyncpg.QueryCanceledError):
            await working
        assert await audit == 500
        await busy.close()

        pace = Pace(lag=0.2)
        async with replica.transaction():
            await replica.execute("LOCK TABLE tocsin_check.marker IN SHARE ROW EXCLUSIVE MODE")
            sides.fence.lag = 9.0
            audit = asyncio.create_task(audited(pace))
            await waits(pace, "behind")
            assert not audit.done()
        assert await audit == 500

        pace = Pace(retained=0)
        audit = asyncio.create_task(audited(pace))
        await waits(pace, "GiB of WAL")
        pace.retained = 1 << 40
        assert await audit == 500


async def test_the_sessions_can_t_write_and_wait_for_no_lock(setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await setup("t")
    async with open_sides(source_url, replica_url) as sides:
        for connection in (sides.source, sides.replica):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await connection.execute("INSERT INTO public.t VALUES (1)")
            assert await connection.fetchval("SHOW statement_timeout") == "1min"
            assert await connection.fetchval("SHOW lock_timeout") == "5s"
            assert await connection.fetchval("SHOW max_parallel_workers_per_gather") == "0"
