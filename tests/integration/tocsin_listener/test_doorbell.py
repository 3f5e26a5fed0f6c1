"""The doorbell: no wake-up is lost, and writers ring only for a sleeper."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import asyncpg
import pytest_asyncio

from tocsin_listener.doorbell import Doorbell
from tocsin_listener.follow import follow
from tocsin_listener.journal import SESSION, Journal
from tocsin_listener.progress import BEGINNING
from tocsin_listener.watch import watch


@dataclass(slots=True)
class Reader:
    """Stands where the relay does: reads, and remembers."""

    journal: Journal
    reached: str = BEGINNING
    seen: list[int] = field(default_factory=list)

    async def step(self) -> bool:
        difference = await self.journal.between(self.reached)
        if difference is None:
            return False
        assert difference.rows is not None
        self.seen += [row.seq for row in difference.rows]
        self.reached = difference.intended
        return True

    async def settle(self) -> None:
        pass

    async def leave(self) -> None:
        pass


@pytest_asyncio.fixture
async def make(installed: asyncpg.Connection, source_url: str) -> AsyncIterator[Callable[..., tuple[Reader, Doorbell]]]:
    await installed.execute("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int)")
    await watch(installed, ["t"])
    connection, bulk = await asyncpg.connect(source_url), await asyncpg.connect(source_url)
    await connection.execute(SESSION)

    def build(*, fallback: float = 1.0, allowed: bool = True) -> tuple[Reader, Doorbell]:
        return Reader(Journal(connection, bulk, incarnation="i", source="s")), Doorbell(connection, fallback=fallback, allowed=allowed)

    yield build
    await connection.close()
    await bulk.close()


async def until(condition: Callable[[], bool], patience: float = 5) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.002)


Make = Callable[..., tuple[Reader, Doorbell]]


async def test_many_naps_and_no_row_is_found_only_by_the_fallback(make: Make, installed: asyncpg.Connection, source_url: str) -> None:
    reader, bell = make()
    await bell.listen()

    async def write(seed: int) -> None:
        chance = random.Random(seed)
        connection = await asyncpg.connect(source_url)
        for _ in range(60):
            await asyncio.sleep(chance.random() ** 2 * 0.06)
            async with connection.transaction():
                await connection.execute("INSERT INTO t (n) VALUES (1)")
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.02)
                    await connection.execute("INSERT INTO t (n) VALUES (2)")
        await connection.close()

    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow(reader, bell))  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as writers:
            for seed in range(4):
                writers.create_task(write(seed))
        committed = {row["seq"] for row in await installed.fetch("SELECT seq FROM tocsin.journal")}
        await until(lambda: set(reader.seen) == committed)
        following.cancel()
    assert len(reader.seen) == len(committed)
    assert bell.counts.naps > 40, "the listener must have slept often for this to show anything"
    assert bell.counts.fallback_finds == 0


async def unrung(make: Make, installed: asyncpg.Connection, source_url: str) -> int:
    """A writer that found the listener awake commits much later. How many rows only the fallback found."""
    reader, bell = make(fallback=0.3)
    await bell.listen()
    writer = await asyncpg.connect(source_url)
    open_transaction = writer.transaction()
    await open_transaction.start()
    await writer.execute("INSERT INTO t (n) VALUES (1)")
    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow(reader, bell))  # type: ignore[arg-type]
        await asyncio.sleep(0.15)  # far longer than the listener needs to lie down, if it may
        await open_transaction.commit()
        await until(lambda: len(reader.seen) == 1)
        await until(lambda: bell.counts.naps > 0)
        await asyncio.sleep(0.2)  # the bell's grace
        following.cancel()
    await writer.close()
    return bell.counts.fallback_finds


async def test_the_listener_stays_awake_while_a_writer_that_did_not_ring_is_open(make: Make, installed: asyncpg.Connection, source_url: str) -> None:
    assert await unrung(make, installed, source_url) == 0


async def test_without_the_lock_held_to_the_commit_the_wake_up_is_lost(make: Make, installed: asyncpg.Connection, source_url: str) -> None:
    """The same, where the writer looks whether the listener sleeps but does not keep the lock: it shows that the test can fail."""
    source = await installed.fetchval("SELECT pg_get_functiondef('tocsin.insert_1'::regproc)")
    broken = source.replace(
        "pg_catalog.pg_try_advisory_xact_lock_shared(8390040714906399854)",
        "(pg_catalog.pg_try_advisory_lock_shared(8390040714906399854) AND pg_catalog.pg_advisory_unlock_shared(8390040714906399854))",
    )
    assert broken != source
    await installed.execute(broken)
    assert await unrung(make, installed, source_url) == 1


async def notifications(url: str) -> tuple[asyncpg.Connection, list[str]]:
    heard: list[str] = []
    connection = await asyncpg.connect(url)
    await connection.add_listener("tocsin", lambda *arguments: heard.append(str(arguments[3])))
    return connection, heard


async def test_nobody_rings_without_a_listener_and_for_one_that_is_awake(make: Make, installed: asyncpg.Connection, source_url: str) -> None:
    ear, heard = await notifications(source_url)
    await installed.execute("INSERT INTO t (n) VALUES (1)")
    reader, bell = make()
    await bell.listen()
    await reader.step()
    await installed.execute("INSERT INTO t (n) VALUES (2)")
    assert await bell.doze()
    await installed.execute("UPDATE t SET n = 0 WHERE n = 100")
    await ear.execute("SELECT 1")
    assert heard == [], "nor for a statement that changed nothing"
    await installed.execute("INSERT INTO t (n) VALUES (3)")
    await ear.execute("SELECT 1")
    assert heard == [""], "the bell carries nothing"
    await bell.rise()
    await installed.execute("INSERT INTO t (n) VALUES (4)")
    await ear.execute("SELECT 1")
    assert heard == [""]
    await ear.close()


async def test_where_ringing_is_not_allowed_it_reads_steadily_and_nobody_rings(make: Make, installed: asyncpg.Connection, source_url: str) -> None:
    ear, heard = await notifications(source_url)
    reader, bell = make(allowed=False)
    await bell.listen()
    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow(reader, bell))  # type: ignore[arg-type]
        for n in range(5):
            await installed.execute("INSERT INTO t (n) VALUES (1)")
            await until(lambda n=n: len(reader.seen) == n + 1)  # type: ignore[misc]
        following.cancel()
    await ear.execute("SELECT 1")
    assert (heard, bell.counts.naps) == ([], 0)
    await ear.close()
