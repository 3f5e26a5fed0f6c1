"""`tocsin doctor` on capture and delivery: each fault is provoked for real and named, its fix is carried out, and then nothing is found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_listener import Start, messages, start
from tests.integration.tocsin_listener.test_roles import Site, site
from tests.support.servers import POSTGRES_BIN
from tocsin.broker import api
from tocsin.cli.examine import broker, capture, delivery, pressure, services, source
from tocsin.cli.examine.delivery import clock
from tocsin.cli.examine.finding import Finding
from tocsin.settings import load_settings
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.postgres_server import PostgresServer
from tocsin.stack.process import free_port
from tocsin_listener.health import readiness
from tocsin_listener.install import install
from tocsin_listener.meters import Meters
from tocsin_listener.watch import watch

__all__ = ["site", "start"]


async def wrong(findings: AsyncIterator[Finding]) -> list[Finding]:
    """Those to mend."""
    return [finding async for finding in findings if not finding.ok]


async def only(findings: AsyncIterator[Finding], *words: str) -> Finding:
    """The one finding to mend, which says all of `words`."""
    (found,) = await wrong(findings)
    assert all(word in found.text for word in words), found
    assert found.fix, found
    return found


async def test_a_healthy_site_gives_no_finding(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE t1 PARTITION OF t DEFAULT")
    await watch(installed, ["t"], when="id > 0")
    async with start(stream_max_bytes="64MB") as settings:
        await installed.execute("INSERT INTO t VALUES (1)")
        await messages(nats, settings, 1)
        found = [f for part in (broker, delivery) async for f in part.examine(settings)]
        found += [f async for f in source.examine(settings)]
        # The test server leaves this one as PostgreSQL has it.
        assert [f for f in found if not f.ok and "max_slot_wal_keep_size" not in f.text] == []
        said = " ".join(f.text for f in found)
        for word in ("session of its own", "wal_level is logical", "t is watched", "a listener leads", "NOTIFY queue", "this source's alone", "clock agrees"):
            assert word in said


@pytest.fixture
async def watched(installed: asyncpg.Connection) -> asyncpg.Connection:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY LIST (id); CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)")
    # What runs after a row may write: only then the statements are numbered.
    await installed.execute("CREATE FUNCTION after() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    await installed.execute("CREATE TRIGGER after AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION after()")
    await watch(installed, ["t"], when="n > 0")
    assert await wrong(capture.examine(installed)) == []
    return installed


async def by_install(connection: asyncpg.Connection, fix: str) -> None:
    assert fix.startswith("tocsin install"), fix
    await install(connection)


async def by_sql(connection: asyncpg.Connection, fix: str) -> None:
    await connection.execute(fix)


MISSING = (
    ("DROP TRIGGER tocsin_1_update ON t1", ["no trigger for update on t1"], by_install),
    ("DROP TRIGGER tocsin_1_delete ON t", ["no trigger for delete on t"], by_install),
    ("ALTER TABLE t1 DISABLE TRIGGER tocsin_1_insert", ["don't fire: insert"], by_sql),
    ("ALTER TABLE t1 ENABLE REPLICA TRIGGER tocsin_1_begin", ["don't fire: begin"], by_sql),
    ("ALTER TABLE t1 DISABLE TRIGGER tocsin_1_mark_update", ["don't fire: mark_update"], by_sql),
    ("DROP EVENT TRIGGER tocsin_ddl", ["event trigger tocsin_ddl is missing"], by_install),
    ("ALTER EVENT TRIGGER tocsin_drop DISABLE", ["event trigger tocsin_drop is disabled"], by_sql),
    ("REVOKE USAGE ON SEQUENCE tocsin.seq FROM PUBLIC", ["writers may not draw"], by_sql),
    ("REVOKE USAGE ON SCHEMA tocsin FROM PUBLIC", ["writers may not draw"], by_sql),
)


async def test_what_is_missing_in_capture(watched: asyncpg.Connection) -> None:
    for fault, words, mend in MISSING:
        await watched.execute(fault)
        found = await only(capture.examine(watched), *words)
        assert found.fix is not None
        await mend(watched, found.fix)
        assert await wrong(capture.examine(watched)) == [], fault


async def test_what_changed_behind_the_event_triggers_back(watched: asyncpg.Connection) -> None:
    await watched.execute("ALTER EVENT TRIGGER tocsin_ddl DISABLE; ALTER EVENT TRIGGER tocsin_drop DISABLE")
    await watched.execute("CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2); CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE grown (id int PRIMARY KEY)")
    await watch(watched, ["gone", "grown"])
    await watched.execute("DROP TABLE gone; ALTER TABLE grown ADD COLUMN n int")
    found = {f.text: f.fix for f in await wrong(capture.examine(watched)) if "event trigger" not in f.text}
    partition = next(text for text in found if "no trigger for" in text)
    assert all(f"{op} on t2" in partition for op in ("insert", "update", "delete", "truncate"))
    assert any("grown has changed its shape" in text for text in found)
    gone = next(text for text in found if "is gone" in text)
    await watched.execute(str(found[gone]))
    await install(watched)
    await watched.execute("ALTER EVENT TRIGGER tocsin_ddl ENABLE; ALTER EVENT TRIGGER tocsin_drop ENABLE")
    assert await wrong(capture.examine(watched)) == []


async def test_a_watch_that_tells_keys_only(watched: asyncpg.Connection) -> None:
    await watched.execute("ALTER TABLE t DROP COLUMN n")
    found = await only(capture.examine(watched), "only keys are told", "n > 0")
    assert found.fix is not None
    assert found.fix.startswith("tocsin watch t --when")
    await watch(watched, ["t"])
    assert await wrong(capture.examine(watched)) == []


async def test_grants_of_the_listeners_user(site: Site) -> None:
    assert await wrong(capture.examine(site.listener)) == []
    await site.owner.execute("REVOKE ALL ON tocsin.progress FROM tocsin_listener; REVOKE EXECUTE ON FUNCTION tocsin.canary() FROM tocsin_listener")
    await site.owner.execute("REVOKE pg_read_all_stats FROM tocsin_listener")
    found = await only(capture.examine(site.listener), "tocsin_listener lacks", "tocsin.progress", "canary", "pg_read_all_stats")
    await site.owner.execute(str(found.fix).partition("   #")[0])
    assert await wrong(capture.examine(site.listener)) == []


async def test_an_installer_without_superuser_is_no_fault(site: Site) -> None:
    """What only a superuser could make is not asked of others."""
    found = [finding async for finding in capture.examine(site.installer)]
    assert all(finding.ok for finding in found)
    assert sum("looks every second" in finding.text for finding in found) == 2


@pytest.mark.parametrize(
    ("scope", "whose"),
    [("DATABASE {}", "for everybody"), ("ROLE ALL", "for everybody"), ("ROLE CURRENT_USER IN DATABASE {}", "for postgres"), ("SYSTEM", "for the whole server")],
)
async def test_triggers_silenced_by_a_setting(installed: asyncpg.Connection, source_url: str, scope: str, whose: str) -> None:
    name = await installed.fetchval("SELECT current_database()")
    await installed.execute(f"ALTER {scope.format(name)} SET session_replication_role = replica")
    await installed.execute("SELECT pg_reload_conf()")
    settings = load_settings(database_url=source_url)
    async with asyncio.timeout(10):
        while not (found := [f for f in await wrong(source.examine(settings)) if "session_replication_role" in f.text]):
            await asyncio.sleep(0.1)
    assert [whose in f.text for f in found] == [True]
    # One by one, as psql sends what is pasted.
    for statement in str(found[0].fix).partition("--")[0].strip().rstrip(";").split(";"):
        await installed.execute(statement)
    async with asyncio.timeout(10):
        while any("session_replication_role" in f.text for f in await wrong(source.examine(settings))):
            await asyncio.sleep(0.1)
    assert [f for f in await wrong(source.examine(settings)) if "session_replication_role" in f.text] == []


async def test_nobody_relays_and_the_journal_grows(installed: asyncpg.Connection, source_url: str) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    found = await only(pressure.examine(installed), "no listener leads")
    assert found.fix == "tocsin listener"
    await installed.execute("INSERT INTO t VALUES (1); UPDATE tocsin.journal SET at = now() - interval '1 hour'")
    assert any("1 events are not in the stream, the oldest for 3,6" in f.text for f in await wrong(pressure.examine(installed)))
    assert any("the journal has grown to" in f.text for f in await wrong(pressure.examine(installed, late=1e9, large=1)))
    writer = await asyncpg.connect(source_url)
    pid = await writer.fetchval("SELECT pg_backend_pid()")
    await writer.execute("BEGIN; INSERT INTO t VALUES (2)")
    old = next(f for f in await wrong(pressure.examine(installed, long=0)) if "transaction that has written" in f.text)
    assert f"pid {pid}" in old.text
    await installed.execute(str(old.fix).partition("or: ")[2])
    async with asyncio.timeout(5):
        while any("transaction that has written" in f.text for f in await wrong(pressure.examine(installed, long=0))):
            await asyncio.sleep(0.02)
    writer.terminate()


async def test_a_server_as_it_should_not_be(scratch: Path) -> None:
    """wal_level, the NOTIFY queue filled by a session that listens in a transaction, a forgotten prepared transaction."""
    configuration = {"wal_level": "replica", "max_notify_queue_pages": "64", "max_prepared_transactions": "2", "max_slot_wal_keep_size": "-1", "fsync": "off"}
    server = PostgresServer(scratch / "unfit", free_port(), configuration=configuration, bin_folder=POSTGRES_BIN)
    await server.start()
    try:
        async with contextlib.AsyncExitStack() as stack:
            connection, listening, other = [await asyncpg.connect(server.url()) for _ in range(3)]
            for opened in (connection, listening, other):
                stack.push_async_callback(opened.close, timeout=5)
            await install(connection)
            await listening.execute("LISTEN heard")
            await listening.execute("BEGIN; SELECT 1")
            for number in range(30):
                await connection.execute("SELECT pg_notify('heard', $1)", f"{number}" * 3900)
            await other.execute("BEGIN; CREATE TABLE made (n int); PREPARE TRANSACTION 'it''s forgotten'")
            found = [f async for f in source.examine(load_settings(database_url=server.url()))]
            assert any("wal_level is replica" in f.text and "ALTER SYSTEM SET wal_level = 'logical'" in str(f.fix) for f in found)
            assert any("max_slot_wal_keep_size is unlimited" in f.text for f in found)
            queue = next(f for f in found if "NOTIFY queue" in f.text)
            assert not queue.ok, queue
            assert str(await listening.fetchval("SELECT pg_backend_pid()")) in str(queue.fix)
            waiting = next(f for f in await wrong(pressure.examine(connection, long=0)) if "prepared transaction" in f.text)
            await connection.execute(str(waiting.fix).partition("--")[0])
            await listening.execute("COMMIT")
            left = await wrong(pressure.examine(connection, long=0))
            assert [f.text.split(":")[0] for f in left] == ["no listener leads"]
    finally:
        await server.stop()


async def test_a_stream_with_other_limits_replicas_or_storage(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    async with start(stream_max_age="1h") as settings:
        assert await wrong(broker.examine(settings)) == []
    for changed, words in (
        ({"stream_max_age": "2h"}, ["max_age", "TOCSIN_STREAM_MAX_AGE"]),
        ({"stream_max_bytes": "65MB"}, ["max_bytes", "TOCSIN_STREAM_MAX_BYTES"]),
        ({"stream_replicas": 3}, ["num_replicas", "TOCSIN_STREAM_REPLICAS"]),
    ):
        other = load_settings(**{**settings.model_dump(include=settings.model_fields_set), **changed})
        (found,) = await wrong(broker.examine(other))
        assert all(word in found.text + str(found.fix) for word in words), found
    async with start(stream_max_age="2h") as settings:
        assert await wrong(broker.examine(settings)) == [], "the listener mends it"
    await api(nats, f"STREAM.DELETE.{settings.stream_name}")
    await api(nats, f"STREAM.CREATE.{settings.stream_name}", {"name": settings.stream_name, "subjects": ["elsewhere.>"], "storage": "memory", "discard": "new"})
    texts = " ".join(f.text for f in await wrong(broker.examine(settings)))
    assert all(word in texts for word in ("does not bind", "has storage memory, not file", "has discard new, not old"))
    await api(nats, f"STREAM.DELETE.{settings.stream_name}")
    (found,) = await wrong(broker.examine(settings))
    assert "does not exist" in found.text


async def test_nats_that_acknowledges_before_it_writes(scratch: Path, source_url: str, installed: asyncpg.Connection) -> None:
    for sync, ok in (("2m", False), ("always", True)):
        monitor = free_port()
        server = NatsServer(scratch / f"sync-{sync}", free_port(), sync=sync, extra=f'http: "127.0.0.1:{monitor}"')
        await server.start()
        try:
            settings = load_settings(database_url=source_url, nats_url=server.url, nats_monitor_url=f"http://127.0.0.1:{monitor}")
            (found,) = [f async for f in broker.examine(settings) if "to the disk" in f.text]
            assert (found.ok, "sync_interval: always" in (found.text + str(found.fix))) == (ok, True)
            (hidden,) = [f async for f in broker.examine(load_settings(database_url=source_url, nats_url=server.url)) if "to the disk" in f.text]
            assert (hidden.ok, "TOCSIN_NATS_MONITOR_URL" in hidden.text) == (True, True)
            mistaken = load_settings(database_url=source_url, nats_url=server.url, nats_monitor_url=f"http://127.0.0.1:{server.port}")
            assert any("is not the monitoring page" in f.text for f in await wrong(broker.examine(mistaken)))
        finally:
            await server.stop()


async def test_two_systems_on_one_stream(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    async with start() as settings:
        assert await wrong(delivery.examine(settings)) == []
        # What a second system's listener does first.
        state = await api(nats, f"STREAM.INFO.{settings.stream_name}")
        await api(nats, f"STREAM.UPDATE.{settings.stream_name}", {**state["config"], "metadata": {**state["config"]["metadata"], "tocsin.epoch": "otherepoch"}})
        found = await only(delivery.examine(settings), "another system writes it too", "otherepoch")
        assert "TOCSIN_STREAM" in str(found.fix)
    async with start() as settings:
        assert await wrong(delivery.examine(settings)) == []
    await installed.execute("UPDATE tocsin.identity SET system_identifier = '42'")
    await only(delivery.examine(settings), "is a copy")
    await api(nats, "STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["other.>"]})
    await only(delivery.examine(settings.model_copy(update={"stream": "OTHER"})), "the settings name OTHER")
    await api(nats, "STREAM.DELETE.OTHER")


async def test_a_clock_that_is_wrong(start: Start, installed: asyncpg.Connection) -> None:
    """The source's, by a function that hides PostgreSQL's own in this one database."""
    name = await installed.fetchval("SELECT current_database()")
    async with start() as settings:
        await installed.execute(
            "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() - interval '1 minute' $$"
        )
        await installed.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
        found = await only(delivery.examine(settings), "the source's clock is 60.0 s behind")
        assert "set-ntp" in str(found.fix)
        await installed.execute(f"ALTER DATABASE {name} RESET search_path")
        assert await wrong(delivery.examine(settings)) == []


@pytest.mark.parametrize(("seconds", "ok"), [(0, True), (1.9, True), (-2.5, True), (-3.5, False), (2.5, False), (3600, False)])
def test_a_clock_is_judged_beyond_the_time_that_the_question_took(seconds: float, ok: bool) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    assert clock("a", now + timedelta(seconds=seconds), now - timedelta(seconds=1), now).ok is ok


def test_dropped_notifies_are_told() -> None:
    """The listener says it under /readyz, and doctor there."""
    meters = Meters()
    meters.carried_dropped.inc(3)
    assert services.dropped(msgspec.json.encode(readiness(meters).detail).decode()) == 3
    assert services.dropped("") == services.dropped("[]") == services.dropped('{"ready": true}') == 0
