"""A table changes its shape while others write to it: no write fails, no change is lost, and the change is announced."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.integration.tocsin_listener.conftest import Events, journal_events
from tocsin_listener.alteration import follow_shapes
from tocsin_listener.install import install
from tocsin_listener.watch import watch

Event = dict[str, Any]


class Writers:
    """Three connections, each of which inserts, updates and deletes rows of its own until told to stop; `done` counts what committed."""

    def __init__(self, url: str, table: str) -> None:
        self.url, self.table = url, table
        self.done: Counter[str] = Counter()
        self.stopping: bool = False

    def _may_stop(self) -> bool:
        return self.stopping

    async def _write(self, first: int) -> None:
        connection = await asyncpg.connect(self.url)
        oid = await connection.fetchval("SELECT $1::regclass::oid", self.table)
        number = first
        while not self._may_stop():
            number += 3
            for op, statement in (
                ("insert", f"INSERT INTO {{}} VALUES ({number}, {number})"),
                ("update", f"UPDATE {{}} SET n = -n WHERE n = {number}"),
                ("delete", f"DELETE FROM {{}} WHERE n = -{number}"),
            ):
                if op == "delete" and number % 2:
                    continue
                while not self._may_stop():
                    name = await connection.fetchval("SELECT $1::oid::regclass::text", oid)
                    try:
                        assert await connection.execute(statement.format(name)) in ("INSERT 0 1", "UPDATE 1", "DELETE 1")
                    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
                        assert error.context is None, "the writer's own statement names the table as it was called a moment ago; a trigger's may not"  # noqa: PT017
                        continue
                    self.done[op] += 1
                    break
                else:
                    break
        await connection.close()

    async def count(self, more: int) -> None:
        """Wait for as many more writes."""
        wanted = self.done.total() + more
        async with asyncio.timeout(60):
            while self.done.total() < wanted:
                await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for first in range(3):
                group.create_task(self._write(first))
            await self.count(30)
            yield
            await self.count(30)
            self.stopping = True


TABLE = "CREATE TABLE t (id int PRIMARY KEY, n int UNIQUE, route text DEFAULT 'r', note text DEFAULT 'x', status int DEFAULT 1)"

CHANGES = {
    "column added": ("ALTER TABLE t ADD COLUMN late text DEFAULT 'l'", [{"what": "column added", "column": "late", "type": "text"}]),
    "column dropped": ("ALTER TABLE t DROP COLUMN note", [{"what": "column dropped", "column": "note", "type": "text"}]),
    "route dropped": ("ALTER TABLE t DROP COLUMN route", [{"what": "column dropped", "column": "route", "type": "text"}]),
    "column renamed": ("ALTER TABLE t RENAME note TO remark", [{"what": "column renamed", "from": "note", "to": "remark"}]),
    "route renamed": ("ALTER TABLE t RENAME route TO way", [{"what": "column renamed", "from": "route", "to": "way"}]),
    "key renamed": ("ALTER TABLE t RENAME id TO number", [{"what": "column renamed", "from": "id", "to": "number"}]),
    "column retyped": ("ALTER TABLE t ALTER id TYPE text", [{"what": "column retyped", "column": "id", "from": "integer", "to": "text"}]),
    "condition dropped": ("ALTER TABLE t DROP COLUMN status", [{"what": "column dropped", "column": "status", "type": "integer"}]),
    "condition retyped": (
        "ALTER TABLE t ALTER status DROP DEFAULT, ALTER status TYPE jsonb USING to_jsonb(status)",
        [{"what": "column retyped", "column": "status", "from": "integer", "to": "jsonb"}],
    ),
    "key dropped": ("ALTER TABLE t DROP CONSTRAINT t_pkey", [{"what": "key changed", "from": ["id"], "to": []}]),
    "table renamed": ("ALTER TABLE t RENAME TO u", [{"what": "table renamed", "from": "t", "to": "u"}]),
    "table moved": ("CREATE SCHEMA other; ALTER TABLE t SET SCHEMA other", [{"what": "schema changed", "from": "public", "to": "other"}]),
    "schema renamed": ("ALTER SCHEMA public RENAME TO private", [{"what": "schema changed", "from": "public", "to": "private"}]),
    "child added": ("CREATE TABLE child (own int) INHERITS (t)", [{"what": "child joined", "table": "public.child"}]),
}  # fmt: skip


def split(seen: list[Event]) -> tuple[Counter[str], list[Event], list[Event]]:
    """How many changes of each operation, those without their row, and the announcements."""
    changes = [e for e in seen if e["subject"].startswith("change.")]
    return Counter(e["op"] for e in changes), [e for e in changes if "truncated" in e], [e for e in seen if e["subject"].startswith("schema.")]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_of_shape_fails_no_writer_and_is_announced(installed: asyncpg.Connection, events: Events, source_url: str, change: str) -> None:
    statement, expected = CHANGES[change]
    await installed.execute(TABLE)
    await watch(installed, ["t"], route=["route"], when="status > 0")
    writers = Writers(source_url, "t")
    async with writers.running():
        await installed.execute(statement)
    counted, without_row, announced = split(await events())
    assert counted == writers.done, "each write is told once"
    (announcement,) = announced
    assert announcement["changes"] == expected
    if change.startswith("condition"):
        assert without_row, "what the condition let through can't be judged any more: keys alone, and no row that it may have kept back"
        assert all(e["key"] is not None and "new" not in e for e in without_row)
        assert announcement["troubles"]
    else:
        assert without_row == []
        assert "troubles" not in announcement
    (now,) = await installed.fetch("SELECT w.form ->> 'schema', w.form ->> 'table' FROM tocsin.watched AS w")
    assert (announcement["subject"], announcement["type"]) == (f"schema.{now[0]}.{now[1]}", f"{now[0]}.{now[1]}.schema")
    last = (await events())[-1]
    assert last["subject"].startswith(f"change.{now[0]}.{now[1]}.")
    assert last["subject"].rsplit(".", 1)[1] == ("%N" if change == "route dropped" else "r")


@pytest_asyncio.fixture
async def unprivileged(source: asyncpg.Connection, source_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Installed by a role that may not create event triggers; a connection of that role."""
    database = await source.fetchval("SELECT current_database()")
    await source.execute(
        f"CREATE ROLE {database}_owner LOGIN; GRANT CREATE ON DATABASE {database} TO {database}_owner; GRANT ALL ON SCHEMA public TO {database}_owner"
    )
    connection = await asyncpg.connect(source_url, user=f"{database}_owner")
    await install(connection)
    yield connection
    await connection.close()
    await source.execute(f"DROP OWNED BY {database}_owner CASCADE; DROP ROLE {database}_owner")


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "schema renamed"])
async def test_without_event_triggers_the_functions_survive_until_the_listener_has_looked(
    unprivileged: asyncpg.Connection, source: asyncpg.Connection, source_url: str, change: str
) -> None:
    statement, expected = CHANGES[change]
    assert await source.fetchval("SELECT count(*) FROM pg_event_trigger") == 0
    if statement.startswith("CREATE SCHEMA"):
        await source.execute(f"CREATE SCHEMA other AUTHORIZATION {await unprivileged.fetchval('SELECT current_user')}")
        statement = statement.split("; ")[1]
    await unprivileged.execute(TABLE)
    await watch(unprivileged, ["t"], route=["route"], when="status > 0")
    writers = Writers(source_url, "t")
    async with writers.running():
        await unprivileged.execute(statement)
        await writers.count(30)
        async with asyncio.timeout(60):
            while not await unprivileged.fetchval("SELECT tocsin.refresh_all()"):
                await asyncio.sleep(0.01)
    seen = await journal_events(source)
    counted, without_row, (announcement,) = split(seen)
    assert counted == writers.done
    assert announcement["changes"] == expected
    if change in ("column added", "column retyped", "key dropped", "table renamed", "table moved", "child added"):
        assert without_row == []
    else:
        assert without_row or change == "column renamed"
    if not change.startswith("condition"):
        assert "truncated" not in [e for e in seen if e["subject"].startswith("change.")][-1], "all is as before again"


async def test_the_listener_looks_by_itself_where_there_are_no_event_triggers(
    unprivileged: asyncpg.Connection, source: asyncpg.Connection, source_url: str
) -> None:
    """It waits for no lock that a writer holds, and looks again."""
    await unprivileged.execute("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    await watch(unprivileged, ["t"])
    looking = asyncio.create_task(follow_shapes(source_url))
    try:
        async with unprivileged.transaction():
            await unprivileged.execute("CREATE TABLE p PARTITION OF t DEFAULT; INSERT INTO p VALUES (1)")
        async with unprivileged.transaction():
            await unprivileged.execute("INSERT INTO p VALUES (2)")
            async with asyncio.timeout(60):
                # Until the listener has waited for this transaction's lock, and has given up.
                while not await source.fetchval("SELECT count(*) FROM pg_locks WHERE relation = 'p'::regclass AND NOT granted"):
                    await asyncio.sleep(0.01)
                while await source.fetchval("SELECT count(*) FROM pg_locks WHERE relation = 'p'::regclass AND NOT granted"):
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            while not await source.fetchval("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'p'::regclass AND tgname = 'tocsin_1_insert'"):
                await asyncio.sleep(0.05)
        await unprivileged.execute("INSERT INTO p VALUES (3)")
    finally:
        looking.cancel()
    announced, *inserts = await journal_events(source)
    assert announced["changes"] == [{"what": "partition joined", "table": "public.p"}]
    assert [e["key"]["id"] for e in inserts] == [3]


async def test_a_dropped_table_is_announced_and_forgotten(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE SCHEMA s; CREATE TABLE s.a (id int PRIMARY KEY); CREATE TABLE s.b (id int PRIMARY KEY)")
    await watch(installed, ["s.a", "s.b"])
    await installed.execute("DROP TABLE s.a")
    await installed.execute("DROP SCHEMA s CASCADE")
    seen = await events()
    assert [(e["subject"], e["changes"]) for e in seen] == [(f"schema.s.{name}", [{"what": "table dropped"}]) for name in "ab"]
    assert await installed.fetchval("SELECT count(*) FROM tocsin.watched") == 0
    assert await installed.fetchval("SELECT count(*) FROM pg_proc WHERE pronamespace = 'tocsin'::regnamespace AND proname ~ '_[0-9]+$'") == 0


async def test_a_change_that_is_rolled_back_changes_nothing(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    await watch(installed, ["t"])
    transaction = installed.transaction()
    await transaction.start()
    await installed.execute("ALTER TABLE t DROP COLUMN a; INSERT INTO t VALUES (1)")
    await transaction.rollback()
    await installed.execute("INSERT INTO t VALUES (2, 'x')")
    (only,) = await events()
    assert only["new"] == {"id": 2, "a": "x"}


async def test_partitions_come_and_go_under_writers(installed: asyncpg.Connection, events: Events, source_url: str) -> None:
    """Created, attached, detached (also concurrently), of two levels: written straight, each rings as long as it belongs to the table."""
    await installed.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY RANGE (id); CREATE TABLE first PARTITION OF t FOR VALUES FROM (0) TO (1000000)"
    )
    await watch(installed, ["t"])
    writers = Writers(source_url, "t")
    async with writers.running():
        await installed.execute("CREATE TABLE made PARTITION OF t FOR VALUES FROM (1000000) TO (2000000)")
        await installed.execute("INSERT INTO made VALUES (1000001)")
        await installed.execute("CREATE TABLE joined (n int, id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF joined DEFAULT")
        await installed.execute("INSERT INTO leaf VALUES (0, 2000000)")
        await installed.execute("ALTER TABLE t ATTACH PARTITION joined FOR VALUES FROM (2000000) TO (3000000)")
        await installed.execute("INSERT INTO leaf VALUES (0, 2000001); INSERT INTO joined VALUES (0, 2000002)")
        await installed.execute("ALTER TABLE t DETACH PARTITION joined")
        await installed.execute("INSERT INTO leaf VALUES (0, 2000003); INSERT INTO joined VALUES (0, 2000004)")
        await installed.execute("ALTER TABLE t DETACH PARTITION made CONCURRENTLY")
        await installed.execute("INSERT INTO made VALUES (1000002)")
        await installed.execute("DROP TABLE made, joined")
    seen = await events()
    counted, without_row, announced = split(seen)
    writers.done["insert"] += 3
    assert (counted, without_row) == (writers.done, [])
    assert sorted(e["key"]["id"] for e in seen if e.get("op") == "insert" and e["key"]["id"] >= 1000000) == [1000001, 2000001, 2000002]
    assert [[(c["what"], c["table"]) for c in e["changes"]] for e in announced] == [
        [("partition joined", "public.made")],
        [("partition joined", "public.joined"), ("partition joined", "public.leaf")],
        [("partition left", "public.joined"), ("partition left", "public.leaf")],
        [("partition left", "public.made")],
    ]


async def test_a_type_that_loses_its_column_by_cascade(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TYPE mood AS ENUM ('good'); CREATE TABLE t (id int PRIMARY KEY, m mood)")
    await watch(installed, ["t"], route=["m"])
    await installed.execute("DROP TYPE mood CASCADE")
    await installed.execute("INSERT INTO t VALUES (1)")
    announced, insert = await events()
    assert announced["changes"][0]["what"] == "column dropped"
    assert (insert["subject"], insert["new"]) == ("change.public.t.insert.%N", {"id": 1})


async def test_watching_and_ddl_at_once_never_wait_for_each_other_in_a_circle(installed: asyncpg.Connection, source_url: str) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])

    async def alter() -> None:
        connection = await asyncpg.connect(source_url)
        for n in range(25):
            await connection.execute(f"ALTER TABLE t ADD COLUMN c{n} int")
        await connection.close()

    async def again() -> None:
        connection = await asyncpg.connect(source_url)
        for n in range(25):
            await watch(connection, ["t"], ops=["insert", "update", "delete"] if n % 2 else ["insert"])
        await connection.close()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(alter())
        group.create_task(again())
    assert await installed.fetchval("SELECT form = tocsin.form(relation) FROM tocsin.watched")


async def test_changing_a_watch_loses_nothing(installed: asyncpg.Connection, events: Events, source_url: str) -> None:
    await installed.execute(TABLE)
    await watch(installed, ["t"])
    writers = Writers(source_url, "t")
    async with writers.running():
        for how in ({"route": ["route"]}, {"columns": ["id", "n"]}, {"old": "full"}, {"when": "status = 1"}, {"exact_numbers": True}, {}):
            await watch(installed, ["t"], **how)
            await writers.count(15)
    counted, without_row, announced = split(await events())
    assert (counted, without_row, announced) == (writers.done, [], [])
