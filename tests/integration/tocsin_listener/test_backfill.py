"""The present rows as events of op `read`: complete, resumable, and never undoing a change."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.integration.tocsin_listener.conftest import Events
from tocsin.errors import OperatorError
from tocsin_listener.backfill import Done, backfill
from tocsin_listener.watch import watch


async def test_every_row_is_read_once_as_the_watch_says(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute(
        """CREATE SCHEMA main; CREATE TABLE main.items (a int, b text, secret text, n numeric, PRIMARY KEY (b, a));
           INSERT INTO main.items SELECT i, chr(65 + i % 3) || 'n.i', 'x', i FROM generate_series(1, 1234) AS i"""
    )
    await watch(installed, ["main.items"], columns=["a", "b"], route=["b"], when="a <= 1000")
    done = await backfill(installed, "main.items", page=100, rate=1e6)
    assert (done.rows, done.written) == (1234, 1000)
    found = await events()
    assert sorted(e["key"]["a"] for e in found) == list(range(1, 1001))
    assert {e["op"] for e in found} == {"read"}
    assert set(found[0]["new"]) == {"a", "b"}
    assert found[0]["subject"].startswith("change.main.items.read.")
    assert await installed.fetchval("SELECT count(*) FROM tocsin.backfill") == 0


async def test_what_was_interrupted_goes_on_where_it_stopped(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
    await watch(installed, ["t"])

    class StoppedError(Exception):
        pass

    def stop(done: Done) -> None:
        if done.rows >= 40:
            raise StoppedError

    with pytest.raises(StoppedError):
        await backfill(installed, "t", page=10, rate=1e6, on_progress=stop)
    assert len(await events()) == 40
    assert (await backfill(installed, "t", page=10, rate=1e6)).rows == 100
    assert [e["key"]["id"] for e in await events()] == list(range(1, 101))


async def test_applied_in_order_it_gives_the_table_however_many_write_meanwhile(installed: asyncpg.Connection, source_url: str, events: Events) -> None:
    """The oracle: a copy that applies every event in journal order, reads included, must equal the table. Writers never fail or time out."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL); INSERT INTO t SELECT i, 0 FROM generate_series(1, 300) AS i")
    await watch(installed, ["t"])
    stop = asyncio.Event()

    async def write(seed: int) -> None:
        connection = await asyncpg.connect(source_url)
        await connection.execute(f"SELECT setseed({seed / 10}); SET lock_timeout = '2s'")
        while not stop.is_set():
            async with connection.transaction():
                await connection.execute("UPDATE t SET n = n + 1 WHERE id = (SELECT 1 + floor(random() * 300)::int)")
            await connection.execute("DELETE FROM t WHERE id = (SELECT 1 + floor(random() * 300)::int)")
            await connection.execute("INSERT INTO t SELECT 1 + floor(random() * 300)::int, -1 ON CONFLICT DO NOTHING")
        await connection.close()

    async with asyncio.TaskGroup() as group:
        for seed in range(1, 4):
            group.create_task(write(seed))
        for _ in range(4):
            await backfill(installed, "t", page=20, rate=1e6)
        stop.set()
    copy: dict[int, int] = {}
    found = await events()
    for event in found:
        if event["op"] == "delete":
            copy.pop(event["key"]["id"], None)  # it may have gone before any page came to it
        else:
            copy[event["key"]["id"]] = event["new"]["n"]
    table = {row["id"]: row["n"] for row in await installed.fetch("SELECT id, n FROM t")}
    assert copy == table
    assert {"read", "update", "delete", "insert"} == {event["op"] for event in found}


async def test_a_row_that_is_being_changed_is_waited_for_and_not_undone(installed: asyncpg.Connection, source_url: str, events: Events) -> None:
    """Without the rows' lock the read event, later than the change, has the value from before it. And the writer never waits for the backfill."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 3) AS i")
    await watch(installed, ["t"])
    reader, writer = await asyncpg.connect(source_url), await asyncpg.connect(source_url)
    await writer.execute("BEGIN; SET LOCAL lock_timeout = '1s'; UPDATE t SET n = 5 WHERE id = 2")
    reading = asyncio.create_task(backfill(reader, "t"))
    async with asyncio.timeout(10):
        while not reading.done() and not await installed.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            await asyncio.sleep(0.005)
    assert not reading.done(), "it waits"
    await writer.execute("UPDATE t SET n = 6 WHERE id = 1; COMMIT")
    assert (await reading).written == 3
    last = {event["key"]["id"]: (event["op"], event["new"]["n"]) for event in await events()}
    assert last == {1: ("read", 6), 2: ("read", 5), 3: ("read", 0)}
    await reader.close()
    await writer.close()


async def test_mistakes_are_named_with_their_fix(installed: asyncpg.Connection) -> None:
    await installed.execute("CREATE TABLE t (id int)")
    with pytest.raises(OperatorError) as raised:
        await backfill(installed, "t")
    assert raised.value.fix == "tocsin watch t"
    await watch(installed, ["t"])
    with pytest.raises(OperatorError, match="no primary key"):
        await backfill(installed, "t")
