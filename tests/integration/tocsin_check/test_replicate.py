"""Setting logical replication up between two real servers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from tests.support import servers
from tocsin.errors import OperatorError
from tocsin.stack.postgres_server import PostgresServer
from tocsin.stack.process import free_port
from tocsin_check.replication.replicate import Progress, Replicated, replicate
from tocsin_check.replication.unreplicate import unreplicate

Replicate = Callable[..., Awaitable[Replicated]]


@pytest.fixture
def run(source_url: str, replica_url: str, source_server: servers.Server) -> Replicate:
    """`replicate` between this test's two databases."""
    own = source_url.replace(source_server.url.rpartition("/")[0], source_server.own_url.rpartition("/")[0])

    async def call(*tables: str) -> Replicated:
        return await replicate(source_url=source_url, replica_url=replica_url, tables=tables, source_url_from_replica=own, patience=60)

    return call


async def until(condition: Callable[[], Awaitable[bool]], patience: float = 20) -> None:
    async with asyncio.timeout(patience):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_rows_and_later_changes_arrive(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute(
        "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text DEFAULT 'x', total numeric(10,2) CHECK (total >= 0))"
    )
    await source.execute("INSERT INTO orders (note, total) SELECT 'n' || i, i FROM generate_series(1, 500) i")
    done = await run("orders")
    assert done.tables == done.added == ("public.orders",)
    assert await replica.fetchval("SELECT count(*) FROM orders") == 500
    await source.execute("UPDATE orders SET note = 'changed' WHERE id = 7; DELETE FROM orders WHERE id = 8")

    async def arrived() -> bool:
        return await replica.fetchval("SELECT count(*) = 499 AND bool_or(note = 'changed') FROM orders")

    await until(arrived)


async def test_running_it_again_changes_nothing_and_a_table_can_be_added_later(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1), (2)")
    await run("a")
    assert (await run("a")).added == ()
    assert (await run("public.b")).added == ("public.b",)
    assert await replica.fetchval("SELECT count(*) FROM a") == 1
    assert await replica.fetchval("SELECT count(*) FROM b") == 2


async def test_the_schema_comes_along_types_composite_keys_generated_partitions_and_quoted_names(
    run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    await source.execute(r"""
        CREATE SCHEMA "Wéird";
        CREATE TYPE "Wéird".mood AS ENUM ('so', 'it''s', '\back');
        CREATE DOMAIN positive AS int CHECK (VALUE > 0);
        CREATE TYPE point3 AS (x float8, y float8, m "Wéird".mood);
        CREATE TABLE "Wéird"."T a.b" ("k 1" int, k2 uuid, m "Wéird".mood[] DEFAULT '{so}', p positive, z point3,
            doubled int GENERATED ALWAYS AS (p * 2) STORED, c text COLLATE "C", s serial, PRIMARY KEY ("k 1", k2), UNIQUE (p));
        CREATE INDEX ON "Wéird"."T a.b" (c) WHERE c <> '';
        CREATE TABLE days (day date, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
        CREATE TABLE days_2026 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (n);
        CREATE TABLE days_2026_1 PARTITION OF days_2026 FOR VALUES IN (1);
        CREATE TABLE days_rest PARTITION OF days DEFAULT;
        INSERT INTO "Wéird"."T a.b" VALUES (1, gen_random_uuid(), '{so,"it''s"}', 5, (1, 2, 'so'), DEFAULT, 'q');
        INSERT INTO days VALUES ('2026-05-05', 1), ('2020-01-01', 9);
    """)
    done = await run()
    assert set(done.tables) == {"Wéird.T a.b", "public.days"}
    assert done.left_out == ()
    for table in ('"Wéird"."T a.b"', "days"):
        query = f"SELECT string_agg(t::text, '|' ORDER BY t::text) FROM {table} t"
        assert await replica.fetchval(query) == await source.fetchval(query)
    shape = """
        SELECT string_agg(conrelid::regclass || pg_get_constraintdef(oid), '|' ORDER BY conrelid::regclass::text, conname) FROM pg_constraint
        WHERE contype IN ('p', 'u', 'c') AND conrelid <> 0
          AND connamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg%' OR nspname = 'tocsin_check')
    """
    assert await replica.fetchval(shape) == await source.fetchval(shape)
    assert await replica.fetchval("SELECT count(*) FROM days_2026_1") == 1


async def test_source_and_replica_may_be_databases_of_one_server(source_server: servers.Server, source: asyncpg.Connection, source_url: str) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    async with servers.database(source_server, "copy_on_the_same_server") as url:
        seen: list[Progress] = []
        own = source_url.replace(source_server.url.rpartition("/")[0], source_server.own_url.rpartition("/")[0])
        await replicate(source_url=source_url, replica_url=url, tables=["t"], source_url_from_replica=own, on_progress=seen.append, patience=60)
        assert seen[-1].phase == "done"
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT count(*) FROM t") == 2
        await connection.close()


async def test_everything_in_the_way_is_said_at_once_and_nothing_is_changed(run: Replicate, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute("""
        CREATE TABLE ok (id int PRIMARY KEY); CREATE TABLE keyless (id int); CREATE VIEW looked AS SELECT 1; CREATE UNLOGGED TABLE fast (id int PRIMARY KEY);
        CREATE TABLE full_row (id int); ALTER TABLE full_row REPLICA IDENTITY FULL;
        CREATE TABLE taken (id int PRIMARY KEY, a int); CREATE TABLE narrow (id int PRIMARY KEY, a int);
        CREATE TABLE typed (id int PRIMARY KEY, w varchar(9), n numeric, same_w varchar(5), same_n smallint, same_t timestamp(3), same_i interval);
    """)
    await replica.execute("CREATE TABLE typed (id bigint PRIMARY KEY, w varchar(5), n int, same_w varchar(9), same_n numeric, same_t timestamp, same_i text)")
    await replica.execute("CREATE TABLE taken (id int PRIMARY KEY, a int); INSERT INTO taken VALUES (1); CREATE TABLE narrow (id int PRIMARY KEY)")
    with pytest.raises(OperatorError) as raised:
        await run("ok", "keyless", "looked", "fast", "full_row", "nowhere", "taken", "narrow", "typed")
    message = str(raised.value)
    for part in (
        "typed.w is character varying(9) on the source and character varying(5) on the replica",
        "typed.n is numeric on the source and integer on the replica",
        "keyless has no primary key",
        "looked is a view",
        "fast is unlogged",
        "no table public.nowhere",
        "taken on the replica already has rows",
        "narrow on the replica lacks a",
    ):
        assert part in message, message
    assert "REPLICA IDENTITY FULL" in raised.value.fix
    assert "full_row" not in message
    assert "typed.same" not in message
    assert await source.fetchval("SELECT count(*) FROM pg_publication") == 0
    assert await replica.fetchval("SELECT to_regclass('ok')") is None


async def test_the_user_that_reads_the_rows_must_be_able_to(
    replica_url: str, source_url: str, source: asyncpg.Connection, source_server: servers.Server, replica: asyncpg.Connection
) -> None:
    """A copy as a user whom row security hides rows from would be complete and wrong."""
    name = f"reader_{source_url.rpartition('/')[2]}"
    own = f"postgresql://{name}:reader@{source_server.own_url.partition('@')[2].partition('/')[0]}/{source_url.rpartition('/')[2]}"
    await source.execute(f"""
        CREATE ROLE {name} LOGIN REPLICATION PASSWORD 'reader'; CREATE SCHEMA closed; CREATE TABLE closed.t (id int PRIMARY KEY);
        CREATE TABLE part (id int PRIMARY KEY, hidden int);
        CREATE TABLE secured (id int PRIMARY KEY); ALTER TABLE secured ENABLE ROW LEVEL SECURITY; INSERT INTO secured VALUES (1);
        GRANT SELECT (id) ON part TO {name}; GRANT SELECT ON secured, closed.t TO {name}""")
    urls = {"source_url": source_url, "replica_url": replica_url, "source_url_from_replica": own}
    try:
        with pytest.raises(OperatorError) as raised:
            await replicate(**urls)  # type: ignore[arg-type]
        message = str(raised.value)
        for part in (
            f"{name} may not use the schema closed of closed.t",
            f"{name} may not read hidden of public.part",
            "row security on public.secured hides rows",
        ):
            assert part in message, message
        assert len(raised.value.fix.splitlines()) == 3
        await source.execute(f"GRANT USAGE ON SCHEMA closed TO {name}; GRANT SELECT ON part TO {name}; ALTER ROLE {name} BYPASSRLS")
        await replicate(**urls, patience=60)  # type: ignore[arg-type]
        assert await replica.fetchval("SELECT count(*) FROM secured") == 1
    finally:
        await unreplicate(source_url=source_url, replica_url=replica_url)
        await source.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_row_filter_is_one_condition_on_one_table(source_url: str, replica_url: str, source: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    for where in ("id < 5); COMMIT; DROP TABLE other; --", "id < 5), TABLE other WHERE (true", "id < 5 --", "id <"):
        with pytest.raises(OperatorError, match="--where"):
            await replicate(source_url=source_url, replica_url=replica_url, tables=["t"], where=where)
    assert await source.fetchval("SELECT to_regclass('other')") == "other"
    assert await source.fetchval("SELECT count(*) FROM pg_publication") == 0


async def test_every_table_leaves_out_the_unlogged_ones_and_says_so(run: Replicate, source: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)")
    done = await run()
    assert (done.tables, done.left_out) == (("public.t",), ("public.fast: it is unlogged, so its changes leave no trace",))


async def test_the_replica_that_cannot_reach_the_source_is_found_before_anything_is_made(source_url: str, replica_url: str, source: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with pytest.raises(OperatorError, match="the replica can't reach the source") as raised:
        await replicate(
            source_url=source_url, replica_url=replica_url, tables=["t"], source_url_from_replica=f"postgresql://postgres@127.0.0.1:{free_port()}/x"
        )
    assert "--source-url-from-replica" in raised.value.fix
    assert await source.fetchval("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 0


async def test_one_database_as_both_sides_is_refused(source_url: str, source: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with pytest.raises(OperatorError, match="same database"):
        await replicate(source_url=source_url, replica_url=source_url, tables=["t"])


async def test_wal_level_slots_and_rights_are_named_with_their_fix(replica_url: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tocsin-wal-") as folder:
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder) / "plain", free_port(), configuration={**servers.FAST, "wal_level": "replica", "max_replication_slots": "1"})
        await server.start()
        try:
            admin = await asyncpg.connect(server.url())
            await admin.execute(
                "CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE weak LOGIN; GRANT CREATE ON DATABASE postgres TO weak; ALTER TABLE t OWNER TO weak"
            )
            await admin.close()
            weak = server.url().replace("postgres@", "weak@")
            with pytest.raises(OperatorError) as raised:
                await replicate(source_url=weak, replica_url=replica_url, tables=["t"])
        finally:
            await server.stop()
    assert "wal_level is replica" in str(raised.value)
    assert "weak may not replicate" in str(raised.value)
    assert "0 of the source's 1 replication slots are taken; the copy needs 2 more" in str(raised.value)
    assert "ALTER SYSTEM SET wal_level = 'logical'; then restart" in raised.value.fix
    assert 'ALTER ROLE "weak" REPLICATION;' in raised.value.fix
