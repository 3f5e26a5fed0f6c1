"""Partitions, heirs, foreign tables and subscriptions: what writes a table without a statement on it is refused or named, and never fails a writer."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.integration.tocsin_listener.conftest import Events
from tocsin.cli.examine import capture
from tocsin.errors import OperatorError
from tocsin_listener.install import install
from tocsin_listener.watch import unwatch, watch, watched


async def doctor(connection: asyncpg.Connection) -> list[tuple[str, str | None]]:
    return [(f.text, f.fix) async for f in capture.examine(connection) if not f.ok]


PARTITIONED = "CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)"


async def test_a_partition_is_not_watched_alone(installed: asyncpg.Connection, events: Events) -> None:
    """What is written through the table above it is no statement on the partition."""
    await installed.execute(PARTITIONED)
    with pytest.raises(OperatorError, match="t1 is a partition of t: what is written through t would not be told") as raised:
        await watch(installed, ["t1"])
    assert raised.value.fix == "tocsin watch t"
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1); INSERT INTO t1 VALUES (2)")
    assert [e["new"]["id"] for e in await events()] == [1, 2]


async def test_a_watched_table_that_became_a_partition_is_named(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute(f"{PARTITIONED}; CREATE TABLE joins (id int PRIMARY KEY, n int)")
    await watch(installed, ["joins"])
    await installed.execute("ALTER TABLE t ATTACH PARTITION joins FOR VALUES FROM (10) TO (20)")
    ((text, fix),) = await doctor(installed)
    assert "public.joins is a partition of t" in text
    assert fix == "tocsin unwatch joins; tocsin watch t"
    await unwatch(installed, ["joins"])
    await watch(installed, ["t"])
    assert await doctor(installed) == []
    await installed.execute("INSERT INTO t VALUES (11)")
    assert [e["new"]["id"] for e in await events()] == [11]


async def test_an_heir_may_be_watched_alone_and_is_told_of(installed: asyncpg.Connection) -> None:
    """It has columns of its own, which only its own watch tells."""
    await installed.execute("CREATE TABLE animal (id int PRIMARY KEY); CREATE TABLE cat (name text, PRIMARY KEY (id)) INHERITS (animal)")
    await watch(installed, ["cat"])
    assert [(w.relation, w.heir_of) for w in await watched(installed)] == [("cat", "animal")]
    assert any("what is written through animal, which it inherits from, is not told here" in f.text for f in [f async for f in capture.examine(installed)])


@pytest.fixture
async def far(installed: asyncpg.Connection, source_url: str) -> asyncpg.Connection:
    """A foreign table `far`, of rows in the same database."""
    url = urlsplit(source_url)
    await installed.execute(
        f"""CREATE EXTENSION postgres_fdw; CREATE TABLE there (id int, n int);
            CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{url.hostname}', port '{url.port}', dbname '{url.path[1:]}');
            CREATE USER MAPPING FOR CURRENT_USER SERVER here OPTIONS (user '{url.username}');
            CREATE FOREIGN TABLE far (id int NOT NULL, n int) SERVER here OPTIONS (table_name 'there')"""
    )
    return installed


async def test_a_table_with_a_foreign_table_below_it_is_refused(far: asyncpg.Connection) -> None:
    """PostgreSQL can't give such rows to a trigger, and refuses the statement."""
    await far.execute("CREATE TABLE t (id int NOT NULL, n int) PARTITION BY RANGE (id); ALTER TABLE t ATTACH PARTITION far FOR VALUES FROM (10) TO (20)")
    with pytest.raises(OperatorError, match=r"t has foreign tables below it \(far\)") as raised:
        await watch(far, ["t"])
    await far.execute("INSERT INTO t VALUES (11)")
    await far.execute(raised.value.fix)
    await watch(far, ["t"])


async def test_a_foreign_partition_that_comes_later_fails_no_writer(far: asyncpg.Connection, events: Events) -> None:
    await far.execute("CREATE TABLE t (id int NOT NULL, n int) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)")
    await watch(far, ["t"])
    await far.execute("ALTER TABLE t ATTACH PARTITION far FOR VALUES FROM (10) TO (20)")
    await far.execute("INSERT INTO t VALUES (1), (11); UPDATE t SET n = 1; INSERT INTO t1 VALUES (2)")
    announced, *told = await events()
    assert announced["troubles"] == ["what is written through public.t is not told while a foreign table is below it"]
    assert [e["new"]["id"] for e in told] == [2]
    ((text, fix),) = await doctor(far)
    assert "public.t: what is written through it is not told while foreign tables are below it" in text
    assert str(fix).endswith(": far")
    await far.execute("ALTER TABLE t DETACH PARTITION far")
    assert await doctor(far) == []
    await far.execute("INSERT INTO t VALUES (3)")
    assert (await events())[-1]["new"]["id"] == 3


async def test_what_a_subscription_writes_is_named(source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str) -> None:
    """PostgreSQL applies it row by row, and fires no trigger of a statement."""
    await install(replica)
    for side in (source, replica):
        await side.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(replica, ["t"])
    assert await doctor(replica) == []
    await source.execute("CREATE PUBLICATION test_relatives FOR TABLE t")
    await replica.execute(f"CREATE SUBSCRIPTION test_relatives CONNECTION '{source_url}' PUBLICATION test_relatives")
    try:
        await source.execute("INSERT INTO t VALUES (1)")
        async with asyncio.timeout(30):
            while not await replica.fetchval("SELECT EXISTS (SELECT FROM t)"):
                await asyncio.sleep(0.05)
        assert not await replica.fetchval("SELECT EXISTS (SELECT FROM tocsin.journal)")
        ((text, fix),) = await doctor(replica)
        assert "public.t is written by a subscription (test_relatives)" in text
        assert str(fix).startswith("watch it where it is written first: tocsin watch t")
    finally:
        await replica.execute("DROP SUBSCRIPTION test_relatives")
