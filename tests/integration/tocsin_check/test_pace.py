"""An audit gives way: to other backends, to lag, and to WAL that is held back. And it never writes, waits for a lock or holds a snapshot for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tocsin_check.auditing.audit import TableAudit
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Mark
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import open_sides
from tocsin_check.rows.verdict import Verdict
from tocsin_check.watch.checker import Checker

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


async def test_an_audit_gives_way_to_writers_and_not_to_its_own_transactions(
    setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    """The statistics are the server's, and other tests use it, so the quiet half asks its arithmetic alone."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20000) i")
    await setup("t")
    stop = asyncio.Event()

    async def write() -> None:
        async with asyncio.timeout(60):
            while not stop.is_set():
                await source.execute("UPDATE t SET n = n + 1 WHERE id = 1")

    async with open_sides(source_url, replica_url) as sides, asyncio.TaskGroup() as group:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        group.create_task(write())
        pace = Pace(share=0.4, gives_way=True)
        while not pace.busy:
            await TableAudit(sides, table, pace=pace, patience=20).run()
        stop.set()
    pace = Pace(share=0.4, gives_way=True, counted=(time.monotonic() - 1, 1000), reads=100)
    pace._count(1210)
    assert not pace.busy


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


async def test_a_server_that_ends_idle_sessions_soon_does_not_end_an_audit_that_rests_or_waits(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE t (id text PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 6000) i")
    await setup("t")
    await replica.execute("UPDATE t SET v = 'drift' WHERE id = '77'")
    for connection in (source, replica):
        database = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(f"ALTER DATABASE {database} SET idle_session_timeout = '200ms'")
        await connection.execute(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '1ms'")
    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        outcome = await TableAudit(sides, table, pace=Pace(rows_per_second=10_000), patience=10).run()
    assert (outcome.rows, [case.key for case in outcome.drifted]) == (6000, [("77",)])


async def test_waiting_for_the_replica_while_drift_is_judged_is_no_time_of_the_source_and_earns_no_rest(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    """Each fence after the block's own meets an apply worker that stands still for STALL seconds."""
    stall = 0.5
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 500) i")
    await setup("t")
    await replica.execute("UPDATE t SET v = 'drift' WHERE id = 7; DELETE FROM t WHERE id = 8")
    blocker = await asyncpg.connect(replica_url)
    async with open_sides(source_url, replica_url) as sides, asyncio.TaskGroup() as group:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        mark, marks = sides.fence.mark, 0

        async def stand_still(locked: asyncio.Event) -> None:
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE tocsin_check.marker IN SHARE ROW EXCLUSIVE MODE")
                locked.set()
                await asyncio.sleep(stall)

        async def mark_and_stall() -> Mark:
            nonlocal marks
            marks += 1
            if marks > 1:
                locked = asyncio.Event()
                group.create_task(stand_still(locked))
                await locked.wait()
            return await mark()

        sides.fence.mark = mark_and_stall  # type: ignore[method-assign]
        pace = Pace(share=0.5)
        begun = time.monotonic()
        outcome = await TableAudit(sides, table, pace=pace, patience=20).run()
        taken, rest = time.monotonic() - begun, pace.due - time.monotonic()
    await blocker.close()
    assert (outcome.count(Verdict.DIFFERENT), outcome.count(Verdict.MISSING)) == (1, 1)
    assert marks > 1
    assert taken > stall * (marks - 1)
    assert outcome.source_seconds < stall / 2
    assert rest < stall / 2


async def test_a_table_without_a_key_that_takes_too_long_is_unauditable_with_its_fix_and_one_with_a_key_is_read_in_parts(
    setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    """No snapshot of the source is ever older than the statement's time-out."""
    await source.execute("CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL; CREATE TABLE keyed (a int PRIMARY KEY, b text)")
    for table in ("bag", "keyed"):
        await source.execute(f"INSERT INTO {table} SELECT i, repeat('x', 100) FROM generate_series(1, 200000) i")
    await setup("bag", "keyed")
    checker = Checker(source_url, replica_url, publishing=False)
    async with open_sides(source_url, replica_url) as sides:
        tables = [t for t in await checker.take_stock(sides) if isinstance(t, Comparable)]
        await sides.source.execute("SET statement_timeout = '20ms'")
        [bag] = [t for t in tables if t.name.name == "bag"]
        await checker.auditor.audit_table(sides, bag)
        await sides.source.execute("SET statement_timeout = '5s'")
        [keyed] = [t for t in tables if t.name.name == "keyed"]
        await checker.auditor.audit_table(sides, keyed)
    reports = {t.table: t for t in checker.report().tables}
    assert reports["public.bag"].status == "unauditable"
    assert "ADD PRIMARY KEY" in (reports["public.bag"].reason or "")
    assert reports["public.bag"].verified_at is None
    assert reports["public.keyed"].status == "in_sync"
