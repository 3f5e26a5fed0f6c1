"""The promise under load: no false alarm from lag, and every planted drift found. The oracle is a comparison at rest."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from tocsin_check.auditing.audit import TableAudit
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.rows.verdict import DRIFT, Verdict
from tocsin_check.watch.checker import Checker

Setup = Callable[..., Awaitable[None]]
KEYS = 60
SECONDS = 6.0
PLANTED = {1_000_001: "missing", 1_000_002: "extra", 1_000_003: "different"}


async def _write(url: str, seed: int, stop: asyncio.Event) -> None:
    """Insert, update, delete and queue-like insert-and-delete over few keys, some in longer transactions."""
    chance = random.Random(seed)
    connection = await asyncpg.connect(url)
    try:
        while not stop.is_set():
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                async with connection.transaction():
                    for _ in range(chance.choice((1, 1, 3))):
                        key = chance.randrange(KEYS)
                        statement = chance.choice(
                            (
                                "INSERT INTO t VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = $2",
                                "UPDATE t SET v = $2 WHERE id = $1",
                                "WITH gone AS (DELETE FROM t WHERE id = $1 RETURNING 1) SELECT count(*), $2::text FROM gone",
                            )
                        )
                        await connection.execute(statement, key, str(chance.randrange(3)))
                        if chance.random() < 0.05:
                            await asyncio.sleep(chance.random() * 0.1)
            await asyncio.sleep(chance.random() * 0.01)
    finally:
        await connection.close()


async def _stall_apply(url: str, stop: asyncio.Event) -> None:
    """Hold the replica's table now and then, so that applying waits and then catches up in a burst."""
    chance = random.Random(7)
    connection = await asyncpg.connect(url)
    try:
        while not stop.is_set():
            async with connection.transaction():
                await connection.execute("LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE")
                await asyncio.sleep(chance.random() * 0.15)
            await asyncio.sleep(chance.random() * 0.15)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _load(source_url: str, replica_url: str) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for seed in range(3):
            group.create_task(_write(source_url, seed, stop))
        group.create_task(_stall_apply(replica_url, stop))
        try:
            yield
        finally:
            stop.set()


async def _audits(sides: Sides, table: Comparable) -> AsyncIterator[Outcome]:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(Lagging):
            yield await TableAudit(sides, table, patience=10).run()


async def _table(source_url: str, replica_url: str, sides: Sides) -> Comparable:
    [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
    return table


async def test_no_false_alarm_and_every_planted_drift_under_writes_and_apply_stalls(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    await source.execute("INSERT INTO t SELECT i, '0' FROM generate_series(0, $1) i".replace("$1", str(KEYS)))
    await source.execute("INSERT INTO t VALUES (1000001, 'm'), (1000003, 'd')")
    await setup("t")
    async with open_sides(source_url, replica_url) as sides:
        table = await _table(source_url, replica_url, sides)
        async with _load(source_url, replica_url):
            await replica.execute("DELETE FROM t WHERE id = 1000001; INSERT INTO t VALUES (1000002, 'e'); UPDATE t SET v = 'D' WHERE id = 1000003")
            audits = 0
            async for outcome in _audits(sides, table):
                audits += 1
                found = {int(case.key[0]): case.verdict.value for case in outcome.drifted if case.verdict is not None and case.verdict in DRIFT}
                assert found == PLANTED, f"audit {audits}: {found}"
        assert audits >= 5
        settled = await TableAudit(sides, table).run()
        assert not settled.pending
        assert settled.count(Verdict.MISSING) == settled.count(Verdict.EXTRA) == settled.count(Verdict.DIFFERENT) == 1


async def test_a_row_that_comes_and_goes_is_never_extra(setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str) -> None:
    """A job queue: every row is inserted and deleted at once; the replica shows rows that the source never shows an auditor."""
    await source.execute("CREATE TABLE t (id bigserial PRIMARY KEY, v text)")
    await setup("t")
    stop = asyncio.Event()

    async def churn() -> None:
        connection = await asyncpg.connect(source_url)
        while not stop.is_set():
            await connection.execute("INSERT INTO t (v) VALUES ('job')")
            await connection.execute("DELETE FROM t")
        await connection.close()

    async with open_sides(source_url, replica_url) as sides, asyncio.TaskGroup() as group:
        table = await _table(source_url, replica_url, sides)
        group.create_task(churn())
        try:
            async for outcome in _audits(sides, table):
                assert not outcome.drifted
        finally:
            stop.set()


async def test_a_long_transaction_leaves_an_extra_row_pending_and_hides_no_other_drift(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    await setup("t")
    await replica.execute("UPDATE t SET v = 'x' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (3, 'c')")
    async with open_sides(source_url, replica_url) as sides:
        table = await _table(source_url, replica_url, sides)
        transaction = source.transaction()
        await transaction.start()
        await source.execute("CREATE TABLE elsewhere (id int)")
        outcome = await TableAudit(sides, table, patience=0.5).run()
        assert {case.key: case.verdict for case in outcome.drifted} == {("1",): Verdict.DIFFERENT, ("2",): Verdict.MISSING}
        [pending] = outcome.pending
        assert pending.key == ("3",)
        assert "open since" in pending.reason
        await transaction.rollback()
        outcome = await TableAudit(sides, table, patience=5).run()
        assert {case.key[0]: case.verdict for case in outcome.drifted} == {"1": Verdict.DIFFERENT, "2": Verdict.MISSING, "3": Verdict.EXTRA}


async def test_a_paused_replica_is_lagging_and_never_drift(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    await setup("t")
    async with open_sides(source_url, replica_url) as sides:
        table = await _table(source_url, replica_url, sides)
        async with replica.transaction():
            await replica.execute("LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE")
            await source.execute("INSERT INTO t VALUES (2)")
            with pytest.raises(Lagging) as raised:
                await TableAudit(sides, table, patience=0.5).run()
            assert raised.value.seconds >= 0.5
        assert (await TableAudit(sides, table).run()).drifted == []
