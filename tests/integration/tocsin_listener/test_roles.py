"""Installer, listener and writer with the least rights: each does its work, and each forbidden thing is refused by PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_listener import listening, messages
from tests.support.servers import Server, as_user
from tocsin_listener.backfill import backfill
from tocsin_listener.install import install, uninstall
from tocsin_listener.leader import Lead
from tocsin_listener.progress import Progress
from tocsin_listener.quarantine import retry
from tocsin_listener.watch import unwatch, watch

ROLES = Path(__file__).parents[3] / "deploy" / "postgres"
WRITER = "tocsin_test_writer"


@dataclass(slots=True)
class Site:
    """A database whose table `t` belongs to its superuser; each role has a connection of its own."""

    url: str
    owner: asyncpg.Connection
    installer: asyncpg.Connection
    listener: asyncpg.Connection
    writer: asyncpg.Connection


@pytest_asyncio.fixture
async def site(source: asyncpg.Connection, source_url: str) -> AsyncIterator[Site]:
    """Installed by the installer, granted to the listener, written by the writer, who has no right on `tocsin`."""
    async with contextlib.AsyncExitStack() as stack:

        async def connected(user: str) -> asyncpg.Connection:
            connection = await asyncpg.connect(as_user(source_url, user))
            stack.push_async_callback(connection.close)
            return connection

        await source.execute((ROLES / "installer.sql").read_text())
        await source.execute(f"DROP ROLE IF EXISTS {WRITER}; CREATE ROLE {WRITER} LOGIN; CREATE TABLE t (id int PRIMARY KEY, n int)")
        await source.execute(f"GRANT INSERT, SELECT, UPDATE, DELETE, TRUNCATE ON t TO {WRITER}; GRANT TRIGGER, SELECT, UPDATE ON t TO tocsin_installer")
        installer = await connected("tocsin_installer")
        await install(installer)
        await source.execute((ROLES / "listener.sql").read_text())
        await watch(installer, ["t"])
        try:
            yield Site(source_url, source, installer, await connected("tocsin_listener"), await connected(WRITER))
        finally:
            await stack.aclose()
            await source.execute("".join(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role};" for role in (WRITER, "tocsin_listener", "tocsin_installer")))


FORBIDDEN = (
    "INSERT INTO tocsin.journal (leaf, stmt, subject, type, data) VALUES (0, 1, 'event.forged', 'forged', '{}')",
    "UPDATE tocsin.journal SET data = '{}'",
    "DELETE FROM tocsin.journal",
    "TRUNCATE tocsin.journal_0",
    "DROP TABLE tocsin.journal_0",
    "UPDATE tocsin.progress SET stream_sequence = 0",
    "DELETE FROM tocsin.progress",
    "UPDATE tocsin.identity SET max_event = 1",
    "UPDATE tocsin.identity SET version = 0",
    "DELETE FROM tocsin.identity",
    "DELETE FROM tocsin.quarantine",
    "UPDATE tocsin.quarantine SET retried = 1",
    "UPDATE tocsin.watched SET condition = 'true'",
    "INSERT INTO tocsin.watched (relation, ops, route, old, exact_numbers) VALUES ('t', '{insert}', '{}', 'full', false)",
    "SELECT tocsin.watch('t')",
    "SELECT tocsin.unwatch('t')",
    "SELECT tocsin.forget(1)",
    "SELECT tocsin.append('event.forged', 'forged', NULL, '{}')",
    "SELECT tocsin.report_drift('public', 't', '{}')",
    "SELECT setval('tocsin.seq', 1)",
    "SELECT setval('tocsin.leaf', 1)",
    "CREATE TABLE tocsin.mine (n int)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION tocsin.canary(n int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP SCHEMA tocsin CASCADE",
    "ALTER TABLE t DISABLE TRIGGER ALL",
    "SELECT * FROM t",
    "INSERT INTO t VALUES (9, 9)",
    "UPDATE t SET n = 0",
    "DELETE FROM t",
    "TRUNCATE t",
    "SET session_replication_role = replica",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' AND backend_type = 'client backend'",
)


async def test_the_listeners_role_carries_events_and_can_do_nothing_else(site: Site, nats: Client, nats_server: Server) -> None:
    async with listening(as_user(site.url, "tocsin_listener"), nats_server, channels="heard") as settings:
        await site.writer.execute("INSERT INTO t VALUES (1, 1); UPDATE t SET n = 2; DELETE FROM t; TRUNCATE t; NOTIFY heard")
        found = await messages(nats, settings, 5)
        assert [m.subject.rpartition(".")[2] for m in found] == ["insert", "update", "delete", "truncate", "heard"]
    for statement in FORBIDDEN:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await site.listener.execute(statement)


async def test_the_listeners_role_sees_whose_transaction_is_the_oldest(site: Site, nats_server: Server) -> None:
    await site.writer.execute("BEGIN; INSERT INTO t VALUES (1, 1)")
    pid = await site.writer.fetchval("SELECT pg_backend_pid()")
    async with listening(as_user(site.url, "tocsin_listener"), nats_server) as settings, httpx.AsyncClient() as client, asyncio.timeout(15):
        while f'tocsin_oldest_writer_seconds{{pid="{pid}"}}' not in (await client.get(f"http://127.0.0.1:{settings.listener_port}/metrics")).text:
            await asyncio.sleep(0.05)
    await site.writer.execute("ROLLBACK")


async def test_the_listeners_role_empties_the_journal_and_the_cursors_table(site: Site) -> None:
    lead = Lead(site.listener)
    assert await lead.try_acquire()
    await site.writer.execute("INSERT INTO t VALUES (1, 1)")
    now = await site.listener.fetchval("SELECT pg_current_snapshot()::text")
    await site.listener.execute("INSERT INTO tocsin.progress (leaf, n, reached, stream_sequence) VALUES (1, 19999, $1::text::pg_snapshot, 1)", now)
    progress = Progress(lead)
    cursor = await progress.cursor()
    assert cursor is not None
    await site.listener.execute("INSERT INTO tocsin.progress (leaf, n, reached, stream_sequence) VALUES (0, 7, $1::text::pg_snapshot, 1)", now)
    await progress.store(cursor)
    assert await site.owner.fetchval("SELECT count(*) FROM tocsin.progress WHERE leaf = 0") == 1, "the row 7 went, the row 20000 came"
    emptied = None
    for _ in range(8):
        emptied = await site.listener.fetchval("SELECT tocsin.empty_next_leaf(0, interval '0')")
        assert emptied is not None
        await site.listener.execute("SELECT tocsin.advance($1)", emptied)
    assert await site.owner.fetchval("SELECT count(*) FROM tocsin.journal") == 0


async def test_a_writer_needs_no_right_on_the_schema_and_has_none(site: Site) -> None:
    await site.writer.execute("INSERT INTO t VALUES (1, 1)")
    assert await site.owner.fetchval("SELECT count(*) FROM tocsin.journal") == 1
    for statement in (
        "SELECT * FROM tocsin.journal",
        "INSERT INTO tocsin.journal (leaf, stmt, subject, type, data) VALUES (0, 1, 'event.forged', 'forged', '{}')",
        "SELECT * FROM tocsin.progress",
        "SELECT * FROM tocsin.watched",
        "SELECT setval('tocsin.seq', 1)",
        "SELECT last_value FROM tocsin.seq",
        "SELECT tocsin.advance(1)",
        "SELECT tocsin.canary()",
        "SELECT tocsin.carry('c', 'p', 1)",
        "SELECT tocsin.append('s', 't', NULL, '{}')",
        "SELECT tocsin.watch('t')",
        "SELECT tocsin.empty_next_leaf(0, interval '0')",
        "SELECT tocsin.refresh_all()",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await site.writer.execute(statement)


async def test_the_installer_watches_backfills_retries_and_removes_without_superuser(site: Site) -> None:
    await site.writer.execute("INSERT INTO t SELECT g, g FROM generate_series(1, 10) AS g")
    assert (await backfill(site.installer, "t")).written == 10
    assert await retry(site.installer) == []
    await watch(site.installer, ["t"], old="full", when="n > 3")
    await site.writer.execute("UPDATE t SET n = n + 1 WHERE id IN (1, 9)")
    assert await site.owner.fetchval("SELECT array_agg(key) FROM tocsin.events WHERE subject LIKE '%update'") == ["9"]
    assert await unwatch(site.installer, ["t"]) == ["t"]
    assert await uninstall(site.installer)
    assert await site.owner.fetchval("SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass") == 0
