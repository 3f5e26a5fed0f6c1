"""The roles of deploy/postgres: the parts work with just these rights, and the roles can do nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.integration.tocsin_check.test_history import served
from tests.integration.tocsin_check.test_service import tocsin, until
from tests.support import servers
from tests.support.servers import as_user
from tocsin.sql import load_queries
from tocsin_check import sessions
from tocsin_check.replication.replicate import replicate
from tocsin_check.replication.unreplicate import unreplicate
from tocsin_listener.install import install

ROLES = Path(__file__).parents[3] / "deploy" / "postgres"


async def grant(url: str, role: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute((ROLES / f"{role}.sql").read_text(encoding="utf-8"))
    await connection.close()


@pytest_asyncio.fixture
async def pair(scratch: Path) -> AsyncIterator[tuple[str, str]]:
    """Two servers of this test's own, because roles belong to servers; everything set up by a superuser, the roles granted."""
    number = len(list(scratch.glob("roles-source-*")))
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(servers.postgres(scratch, f"roles-source-{number}"))
        replica = await stack.enter_async_context(servers.postgres(scratch, f"roles-replica-{number}"))
        for server in (source, replica):
            connection = await asyncpg.connect(server.url)
            # As PostgreSQL 15 and later have it; docs/security.md says so for 14.
            await connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            await connection.close()
        connection = await asyncpg.connect(source.url)
        await connection.execute("""
            CREATE TABLE plain (id serial PRIMARY KEY, v text); INSERT INTO plain (v) SELECT 'v' || i FROM generate_series(1, 500) i;
            CREATE SCHEMA own; CREATE TABLE own.parted (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE own.p1 PARTITION OF own.parted DEFAULT;
            INSERT INTO own.parted SELECT generate_series(1, 50)""")
        await install(connection)
        await connection.execute("GRANT USAGE ON SCHEMA own TO PUBLIC")
        await connection.close()
        await grant(source.url, "replication")
        connection = await asyncpg.connect(source.url)
        await connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA own TO tocsin_replication")
        await connection.close()
        reaching = as_user(source.own_url, "tocsin_replication")
        await replicate(source_url=source.url, replica_url=replica.url, source_url_from_replica=reaching, patience=60)
        await grant(source.url, "checker_source")
        await grant(replica.url, "checker_replica")
        yield source.url, replica.url
        await unreplicate(source_url=source.url, replica_url=replica.url)


async def test_the_checker_and_tocsin_drift_work_with_the_least_rights(pair: tuple[str, str]) -> None:
    source_url, replica_url = (as_user(url, "tocsin_checker") for url in pair)
    urls = {"source_url": source_url, "replica_url": replica_url}
    code, out, err = await tocsin("drift", "--json", **urls)
    report = json.loads(out)
    assert (code, report["status"]) == (0, "in_sync"), out + err
    assert [(t["table"], t["rows"]) for t in report["tables"]] == [("own.parted", 50), ("public.plain", 500)]
    codes = {f["code"] for f in report["replication"]["findings"]}
    assert codes == {"sequence-behind"}, "what the checker must see it sees, and nothing is called broken for want of a right"
    owner = await asyncpg.connect(pair[1])
    source = await asyncpg.connect(pair[0])
    await owner.execute("UPDATE plain SET v = 'changed' WHERE id = 3")
    code, out, err = await tocsin("drift", "--show-values", **urls)
    assert (code, "source 'v3', replica 'changed'" in out) == (1, True), out + err

    code, out, err = await tocsin("drift", "--repair", "--apply", **urls)
    assert (code, "GRANT SET ON PARAMETER session_replication_role" in err) == (2, True), out + err
    assert await owner.fetchval("SELECT v FROM plain WHERE id = 3") == "changed"
    await source.fetch("SELECT tocsin.watch('plain')")
    reader = await sessions.open_reader(source_url, sessions.SOURCE_SETTING)
    queries = load_queries("tocsin_check", "sql/changes.sql")
    assert [tuple(row)[:2] for row in await reader.fetch(queries["watched"])] == [("public", "plain")]
    await reader.fetchval(queries["reached"])
    await reader.close()

    async def visit(client: object) -> None:
        async def published() -> bool:
            return bool(await source.fetchval("SELECT count(*) FROM tocsin.journal WHERE subject = 'drift.public.plain'"))

        async def written() -> bool:
            return bool(await owner.fetchval("SELECT count(*) FROM tocsin_check.history WHERE status = 'drift'"))

        await until(published)
        await until(written)

    await served(visit, database_url=source_url, replica_url=replica_url)
    await source.execute("ALTER TABLE plain ENABLE ROW LEVEL SECURITY")
    code, out, err = await tocsin("drift", "plain", "--json", **urls)
    report = json.loads(out)["tables"][0]
    assert (code, report["status"], "row-level security" in report["reason"]) == (2, "unauditable", True), out + err
    await owner.close()
    await source.close()


async def test_the_checkers_role_can_change_nothing(pair: tuple[str, str]) -> None:
    for url in pair:
        connection = await asyncpg.connect(as_user(url, "tocsin_checker"))
        for statement in (
            "INSERT INTO plain VALUES (9999)",
            "UPDATE plain SET v = ''",
            "DELETE FROM plain",
            "TRUNCATE plain",
            "CREATE TABLE mine (id int)",
            "CREATE SCHEMA mine",
            "SELECT setval('plain_id_seq', 1)",
            "DROP TABLE tocsin_check.marker",
            "SELECT pg_read_file('postgresql.conf')",
            "ALTER SUBSCRIPTION tocsin DISABLE",
            "DROP PUBLICATION tocsin",
            "SELECT subconninfo FROM pg_subscription",
        ):
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError)):
                await connection.execute(statement)
        await connection.close()


async def test_the_replication_role_reads_and_the_changes_still_arrive(pair: tuple[str, str]) -> None:
    connection = await asyncpg.connect(as_user(pair[0], "tocsin_replication"))
    for statement in ("INSERT INTO plain VALUES (9999)", "DELETE FROM own.parted", "CREATE TABLE mine (id int)", "SELECT * FROM tocsin.journal"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()
    source, replica = await asyncpg.connect(pair[0]), await asyncpg.connect(pair[1])
    await source.execute("INSERT INTO own.parted VALUES (51)")
    async with asyncio.timeout(20):
        while not await replica.fetchval("SELECT bool_or(id = 51) FROM own.parted"):
            await asyncio.sleep(0.05)
    await source.close()
    await replica.close()


async def test_the_listener_carries_events_with_the_least_rights(pair: tuple[str, str], nats_server: servers.Server) -> None:
    from nats.aio.client import Client

    from tocsin.settings import load_settings
    from tocsin.stack.process import free_port
    from tocsin_listener.__main__ import serve
    from tocsin_listener.watch import watch

    source = await asyncpg.connect(pair[0])
    await watch(source, tables=["plain"])
    await grant(pair[0], "listener")
    settings = load_settings(database_url=as_user(pair[0], "tocsin_listener"), nats_url=nats_server.url, source="roles", listener_port=free_port())
    stop, client = asyncio.Event(), Client()
    await client.connect(nats_server.url)
    heard = await client.subscribe("pg.roles.change.public.plain.insert")
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        try:
            await source.execute("INSERT INTO plain (v) VALUES ('rung')")
            message = await heard.next_msg(timeout=30)
            assert json.loads(message.data)["data"]["new"]["v"] == "rung"
        finally:
            stop.set()
    await client.close()
    listener = await asyncpg.connect(as_user(pair[0], "tocsin_listener"))
    for statement in ("SELECT * FROM plain", "INSERT INTO plain VALUES (9999)", "CREATE TABLE mine (id int)", "SELECT * FROM tocsin_check.marker"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await listener.execute(statement)
    await listener.close()
    await source.close()
