"""The checker while links are cut or frozen, tables go and the replica's disk is full: it says so, nothing hangs, nothing unproven is in sync."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
import pytest_asyncio

from tests.faults.test_check_faults import Pair, running_pair, until
from tests.support.proxy import TcpProxy
from tocsin.stack.postgres_server import PostgresServer
from tocsin_check import sessions
from tocsin_check.auditing import audit as audit_module
from tocsin_check.fencing.pace import Pace
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.report import TableReport

ROWS = 120_000


@pytest_asyncio.fixture(scope="module")
async def pair() -> AsyncIterator[Pair]:
    """With a table of several blocks beside t."""
    async with running_pair() as both:
        async with both.on(both.source) as source:
            await source.execute(f"CREATE TABLE many (id int PRIMARY KEY, v text); INSERT INTO many SELECT i, 'v' FROM generate_series(1, {ROWS}) i")
        await replicate(source_url=both.source.url(), replica_url=both.replica.url(), tables=["many"], patience=60)
        yield both


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an audit has a middle."""
    for name in ("FIRST_BLOCK", "LARGEST_BLOCK"):
        monkeypatch.setattr(audit_module, name, ROWS // 12)


@contextlib.asynccontextmanager
async def checking(checker: Checker) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run) for run in (checker.run_audits(), checker.run_pulse())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def table(checker: Checker, name: str = "public.many") -> TableReport:
    return next((t for t in checker.report().tables if t.table == name), TableReport(table=name))


def through(url: str, own: int, proxy: TcpProxy) -> str:
    return url.replace(f":{own}/", f":{proxy.port}/")


@pytest.mark.parametrize("how", ["cut", pytest.param("frozen", marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["source", "replica"])
async def test_a_link_lost_in_the_middle_of_an_audit_proves_nothing_and_comes_back(side: str, how: str, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "PATIENCE", {"read": 2.0, "mark": 2.0})
    server = pair.source if side == "source" else pair.replica
    async with TcpProxy(server.port) as proxy:
        urls = {"source": pair.source.url(), "replica": pair.replica.url(), side: through(server.url(), server.port, proxy)}
        checker = Checker(urls["source"], urls["replica"], pace=Pace(rows_per_second=ROWS // 3))
        async with checking(checker):
            audit = checker.ask(("public.many",))
            await until(lambda: audit.rows > 0)
            assert audit.rows < ROWS
            before: datetime | None = table(checker).verified_at
            proxy.refuse = True
            if how == "cut":
                proxy.cut()
            else:
                proxy.freeze()
            await until(audit.finished.is_set)
            assert audit.status == "failed"
            await until(lambda: checker.trouble is not None and checker.report().status in ("stale", "unknown", "lagging"))
            assert table(checker).verified_at == before
            proxy.refuse = False
            proxy.cut()
            proxy.thaw()
            await until(lambda: checker.report().status == "in_sync")
            assert table(checker).rows == ROWS


@pytest.mark.parametrize("side", ["source", "replica"])
async def test_a_farewell_that_comes_well_before_the_end_of_the_connection_is_survived(side: str, pair: Pair) -> None:
    """As from a server that shuts down: the next statement meets a connection that is over, though it is still open."""
    server = pair.source if side == "source" else pair.replica
    async with TcpProxy(server.port) as proxy, pair.on(server) as connection:
        proxy.linger = 1.5
        urls = {"source": pair.source.url(), "replica": pair.replica.url(), side: through(server.url(), server.port, proxy)}
        checker = Checker(urls["source"], urls["replica"])
        async with checking(checker):
            await until(lambda: checker.report().status == "in_sync")
            ours = await connection.fetchval("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'tocsin check%'")
            assert ours >= 2
            await until(lambda: checker.trouble is not None)
            proxy.linger = 0
            await until(lambda: checker.trouble is None and checker.report().status == "in_sync")


async def test_a_source_that_takes_no_marker_is_told_and_waited_for(pair: Pair) -> None:
    """Such as one whose disk is full: it answers reads, and nothing can be proven."""
    async with pair.on(pair.source) as source:
        checker = Checker(pair.source.url(), pair.replica.url())
        async with checking(checker):
            await until(lambda: checker.report().status == "in_sync")
            await source.execute("""
                CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no space left on device' USING ERRCODE = 'disk_full'; END$$;
                CREATE TRIGGER no_space BEFORE INSERT OR UPDATE ON tocsin_check.marker FOR EACH ROW EXECUTE FUNCTION no_space()""")
            await until(lambda: checker.trouble is not None and "no space left" in checker.trouble and checker.report().status != "in_sync")
            await source.execute("DROP FUNCTION no_space CASCADE")
            await until(lambda: checker.trouble is None and checker.report().status == "in_sync")


@pytest.mark.parametrize("side", ["source", "replica"])
async def test_a_table_dropped_in_the_middle_of_its_audit_is_told_and_the_others_go_on(side: str, pair: Pair) -> None:
    name = f"brief_{side}"
    async with pair.on(pair.source) as source, pair.on(pair.replica) as replica:
        await source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} SELECT generate_series(1, {ROWS})")
        await replicate(source_url=pair.source.url(), replica_url=pair.replica.url(), tables=[name], patience=60)
        checker = Checker(pair.source.url(), pair.replica.url(), pace=Pace(rows_per_second=ROWS // 2))
        async with checking(checker):
            audit = checker.ask((f"public.{name}",))
            await until(lambda: audit.rows > 0)
            await (source if side == "source" else replica).execute(f"DROP TABLE {name}")
            await until(audit.finished.is_set)
            assert table(checker, f"public.{name}").status != "in_sync"
            checker.pace.rows_per_second = None
            await until(lambda: table(checker).status == "in_sync" and table(checker, "public.t").status == "in_sync")
            assert checker.report().status != "in_sync" or side == "source", "what is subscribed and gone is never passed over"
        if side == "source":
            await replica.execute("ALTER SUBSCRIPTION tocsin REFRESH PUBLICATION")
            await replica.execute(f"DROP TABLE {name}")
        else:
            await source.execute(f"ALTER PUBLICATION tocsin DROP TABLE {name}; DROP TABLE {name}")
            await replica.execute("ALTER SUBSCRIPTION tocsin REFRESH PUBLICATION")


async def _restart(server: PostgresServer, largest_file: int) -> None:
    """How large a file the server's processes may write, which they inherit from us: what a full disk is to them."""
    await server.stop()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        await server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
async def test_a_replica_whose_disk_is_full_is_behind_and_never_in_sync(pair: Pair) -> None:
    checker = Checker(pair.source.url(), pair.replica.url())
    async with pair.on(pair.source) as source, checking(checker):
        # Files of WAL have 16 MB; the table must not grow beyond.
        await _restart(pair.replica, 20 << 20)
        try:
            await until(lambda: checker.alive and checker.report().status == "in_sync")
            await source.execute("ALTER TABLE many ALTER v SET STORAGE PLAIN; INSERT INTO many SELECT -i, repeat('x', 1000) FROM generate_series(1, 30000) i")
            await until(lambda: checker.report().status == "lagging" and "apply-error-count" in {f.code for f in checker.report().replication.findings})
            assert table(checker).status == "lagging"
            assert table(checker).missing == 0, "it is behind, which is not drift"
        finally:
            await _restart(pair.replica, resource.RLIM_INFINITY)
        await until(lambda: table(checker).status == "in_sync" and (table(checker).rows or 0) > ROWS, 60)
        await source.execute("DELETE FROM many WHERE id < 0")
