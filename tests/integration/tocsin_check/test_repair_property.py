"""Repair under concurrent writes: the replica ends equal to the source, and only rows that had drifted were ever touched, each once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from tocsin_check import sessions
from tocsin_check.auditing import repair
from tocsin_check.auditing.audit import TableAudit
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.sides import open_sides
from tocsin_check.watch.checker import Checker

Setup = Callable[..., Awaitable[None]]
ROWS = 300
EXTRA = 10_000
"""Keys from here on are on the replica alone."""

STATEMENTS = (
    "UPDATE t SET v = $2 WHERE id = $1",
    "UPDATE t SET n = n + 1, v = v || left($2, 1) WHERE id = $1",
    "UPDATE t SET big = repeat(md5($2), 80) WHERE id = $1",
    "WITH gone AS (DELETE FROM t WHERE id = $1 RETURNING 1) SELECT count(*), $2::text FROM gone",
    "INSERT INTO t VALUES ($1, 0, $2, 'new') ON CONFLICT (id) DO UPDATE SET v = $2",
)


@contextlib.asynccontextmanager
async def _writing(source_url: str, replica_url: str, seed: int) -> AsyncIterator[None]:
    """Writers on the source, on rows that drifted and on others, and something that holds the replica's apply worker back now and then."""
    stop = asyncio.Event()

    async def write(number: int) -> None:
        chance = random.Random(seed * 10 + number)
        connection = await asyncpg.connect(source_url)
        while not stop.is_set():
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                async with connection.transaction():
                    for _ in range(chance.choice((1, 1, 4))):
                        await connection.execute(chance.choice(STATEMENTS), chance.randrange(ROWS), str(chance.random()))
                    if chance.random() < 0.1:
                        await asyncio.sleep(chance.random() * 0.1)
            await asyncio.sleep(chance.random() * 0.03)
        await connection.close()

    async def stall() -> None:
        chance = random.Random(seed)
        connection = await asyncpg.connect(replica_url)
        while not stop.is_set():
            async with connection.transaction():
                await connection.execute("LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE")
                await asyncio.sleep(chance.random() * 0.1)
            await asyncio.sleep(chance.random() * 0.3)
        await connection.close()

    async with asyncio.TaskGroup() as group:
        for work in (write(0), write(1), write(2), stall()):
            group.create_task(work)
        try:
            yield
        finally:
            stop.set()


async def _plant(replica: asyncpg.Connection, seed: int) -> set[str]:
    """Drift of each kind; the keys."""
    chance = random.Random(seed)
    keys = chance.sample(range(ROWS), 60)
    for key in keys:
        await replica.execute(
            chance.choice(("DELETE FROM t WHERE id = $1", "UPDATE t SET v = NULL WHERE id = $1", "UPDATE t SET big = 'x' WHERE id = $1")), key
        )
    await replica.execute("INSERT INTO t SELECT $1::int + i, 0, 'extra', 'extra' FROM generate_series(0, 19) i", EXTRA)
    return {str(key) for key in (*keys, *range(EXTRA, EXTRA + 20))}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 17))])
async def test_repairs_under_writes_end_equal_and_touch_what_had_drifted_once(
    seed: int, setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute(f"""
        CREATE TABLE t (id int PRIMARY KEY, n int, v text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t SELECT i, 0, 'v' || i, repeat(md5(i::text), 80) FROM generate_series(0, {ROWS - 1}) i""")
    await setup()
    planted = await _plant(replica, seed)
    written: Counter[str] = Counter()
    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        writer = await sessions.open_repairer(replica_url)

        async def rounds(least: int) -> bool:
            """Audit and repair; whether at last nothing had drifted any more."""
            for number in range(40):
                with contextlib.suppress(Lagging):
                    outcome = await TableAudit(sides, table, patience=5).run()
                    keys = [case.key for case in outcome.drifted]
                    if not keys and not outcome.pending and number >= least:
                        return True
                    async for batch in repair.apply(sides, table, keys, writer, patience=5):
                        written.update(each.key[0] for each in batch if each.left is None)
            return False

        async with _writing(source_url, replica_url, seed):
            assert await rounds(6)
        assert await rounds(0)
        await writer.close()
    assert set(written) <= planted, "a row was touched that had been right"
    assert set(written.values()) == {1}, "a row was damaged, and mended again"
    assert len(written) > 30
    query = "SELECT t::text FROM t ORDER BY id"
    assert await source.fetch(query) == await replica.fetch(query)
    assert await replica.fetchval("SELECT sum(apply_error_count) FROM pg_stat_subscription_stats") == 0
