"""The checker between different versions of PostgreSQL, each as source and as replica of each. Run by `make test-pairs`, which has the servers."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.integration.tocsin_check.test_audit import SUBTLE, TYPES
from tests.integration.tocsin_check.test_repair import EXACT
from tests.support.servers import FAST
from tocsin.errors import OperatorError
from tocsin.stack.postgres_server import PostgresServer
from tocsin.stack.process import free_port
from tocsin_check.catalog import inventory
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.replication.unreplicate import unreplicate
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.ledger import Ledger

PROGRAMS = {version: Path(folder) if folder else None for version, _, folder in (e.partition("=") for e in os.environ["TOCSIN_TEST_PAIRS"].split(os.pathsep))}
MAJORS = [version for version in PROGRAMS if "." not in version]
OLD = [version for version in PROGRAMS if "." in version]
CODES = {"13.23": "version-old", "14.17": "version-loses-rows", "14.18": "version-memory"}
_numbers = itertools.count(1)

Running = dict[str, PostgresServer]


@pytest_asyncio.fixture(scope="session")
async def running(scratch: Path) -> AsyncIterator[Running]:
    """A server of each version, with room for all pairs."""
    room = {"max_logical_replication_workers": "8", "max_worker_processes": "16", "wal_retrieve_retry_interval": "100ms"}
    made = {v: PostgresServer(scratch / f"postgres-{v}", free_port(), configuration=FAST | room, bin_folder=folder) for v, folder in PROGRAMS.items()}
    async with contextlib.AsyncExitStack() as stack:
        for server in made.values():
            await server.start()
            stack.push_async_callback(server.stop)
        yield made


class Room:
    """A fresh database on each of two servers."""

    def __init__(self, source_url: str, replica_url: str, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
        self.urls = (source_url, replica_url)
        self.source, self.replica = source, replica

    async def audit(self, *, exact: bool = False) -> tuple[Ledger, bool]:
        """Every table once; the ledger, and whether native hashes were compared."""
        checker = Checker(*self.urls, exact=exact)
        async with open_sides(*self.urls) as sides:
            for table in await checker.take_stock(sides):
                assert isinstance(table, Comparable), table
                await checker.auditor.audit_table(sides, table)
            native = (await inventory.take(sides.source, sides.replica, {})).native
        return checker.ledger, native


@contextlib.asynccontextmanager
async def room(source: PostgresServer, replica: PostgresServer) -> AsyncIterator[Room]:
    name = f"pair{next(_numbers)}"
    async with contextlib.AsyncExitStack() as stack:
        urls, connections = [], []
        for server, database in ((source, f"{name}s"), (replica, f"{name}r")):
            async with _connected(server.url()) as maintenance:
                await maintenance.execute(f"CREATE DATABASE {database}")
            urls.append(server.url(database))
            connections.append(await stack.enter_async_context(_connected(urls[-1])))
        yield Room(urls[0], urls[1], connections[0], connections[1])
        with contextlib.suppress(OperatorError):
            await unreplicate(source_url=urls[0], replica_url=urls[1])


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


KINDS = {**SUBTLE, **{f"exact {kind}": (kind, *values) for kind, values in EXACT.items()}}


@pytest.mark.parametrize("hashes", ["native", "text"])
@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(MAJORS, MAJORS)))
async def test_every_type_compares_and_every_drift_is_found_between_versions(
    ours: str, theirs: str, hashes: str, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By native hashes, and by the canonical text that is compared where those differ."""
    if hashes == "text":
        monkeypatch.setattr(inventory, "NATIVE_SINCE", 99)
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _, _) in enumerate(KINDS.values()))
    values = ", ".join(f"({value})::{kind}" for kind, value, _ in KINDS.values())
    async with room(running[ours], running[theirs]) as at:
        await at.source.execute(f"""
            {TYPES}
            CREATE TABLE t (id int PRIMARY KEY, {columns}); INSERT INTO t SELECT i, {values} FROM generate_series(0, {len(KINDS)}) i;
            CREATE TABLE words (a text, b uuid, n numeric, PRIMARY KEY (a, b)); CREATE TABLE bag (v int, w text); ALTER TABLE bag REPLICA IDENTITY FULL;
            INSERT INTO words SELECT 'é' || i, md5(i::text)::uuid, i / 7.0 FROM generate_series(1, 3000) i; INSERT INTO words VALUES ('a|', md5('')::uuid, 1);
            INSERT INTO bag SELECT i % 9, 'x' FROM generate_series(1, 900) i;
            CREATE TABLE days (d date, n int, PRIMARY KEY (d, n)) PARTITION BY RANGE (d); CREATE TABLE days_1 PARTITION OF days DEFAULT;
            INSERT INTO days SELECT date '2026-01-01' + i, i FROM generate_series(1, 500) i""")
        await replicate(source_url=at.urls[0], replica_url=at.urls[1], patience=60)
        ledger, native = await at.audit(exact=True)
        assert {r.table: (r.status, r.reason) for r in ledger.reports()} == {f"public.{t}": ("in_sync", None) for t in ("bag", "days", "t", "words")}
        assert native is (hashes == "native")
        for i, (kind, _, value) in enumerate(KINDS.values()):
            await at.replica.execute(f"UPDATE t SET c{i} = ({value})::{kind} WHERE id = {i}")
        await at.replica.execute("""DELETE FROM words WHERE a = 'é7'; UPDATE words SET n = n + 0.00000000000001 WHERE a = 'é8';
                                    INSERT INTO days VALUES ('2030-01-01', 1);
                                    DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag LIMIT 1)""")
        ledger, _ = await at.audit(exact=True)
        page = ledger.page("public.t", None, 100)
        assert page is not None
        assert {(row.key["id"], *row.columns) for row in page.rows} == {(i, f"c{i}") for i in range(len(KINDS))}
        assert {r.table: (r.missing, r.extra, r.different) for r in ledger.reports()} == {
            "public.bag": (1, 0, 0), "public.days": (0, 1, 0), "public.t": (0, 0, len(KINDS)), "public.words": (1, 0, 1),
        }  # fmt: skip


@pytest.mark.parametrize("version", [version for version in OLD if not version.startswith("13")])
async def test_an_old_minor_version_of_the_source_is_told_and_audited_all_the_same(version: str, running: Running) -> None:
    async with room(running[version], running[MAJORS[-1]]) as at:
        await at.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        await replicate(source_url=at.urls[0], replica_url=at.urls[1], patience=60)
        checker = Checker(*at.urls)
        async with open_sides(*at.urls) as sides:
            [table] = await checker.take_stock(sides)
            assert isinstance(table, Comparable)
            await checker.auditor.audit_table(sides, table)
        report = checker.report()
        assert report.status == "in_sync"
        [finding] = [f for f in report.replication.findings if f.code.startswith("version")]
        assert (finding.severity, finding.code, f"PostgreSQL {version}," in finding.message) == ("warning", CODES[version], True), finding


@pytest.mark.parametrize("version", [version for version in OLD if version.startswith("13")])
async def test_a_version_that_is_too_old_is_refused_and_told(version: str, running: Running) -> None:
    """Before anything is set up; and where somebody did it by hand, by the report."""
    async with room(running[version], running[MAJORS[-1]]) as at:
        await at.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        with pytest.raises(OperatorError, match=f"the source is PostgreSQL {version[:2]}; 14 or later is needed"):
            await replicate(source_url=at.urls[0], replica_url=at.urls[1], patience=60)
        await at.source.execute("CREATE PUBLICATION p FOR TABLE t")
        await at.source.execute("SELECT pg_create_logical_replication_slot('byhand', 'pgoutput')")
        await at.replica.execute("CREATE TABLE t (id int PRIMARY KEY)")
        await at.replica.execute(f"CREATE SUBSCRIPTION byhand CONNECTION '{at.urls[0]}' PUBLICATION p WITH (create_slot = false)")
        checker = Checker(*at.urls)
        async with open_sides(*at.urls) as sides:
            await checker.take_stock(sides)
        report = checker.report()
        [finding] = [f for f in report.replication.findings if f.code.startswith("version")]
        assert (finding.severity, finding.code) == ("error", CODES[version])
        assert report.status != "in_sync"
        await at.replica.execute("DROP SUBSCRIPTION byhand")
