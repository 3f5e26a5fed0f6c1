"""Row filters, columns, large copies, a source that moved, and taking replication down again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from tests.support import servers
from tests.support.proxy import TcpProxy
from tocsin.errors import OperatorError
from tocsin_check.replication.replicate import Progress, Replicated, replicate
from tocsin_check.replication.unreplicate import unreplicate

Replicate = Callable[..., Awaitable[Replicated]]
TRACES = """
    SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())
         + (SELECT count(*) FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))
         + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tocsin%') + (SELECT count(*) FROM pg_event_trigger)
         + (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal) + (SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname NOT IN ('pg_catalog', 'information_schema'))
"""


@pytest.fixture
def run(source_url: str, replica_url: str, own_url: str) -> Replicate:
    """`replicate` between this test's two databases."""

    async def call(*tables: str, **options: Any) -> Replicated:
        chosen = {"source_url_from_replica": own_url, "patience": 60, **options}
        return await replicate(source_url=source_url, replica_url=replica_url, tables=tables, **chosen)

    return call


async def arrives(connection: asyncpg.Connection, query: str, patience: float = 20) -> None:
    """Wait until the query is true."""
    async with asyncio.timeout(patience):
        while not await connection.fetchval(query):
            await asyncio.sleep(0.02)


async def test_a_row_filter_and_columns_choose_what_is_replicated(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute(
        "CREATE TABLE a (id int PRIMARY KEY, customer int NOT NULL, secret text NOT NULL UNIQUE); ALTER TABLE a REPLICA IDENTITY FULL;"
        "CREATE TABLE b (id int PRIMARY KEY, v text, secret text NOT NULL); INSERT INTO a SELECT i, i % 10, i FROM generate_series(1, 100) i;"
        "INSERT INTO b SELECT i, i, i FROM generate_series(1, 100) i"
    )
    await run("a", where="customer < 3")
    await run("b", where="id <= 7", columns=["id", "v"])
    assert await replica.fetchval("SELECT count(*) = 30 AND max(customer) = 2 FROM a")
    columns = "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'b'::regclass AND attnum > 0"
    assert await replica.fetchval(columns) == "id,v"
    assert await replica.fetchval("SELECT count(*) FROM b") == 7
    await source.execute("UPDATE a SET customer = 9 WHERE id = 1; UPDATE a SET customer = 1 WHERE id = 9; UPDATE b SET v = 'new' WHERE id = 7")
    await arrives(replica, "SELECT (SELECT bool_or(id = 9) AND NOT bool_or(id = 1) FROM a) AND (SELECT bool_or(v = 'new') FROM b)")
    await run("b", where="id <= 7", columns=["id", "v"])
    with pytest.raises(OperatorError, match="with other rows or columns") as raised:
        await run("b", where="id <= 8")
    assert "--drop --with-data public.b" in raised.value.fix


@pytest.mark.parametrize(
    ("options", "message", "fix"),
    [
        ({"where": "customer < 3"}, "reads customer, which the replica identity lacks", "REPLICA IDENTITY FULL"),
        ({"where": "nowhere < 3"}, 'column "nowhere" does not exist', "correct it"),
        ({"where": "random() < 0.5"}, "refuses --where", "immutable"),
        ({"columns": ["customer"]}, "leaves out id", "--columns customer,id"),
        ({"columns": ["id", "nowhere"]}, "nowhere", "correct it"),
    ],
)
async def test_what_a_filter_or_a_column_list_would_break_is_said_before(
    run: Replicate, source: asyncpg.Connection, options: dict[str, Any], message: str, fix: str
) -> None:
    await source.execute("CREATE TABLE a (id int PRIMARY KEY, customer int); CREATE TABLE b (id int PRIMARY KEY)")
    with pytest.raises(OperatorError) as raised:
        await run("a", **options)
    assert message in str(raised.value)
    assert fix in raised.value.fix
    with pytest.raises(OperatorError, match="exactly one table"):
        await run("a", "b", **options)
    assert await source.fetchval(TRACES) == 0


async def test_a_column_that_the_replica_demands_is_said_before(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
    await replica.execute("CREATE TABLE a (id int PRIMARY KEY, v text NOT NULL, own int NOT NULL, fine int NOT NULL DEFAULT 1)")
    with pytest.raises(OperatorError, match="demands a value for v, own, which is not replicated"):
        await run("a", columns=["id"])
    with pytest.raises(OperatorError, match="demands a value for own, which"):
        await run("a")


async def test_all_tables_of_a_schema_and_one_added_later(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute(
        "CREATE SCHEMA s; CREATE TABLE s.a (id int PRIMARY KEY); CREATE TABLE s.b (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)"
    )
    assert (await run("s.*")).tables == ("s.a", "s.b")
    await source.execute("CREATE TABLE s.c (id int PRIMARY KEY); INSERT INTO s.c SELECT generate_series(1, 50); INSERT INTO s.a VALUES (1)")
    assert (await run("s.*")).added == ("s.c",)
    assert await replica.fetchval("SELECT count(*) FROM s.c") == 50
    await arrives(replica, "SELECT count(*) = 1 FROM s.a")
    assert await replica.fetchval("SELECT to_regclass('other')") is None


async def test_a_large_copy_tells_how_far_it_is(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute(
        "CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 400000) i; ANALYZE big"
    )
    seen: list[Progress] = []
    await run("big", on_progress=seen.append)
    rows = [p.rows for p in seen if p.phase == "copy" and p.table == "public.big"]
    assert any(0 < n < 400_000 for n in rows), rows
    assert {p.estimate for p in seen if p.table == "public.big"} == {400_000}
    assert [p.phase for p in seen if p.phase != "copy"] == ["schema", "publication", "slot", "subscription", "done"]
    assert await replica.fetchval("SELECT count(*) FROM big") == 400_000


@pytest.mark.skipif(servers.IN_CONTAINERS, reason="the source moves by a proxy on this machine's loopback, which a container can't reach")
async def test_it_follows_a_source_that_moved(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection, own_url: str) -> None:
    """The old address is gone; running replicate again with the new one is enough."""
    from urllib.parse import urlsplit, urlunsplit

    await source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    parts = urlsplit(own_url)
    async with TcpProxy(parts.port or 0, parts.hostname or "127.0.0.1") as proxy:
        port = str(proxy.port)
        await run("a", source_url_from_replica=urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}")))
    await source.execute("INSERT INTO a VALUES (2)")
    await run("a")
    await arrives(replica, "SELECT count(*) = 2 FROM a", 30)
    assert port not in await replica.fetchval(
        "SELECT subconninfo FROM pg_subscription WHERE subname = 'tocsin' AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )


async def test_one_table_is_dropped_and_the_others_go_on(
    run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
    await run()
    await unreplicate(source_url=source_url, replica_url=replica_url, tables=["b"])
    await source.execute("INSERT INTO b VALUES (2); INSERT INTO a VALUES (2)")
    await arrives(replica, "SELECT count(*) = 2 FROM a")
    assert await replica.fetchval("SELECT count(*) FROM b") == 1, "its rows stay, and no change comes any more"
    with pytest.raises(OperatorError, match=r"public\.b is not replicated by Tocsin; there are: public\.a"):
        await unreplicate(source_url=source_url, replica_url=replica_url, tables=["b"])
    with pytest.raises(OperatorError, match="already has rows"):
        await run("b")
    await unreplicate(source_url=source_url, replica_url=replica_url, tables=["a"], with_data=True)
    assert await replica.fetchval("SELECT to_regclass('a')") is None


async def test_nothing_is_left_after_drop_and_uninstall(
    run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    """Both databases are as they were, but for the copied tables; and all of it can be set up anew."""
    from tocsin_listener.install import install, uninstall

    await source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    await install(source)
    await run("a")
    dropped = await unreplicate(source_url=source_url, replica_url=replica_url)
    assert dropped.left == []
    await uninstall(source)
    assert await source.fetchval(TRACES) == 0
    assert await replica.fetchval(TRACES) == 0
    assert await replica.fetchval("SELECT count(*) FROM a") == 1
    assert (await unreplicate(source_url=source_url, replica_url=replica_url)).done == []
    await replica.execute("TRUNCATE a")
    await run("a")
    dropped = await unreplicate(source_url=source_url, replica_url=replica_url, with_data=True)
    assert await replica.fetchval("SELECT to_regclass('a')") is None
    assert await source.fetchval(TRACES) + await replica.fetchval(TRACES) == 0


async def test_a_source_that_does_not_answer_keeps_its_part_which_is_told_and_removed_later(
    run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    from tocsin.stack.process import free_port

    await source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    await run("a")
    dropped = await unreplicate(source_url=f"postgresql://postgres@127.0.0.1:{free_port()}/x", replica_url=replica_url)
    assert "its WAL piles up" in dropped.left[0]
    assert await replica.fetchval(TRACES) == 0
    assert (await unreplicate(source_url=source_url, replica_url=replica_url)).left == []
    assert await source.fetchval(TRACES) == 0


async def test_another_replica_keeps_the_publication(
    run: Replicate, source: asyncpg.Connection, source_url: str, replica_url: str, own_url: str, replica_server: Any
) -> None:
    from tests.support import servers

    await source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    await run("a")
    async with servers.database(replica_server, "second_replica") as second:
        await replicate(source_url=source_url, replica_url=second, tables=["a"], source_url_from_replica=own_url, patience=60)
        dropped = await unreplicate(source_url=source_url, replica_url=replica_url)
        assert "for another replica" in dropped.left[0]
        connection = await asyncpg.connect(second)
        await source.execute("INSERT INTO a VALUES (2)")
        await arrives(connection, "SELECT count(*) = 2 FROM a")
        await connection.close()
        assert (await unreplicate(source_url=source_url, replica_url=second)).left == []
    assert await source.fetchval(TRACES) == 0


async def test_the_verbs_drop_and_uninstall_name_what_is_left(run: Replicate, source: asyncpg.Connection, source_url: str, replica_url: str) -> None:
    from tests.integration.tocsin_check.test_service import tocsin
    from tocsin_listener.install import install

    urls = {"source_url": source_url, "replica_url": replica_url}
    await source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    await install(source)
    await run("a")
    code, out, err = await tocsin("uninstall", **urls)
    assert (code, "left for the replica: the publication tocsin" in out, "tocsin replicate --drop" in out) == (0, True, True), out + err
    code, out, err = await tocsin("replicate", "--with-data", **urls)
    assert (code, "--with-data goes with --drop only" in err) == (2, True), out + err
    code, out, err = await tocsin("replicate", "--drop", **urls)
    assert (code, "removed the subscription tocsin" in out, "removed the slot" in out) == (0, True, True), out + err
    code, out, err = await tocsin("uninstall", **urls)
    assert (code, "there was nothing" in out) == (0, True), out + err
    assert await source.fetchval(TRACES) == 0
