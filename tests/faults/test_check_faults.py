"""The checker where servers stall, die and lie: it never calls drift what is not, and comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest_asyncio

from tests.support.servers import FAST
from tocsin.stack.postgres_server import PostgresServer
from tocsin.stack.process import free_port
from tocsin_check.auditing.audit import TableAudit
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.report import Status


@dataclass
class Pair:
    """Two servers of the test's own, with a replicated table t(id, v) of 100 rows."""

    source: PostgresServer
    replica: PostgresServer

    @contextlib.asynccontextmanager
    async def on(self, server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(server.url())
        try:
            yield connection
        finally:
            await connection.close()


@pytest_asyncio.fixture(scope="module")
async def pair() -> AsyncIterator[Pair]:
    async with running_pair() as both:
        yield both


@contextlib.asynccontextmanager
async def running_pair(**configuration: str) -> AsyncIterator[Pair]:
    """Two servers with these settings, and the table t replicated."""
    with tempfile.TemporaryDirectory(prefix="tocsin-check-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        both = Pair(
            *(
                PostgresServer(folder / side, free_port(), configuration=FAST | {"wal_retrieve_retry_interval": "100ms"} | configuration)
                for side in ("source", "replica")
            )
        )
        await both.source.start()
        await both.replica.start()
        try:
            async with both.on(both.source) as source:
                await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i")
            await replicate(source_url=both.source.url(), replica_url=both.replica.url(), tables=["t"], patience=60)
            yield both
        finally:
            await both.replica.stop()
            await both.source.stop()


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool], patience: float = 40) -> None:
    async with asyncio.timeout(patience):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


async def test_a_replica_ahead_of_what_the_source_shows_is_not_drift(pair: Pair) -> None:
    """Synchronous replication stalls: the commits are in the WAL and applied, and the source shows none of them yet."""
    async with pair.on(pair.source) as source, pair.on(pair.replica) as replica, open_sides(pair.source.url(), pair.replica.url()) as sides:
        [table] = [t for t in await Checker(pair.source.url(), pair.replica.url()).take_stock(sides) if isinstance(t, Comparable)]
        await source.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await source.execute("SELECT pg_reload_conf()")
        await until(lambda: _shows(source, "SHOW synchronous_standby_names", "nobody"))
        writers = [await asyncpg.connect(pair.source.url()) for _ in range(3)]
        try:
            async with asyncio.TaskGroup() as group:
                for writer, statement in zip(
                    writers, ("UPDATE t SET v = 'ahead' WHERE id = 1", "INSERT INTO t VALUES (1000, 'ahead')", "DELETE FROM t WHERE id = 2"), strict=True
                ):
                    group.create_task(writer.execute(statement))
                await until(lambda: _shows(replica, "SELECT count(*) FROM t WHERE v = 'ahead' OR id = 2", 2))
                assert await source.fetchval("SELECT count(*) FROM t WHERE v = 'ahead' OR id = 2") == 1, "the source must not show them yet"
                outcome = await TableAudit(sides, table, patience=0.5).run()
                await source.execute("ALTER SYSTEM RESET synchronous_standby_names")
                await source.execute("SELECT pg_reload_conf()")
            assert outcome.drifted == []
            assert len(outcome.pending) == 3
            assert "stays open" in outcome.pending[0].reason
            outcome = await TableAudit(sides, table).run()
            assert (outcome.drifted, outcome.pending) == ([], [])
        finally:
            for writer in writers:
                await writer.close()


async def _shows(connection: asyncpg.Connection, query: str, expected: object) -> bool:
    return bool(await connection.fetchval(query) == expected)


async def test_killed_servers_leave_the_last_proof_stale_and_the_checker_comes_back(pair: Pair) -> None:
    checker = Checker(pair.source.url(), pair.replica.url())

    def status() -> Status:
        return checker.report().status

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run) for run in (checker.run_audits(), checker.run_pulse())]
        await until(lambda: checker.alive and status() == "in_sync")
        await pair.replica.kill()
        await until(lambda: status() == "stale")
        async with pair.on(pair.source) as source:
            await source.execute("INSERT INTO t VALUES (2000, 'while the replica is down')")
        await pair.replica.start()
        await until(lambda: status() == "in_sync")
        await pair.source.kill()
        await until(lambda: status() == "stale")
        await pair.source.start()
        async with pair.on(pair.replica) as replica:
            await until(lambda: _shows(replica, "SELECT count(*) FROM t WHERE id = 2000", 1))
            await replica.execute("DELETE FROM t WHERE id = 2000")
        await until(lambda: status() == "drift")
        async with pair.on(pair.replica) as replica:
            await replica.execute("INSERT INTO t VALUES (2000, 'while the replica is down')")
        await until(lambda: status() == "in_sync")
        for task in tasks:
            task.cancel()


async def test_a_damaged_page_makes_its_table_unauditable_and_the_others_go_on(pair: Pair) -> None:
    async with pair.on(pair.source) as source:
        await source.execute("CREATE TABLE damaged (id int PRIMARY KEY, v text); INSERT INTO damaged SELECT i, 'v' FROM generate_series(1, 2000) i")
        await replicate(source_url=pair.source.url(), replica_url=pair.replica.url(), tables=["damaged"], patience=60)
        async with pair.on(pair.replica) as replica:
            path = pair.replica.data / await replica.fetchval("SELECT pg_relation_filepath('damaged')")
        await pair.replica.stop()
        with path.open("r+b") as file:
            file.seek(8192 + 4000)
            file.write(bytes(range(1, 65)))
        await pair.replica.start()
        checker = Checker(pair.source.url(), pair.replica.url())

        def shown(name: str) -> tuple[str | None, str]:
            return next(((t.status, t.reason or "") for t in checker.report().tables if t.table == name), (None, ""))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in (checker.run_audits(), checker.run_pulse())]
            await until(lambda: shown("public.damaged")[0] == "unauditable" and "invalid page in block 1" in shown("public.damaged")[1])
            await until(lambda: shown("public.t")[0] == "in_sync")
            assert checker.report().status == "unauditable"
            for task in tasks:
                task.cancel()
        await source.execute("ALTER PUBLICATION tocsin DROP TABLE damaged; DROP TABLE damaged")
        async with pair.on(pair.replica) as replica:
            await replica.execute("ALTER SUBSCRIPTION tocsin REFRESH PUBLICATION")
            await replica.execute("DROP TABLE damaged")


async def test_a_table_dropped_and_a_subscription_dropped_are_told_and_end_nothing(pair: Pair) -> None:
    checker = Checker(pair.source.url(), pair.replica.url())

    def status(name: str) -> str | None:
        return next((t.status for t in checker.report().tables if t.table == name), None)

    async with pair.on(pair.source) as source, pair.on(pair.replica) as replica, asyncio.TaskGroup() as group:
        await source.execute("CREATE TABLE gone (id int PRIMARY KEY)")
        await replicate(source_url=pair.source.url(), replica_url=pair.replica.url(), tables=["gone"], patience=60)
        tasks = [group.create_task(run) for run in (checker.run_audits(), checker.run_pulse())]
        await until(lambda: checker.alive and status("public.gone") == "in_sync")
        await replica.execute("DROP TABLE gone")
        await until(lambda: status("public.gone") == "unauditable")
        assert status("public.t") == "in_sync"
        await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
        await replica.execute("ALTER SUBSCRIPTION tocsin SET (slot_name = NONE)")
        await replica.execute("DROP SUBSCRIPTION tocsin")
        await until(lambda: checker.report().status == "unknown")
        assert {f.code for f in checker.report().replication.findings} == {"no-subscription"}
        await replica.execute("TRUNCATE t, tocsin_check.marker")
        await replicate(source_url=pair.source.url(), replica_url=pair.replica.url(), tables=["t", "gone"], patience=60)
        await until(lambda: checker.report().status == "in_sync")
        for task in tasks:
            task.cancel()
