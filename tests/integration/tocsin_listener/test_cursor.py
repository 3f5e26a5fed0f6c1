"""The cursor: what lies between two snapshots is read once, whole, in order, whatever commits in what order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from tocsin_listener import journal as journal_module
from tocsin_listener.journal import SESSION, Journal
from tocsin_listener.progress import BEGINNING
from tocsin_listener.watch import watch

WRITERS, SECONDS = 8, 2.0


@pytest_asyncio.fixture
async def journal(installed: asyncpg.Connection, source_url: str) -> AsyncIterator[Journal]:
    """A Journal with small pages over a watched table t (id, n)."""
    await installed.execute("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int)")
    await watch(installed, ["t"])
    reader, bulk = await asyncpg.connect(source_url), await asyncpg.connect(source_url)
    for connection in (reader, bulk):
        await connection.execute(SESSION)
    yield Journal(reader, bulk, incarnation="i", source="s", most_rows=200)
    await reader.close()
    await bulk.close()


async def write(url: str, seed: int, until: float) -> None:
    """Transactions of all kinds: short and long, with savepoints, rolled back in part or whole."""
    chance = random.Random(seed)
    connection = await asyncpg.connect(url)
    while asyncio.get_running_loop().time() < until:
        transaction = connection.transaction()
        await transaction.start()
        for _ in range(chance.randint(1, 4)):
            await connection.execute("INSERT INTO t (n) SELECT generate_series(1, $1)", chance.randint(1, 3))
            if chance.random() < 0.3:
                inner = connection.transaction()
                await inner.start()
                await connection.execute("UPDATE t SET n = n + 1 WHERE id = (SELECT max(id) FROM t)")
                await (inner.rollback() if chance.random() < 0.5 else inner.commit())
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.05)
        await (transaction.rollback() if chance.random() < 0.1 else transaction.commit())
    await connection.close()


async def read_all(journal: Journal, writing: asyncio.Task[None]) -> list[list[int]]:
    """The sequences of each batch until the writers have ended and nothing is left."""
    reached = BEGINNING
    batches: list[list[int]] = []
    while True:
        ended = writing.done()
        difference = await journal.between(reached)
        if difference is None:
            if ended:
                return batches
            await asyncio.sleep(0.001)
            continue
        rows = difference.rows if difference.rows is not None else [row async for page in journal.pages(difference) for row in page]
        batches.append([row.seq for row in rows])
        reached = difference.intended


async def stress(journal: Journal, url: str) -> tuple[list[list[int]], set[int]]:
    async def all_writers() -> None:
        until = asyncio.get_running_loop().time() + SECONDS
        async with asyncio.TaskGroup() as group:
            for seed in range(WRITERS):
                group.create_task(write(url, seed, until))

    async with asyncio.TaskGroup() as group:
        batches = await read_all(journal, group.create_task(all_writers()))
    connection = await asyncpg.connect(url)
    committed = {row["seq"] for row in await connection.fetch("SELECT seq FROM tocsin.journal")}
    await connection.close()
    return batches, committed


async def test_nothing_is_lost_or_repeated_under_concurrent_writers(journal: Journal, source_url: str, installed: asyncpg.Connection) -> None:
    batches, committed = await stress(journal, source_url)
    read = [seq for batch in batches for seq in batch]
    assert len(batches) > 20, "the reader must have read in between"
    assert (len(committed - set(read)), len(read) - len(set(read)), len(set(read) - committed)) == (0, 0, 0)
    keys = {row["seq"]: row["key"] for row in await installed.fetch("SELECT seq, key FROM tocsin.journal")}
    last: dict[str, int] = {}
    for seq in read:
        assert last.get(keys[seq], 0) < seq, "a key's changes must come in the order in which they were made"
        last[keys[seq]] = seq


@pytest.mark.parametrize(
    ("fence", "instead"),
    [
        ("OR xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))", ""),
        ("xid >= (SELECT pg_snapshot_xmax($1::text::pg_snapshot))", "xid > (SELECT pg_snapshot_xmax($1::text::pg_snapshot))"),
    ],
    ids=["without the transactions in progress", "one transaction too late"],
)
async def test_without_the_fence_the_same_stress_loses_rows(
    journal: Journal, source_url: str, monkeypatch: pytest.MonkeyPatch, fence: str, instead: str
) -> None:
    broken = journal_module.QUERIES["between"].replace(fence, instead)
    assert broken != journal_module.QUERIES["between"]
    monkeypatch.setitem(journal_module.QUERIES, "between", broken)
    batches, committed = await stress(journal, source_url)
    assert len(committed - {seq for batch in batches for seq in batch}) > 0


async def test_a_batch_read_again_is_the_same_whatever_has_happened_since(journal: Journal, installed: asyncpg.Connection, source_url: str) -> None:
    """Also after the table, the watch and the journal have changed."""
    other = await asyncpg.connect(source_url)
    late = other.transaction()
    await late.start()
    await other.execute("INSERT INTO t (n) VALUES (-1)")
    await installed.execute("INSERT INTO t (n) SELECT generate_series(1, 50)")
    first = await journal.between(BEGINNING)
    assert first is not None
    await late.commit()
    await installed.execute("INSERT INTO t (n) VALUES (0); UPDATE t SET n = 7")
    await watch(installed, ["t"], columns=["id"], route=["n"], old="full")
    await installed.execute("ALTER TABLE t RENAME COLUMN id TO ident; ALTER TABLE t RENAME TO u")
    again = await journal.between(BEGINNING, first.intended)
    assert again is not None
    assert [(r.seq, r.subject, r.message) for r in again.rows or []] == [(r.seq, r.subject, r.message) for r in first.rows or []]
    await other.close()


async def test_a_long_transaction_delays_only_itself(journal: Journal, installed: asyncpg.Connection, source_url: str) -> None:
    other = await asyncpg.connect(source_url)
    long = other.transaction()
    await long.start()
    await other.execute("INSERT INTO t (n) VALUES (-1)")
    await installed.execute("INSERT INTO t (n) VALUES (1)")
    first = await journal.between(BEGINNING)
    assert first is not None
    assert [b'"n":1' in row.message for row in first.rows or []] == [True]
    assert await journal.between(first.intended) is None
    await long.commit()
    second = await journal.between(first.intended)
    assert second is not None
    assert [b'"n":-1' in row.message for row in second.rows or []] == [True]
    await other.close()


async def test_large_differences_come_in_pages_bounded_in_rows_and_bytes_in_the_same_order(journal: Journal, installed: asyncpg.Connection) -> None:
    await installed.execute("INSERT INTO t (n) SELECT generate_series(1, 1001)")
    difference = await journal.between(BEGINNING)
    assert difference is not None
    assert difference.rows is None
    pages = [page async for page in journal.pages(difference)]
    assert [len(page) for page in pages] == [200, 200, 200, 200, 200, 1]
    sequences = [row.seq for page in pages for row in page]
    assert sequences == sorted(sequences)
    assert len(set(sequences)) == 1001


async def test_the_read_uses_the_index_whatever_the_journal_holds(installed: asyncpg.Connection, source_url: str, journal: Journal) -> None:
    await installed.execute("INSERT INTO t (n) SELECT generate_series(1, 20000)")
    reached = await installed.fetchval("SELECT pg_current_snapshot()::text")
    await installed.execute("INSERT INTO t (n) VALUES (1)")
    reader = await asyncpg.connect(source_url)
    await reader.execute(SESSION)
    query = journal_module.QUERIES["between"]
    plan = "\n".join(r[0] for r in await reader.fetch(f"EXPLAIN (ANALYZE, BUFFERS OFF, TIMING OFF) {query}", reached, None, 2000, 1 << 20, "i", "s"))
    await reader.close()
    assert "Seq Scan on journal" not in plan, plan
    assert "Index" in plan
    assert "rows=20000" not in plan.replace("rows=20000 width", ""), plan
