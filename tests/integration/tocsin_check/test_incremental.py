"""Audits of what changed, from a real journal through a real stream: what they find, what they leave alone, and when they refuse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.support import servers
from tocsin import broker
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.watch import incremental
from tocsin_check.watch.changes import Changes
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.feed import Feed, follow
from tocsin_check.watch.report import Proof, TableReport

Setup = Callable[..., Awaitable[None]]


class Room:
    """A listener, a feed and a checker, each round of which the test calls for itself."""

    def __init__(self, checker: Checker, changes: Changes, feed: Feed, sides: Sides) -> None:
        self.checker, self.changes, self.feed, self.sides = checker, changes, feed, sides

    async def round(self) -> TableReport:
        """One turn of the checker over the table t."""
        tables = [t for t in await self.checker.take_stock(self.sides) if isinstance(t, Comparable)]
        await self.checker._one_round(self.sides, tables)
        return self.table

    async def full(self) -> TableReport:
        [table] = [t for t in await self.checker.take_stock(self.sides) if isinstance(t, Comparable) and t.name.name == "t"]
        await self.checker.auditor.audit_table(self.sides, table)
        return self.table

    @property
    def table(self) -> TableReport:
        return next(t for t in self.checker.report().tables if t.table == "public.t")

    async def followed(self) -> TableReport:
        """After it: the feed has joined, a full audit was made since, and changes made by now are known."""
        async with asyncio.timeout(20):
            while self.changes.obstacle("public.t") is not None:
                if self.feed._client is not None:
                    await self.full()
                await asyncio.sleep(0.05)
        return self.table

    async def told(self) -> TableReport:
        """Rounds until an incremental proof covers what is committed now."""
        position = await self.sides.source.fetchval("SELECT pg_current_wal_insert_lsn()::text")
        async with asyncio.timeout(30):
            while True:
                report = await self.round()
                proof = proofs(report).get("incremental")
                if proof and await self.sides.source.fetchval("SELECT $1::text::pg_lsn >= $2::text::pg_lsn", proof.lsn, position):
                    return report
                await asyncio.sleep(0.1)


def proofs(report: TableReport) -> dict[str, Proof]:
    return {proof.by: proof for proof in report.proofs}


@pytest_asyncio.fixture
async def room(source_url: str, replica_url: str, source: asyncpg.Connection, nats_server: servers.Server) -> AsyncIterator[Callable[..., object]]:
    @contextlib.asynccontextmanager
    async def running(**watch: object) -> AsyncIterator[Room]:
        from tocsin_listener.__main__ import serve
        from tocsin_listener.install import install
        from tocsin_listener.watch import watch as watch_tables

        await install(source)
        await watch_tables(source, tables=["public.t"], **watch)  # type: ignore[arg-type]
        settings = load_settings(database_url=source_url, replica_url=replica_url, nats_url=nats_server.url, listener_port=free_port(), stream_max_bytes="64MB")
        changes = Changes()
        feed = Feed(changes, stream=settings.stream_name, prefix="pg", source=settings.source_name)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(settings, stop))
            following = group.create_task(follow(feed, settings.nats_servers, settings.nats_login))
            try:
                async with open_sides(source_url, replica_url) as sides:
                    checker = Checker(source_url, replica_url, pace=Pace(), followed=(changes, feed))
                    yield Room(checker, changes, feed, sides)
            finally:
                stop.set()
                following.cancel()

    yield running


@pytest.fixture(autouse=True)
def no_table_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a sweep comes when the test lets it."""
    monkeypatch.setattr(incremental, "SMALL", 0)
    monkeypatch.setattr(incremental, "SWEEP_SHARE", 1e-9)


async def _fill(source: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 3000) i")


async def test_only_what_changed_is_read_and_the_position_is_not_overstated(
    setup: Setup, room: Callable[..., contextlib.AbstractAsyncContextManager[Room]], source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    """A row that drifts with its change is found at once; one changed on the replica alone stays for the sweep, and the whole proof stays old."""
    await _fill(source)
    await setup()
    async with room() as at:
        whole = await at.followed()
        await replica.execute("UPDATE t SET v = 'unseen' WHERE id = 5")
        await replica.execute("ALTER TABLE t DISABLE TRIGGER ALL; CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        await replica.execute(
            "CREATE TRIGGER no BEFORE DELETE ON t FOR EACH ROW WHEN (old.id = 9) EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no"
        )
        await source.execute("DELETE FROM t WHERE id IN (9, 10); UPDATE t SET v = 'w' WHERE id = 11; INSERT INTO t VALUES (4000, 'n')")
        report = await at.told()
        assert (report.status, report.extra, report.missing, report.different) == ("drift", 1, 0, 0)
        assert report.sample[0].key == {"id": 9}
        assert (report.verified_lsn, report.verified_by) == (whole.verified_lsn, "full")
        assert proofs(report)["incremental"].rows <= 5
        assert (report.dirty, report.unfollowed) == (0, None)
        await replica.execute("DROP TRIGGER no ON t; DELETE FROM t WHERE id = 9")
        report = await at.round()
        assert report.status == "in_sync", "what had drifted is looked at again each time"
        at.checker.incremental._sweeps["public.t"].due = 0  # type: ignore[union-attr]
        report = await at.round()
        assert (report.status, report.different, report.verified_by) == ("drift", 1, "sweep")
        assert report.sample[0].key == {"id": 5}
        assert report.verified_at is not None
        assert whole.verified_at is not None
        assert report.verified_at > whole.verified_at


async def test_a_changed_key_is_looked_for_under_its_old_value_too(
    setup: Setup, room: Callable[..., contextlib.AbstractAsyncContextManager[Room]], source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    """The subscriber leaves the old row behind where its delete does not come; only the old key shows it."""
    await source.execute(
        """CREATE TABLE t (a timestamptz, b numeric(10,3), "c ""x" text, d bool, v text, PRIMARY KEY (a, b, "c ""x", d));
           INSERT INTO t SELECT timestamptz '2026-01-01' + i * interval '1 us', i / 7.0, 'k' || i, i % 2 = 0, 'v' FROM generate_series(1, 2000) i"""
    )
    await setup()
    async with room() as at:
        await at.followed()
        await replica.execute("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        await replica.execute("CREATE TRIGGER no BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no")
        await source.execute("""UPDATE t SET "c ""x" = 'new', b = 5000.125, a = a + interval '1 day', d = NOT d WHERE "c ""x" = 'k77'""")
        await source.execute("""INSERT INTO t VALUES ('2026-05-05 01:02:03.000004+05', -0.5, '', true, NULL)""")
        report = await at.told()
        assert (report.status, report.missing, report.extra, report.different) == ("drift", 1, 1, 0)
        assert {row.key['c "x']: row.state for row in report.sample} == {"new": "missing", "k77": "extra"}
        assert proofs(report)["incremental"].rows <= 3
        assert report.unfollowed is None


@pytest.mark.parametrize("watch", [{"ops": ["insert", "update"]}, {"when": "id > 5"}, {"columns": ["id"]}, {"old": "none"}])
async def test_a_watch_that_leaves_something_out_is_never_followed(
    watch: dict[str, object], setup: Setup, room: Callable[..., contextlib.AbstractAsyncContextManager[Room]], source: asyncpg.Connection
) -> None:
    await _fill(source)
    await setup()
    async with room(**watch) as at:
        async with asyncio.timeout(20):
            while at.feed._client is None:
                await asyncio.sleep(0.05)
        report = await at.full()
        report = await at.round()
        assert (report.dirty, report.status) == (None, "in_sync")
        assert "does not watch it with every operation" in (report.unfollowed or "")


async def test_disabled_triggers_truncation_and_a_stream_made_anew_need_a_full_audit(
    setup: Setup,
    room: Callable[..., contextlib.AbstractAsyncContextManager[Room]],
    source: asyncpg.Connection,
    replica: asyncpg.Connection,
    nats: Client,
) -> None:
    await _fill(source)
    await setup()
    async with room() as at:
        await at.followed()
        await source.execute("ALTER TABLE t DISABLE TRIGGER USER")
        assert "does not watch" in ((await at.round()).unfollowed or "")
        await source.execute("ALTER TABLE t ENABLE TRIGGER USER")
        assert (await at.round()).unfollowed is not None, "what changed meanwhile was not told"
        await at.followed()
        assert (await at.round()).unfollowed is None
        await replica.execute("ALTER TABLE t ADD COLUMN w int DEFAULT 1")
        await source.execute("ALTER TABLE t ADD COLUMN w int DEFAULT 2")
        assert (await at.round()).unfollowed == "its columns have changed"
        await at.followed()
        assert at.table.different == 3000, "no event has told of it"
        await replica.execute("UPDATE t SET w = 2")
        await at.followed()
        await source.execute("TRUNCATE t; INSERT INTO t VALUES (1, 'x')")
        async with asyncio.timeout(20):
            while at.changes.obstacle("public.t") is None:
                await asyncio.sleep(0.02)
        assert "truncated" in (at.changes.obstacle("public.t") or "")
        await at.followed()
        await broker.api(nats, f"STREAM.DELETE.{at.feed._stream}")
        async with asyncio.timeout(20):
            while at.changes.obstacle("public.t") is None:
                await asyncio.sleep(0.02)
        await source.execute("INSERT INTO t VALUES (2, 'y')")
        assert (await at.followed()).rows == 2, "the listener has made it anew, and the feed has joined it"


async def test_writers_under_an_incremental_audit_cause_no_false_alarm_and_hide_nothing(
    setup: Setup, room: Callable[..., contextlib.AbstractAsyncContextManager[Room]], source: asyncpg.Connection, source_url: str, replica: asyncpg.Connection
) -> None:
    await _fill(source)
    await setup()
    stop = asyncio.Event()

    async def write(first: int) -> None:
        connection = await asyncpg.connect(source_url)
        number = 0
        while not stop.is_set():
            number += 1
            await connection.execute(
                "UPDATE t SET v = $1, id = id + $2 WHERE id = $3", str(number), 10_000 * (-1) ** number, first + 10_000 * (number % 2 == 0)
            )
        await connection.close()

    async with room() as at, asyncio.TaskGroup() as group:
        await at.followed()
        for first in (1, 2, 3):
            group.create_task(write(first))
        try:
            for _ in range(15):
                report = await at.round()
                assert report.status in ("in_sync", "pending"), report
                assert report.unfollowed is None
            await replica.execute("UPDATE t SET v = 'planted' WHERE id = 100")
            await source.execute("UPDATE t SET v = v WHERE id = 101")
            await replica.execute("UPDATE t SET v = 'planted' WHERE id = 101")
            report = await at.told()
            assert [row.key["id"] for row in report.sample] in ([101], []), "the update may have mended it"
        finally:
            stop.set()


async def test_a_table_that_was_cut_off_for_a_while_is_read_wholly(
    setup: Setup, room: Callable[..., contextlib.AbstractAsyncContextManager[Room]], source: asyncpg.Connection
) -> None:
    """What changed meanwhile was told by the stream, and never reached the replica."""
    await _fill(source)
    await setup()
    async with room() as at:
        await at.followed()
        await source.execute("ALTER PUBLICATION tocsin DROP TABLE t")
        await source.execute("INSERT INTO t VALUES (5000, 'missed')")
        assert (await at.round()).status == "unauditable"
        await source.execute("ALTER PUBLICATION tocsin ADD TABLE t")
        report = await at.round()
        assert (report.unfollowed, report.status) == ("it could not be audited for a while", "unauditable")
        report = await at.followed()
        assert (report.status, report.missing) == ("drift", 1)


@pytest.mark.parametrize(("seconds", "followed"), [(40.0, True), (90.0, False)])
async def test_a_stream_that_is_joined_late_is_followed_from_an_early_full_audit_on(
    seconds: float, followed: bool, setup: Setup, room: Callable[..., contextlib.AbstractAsyncContextManager[Room]], source: asyncpg.Connection
) -> None:
    """A minute after an audit that took 40 s, and not after one that took 90 s: it rests as long as it took, once."""
    await _fill(source)
    await setup()
    async with room() as at:
        await at.followed()
        at.changes.lost("NATS is away")
        at.changes.begin("joined late")
        entry = at.checker.ledger.get("public.t")
        assert entry is not None
        assert entry.audited is not None
        entry.seconds, entry.audited = seconds, entry.audited - timedelta(minutes=1)
        await at.round()
        report = await at.round()
        assert (report.unfollowed is None) is followed, report.unfollowed
        assert (report.proofs[0].at == entry.audited) is followed
