"""What counting rows can't see: each fault is provoked on a real pair, told with its severity and its fix, and gone once it is mended."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.support import servers
from tocsin.stack.postgres_server import PostgresServer
from tocsin.stack.process import free_port
from tocsin_check import sessions
from tocsin_check.catalog import findings as findings_module
from tocsin_check.catalog import inventory
from tocsin_check.catalog.coverage import Facts
from tocsin_check.catalog.findings import CounterWatch, Finding, findings
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.replication.unreplicate import unreplicate
from tocsin_check.watch.checker import Checker

HARMLESS = "suppress_redundant_updates_trigger"
Setup = Callable[..., Awaitable[None]]


class Eyes:
    """Sessions as the checker has them; `codes` are the findings at this moment."""

    def __init__(self, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
        self._sides = (source, replica)
        self._watch = CounterWatch()

    async def facts(self) -> Facts:
        return (await inventory.take(*self._sides, {})).facts

    async def found(self) -> dict[str, Finding]:
        facts = await self.facts()
        return {f.code: f for f in findings(facts, self._watch.look(facts, asyncio.get_running_loop().time()))}

    async def until(self, code: str, severity: str, *, there: bool = True) -> Finding:
        async with asyncio.timeout(30):
            while True:
                finding = (await self.found()).get(code)
                if there and finding is not None and finding.severity == severity:
                    return finding
                if not there and finding is None:
                    return Finding("info", code, "", "")
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def eyes(source_url: str, replica_url: str) -> AsyncIterator[Eyes]:
    source = await sessions.open_reader(source_url, sessions.SOURCE_SETTING)
    replica = await sessions.open_reader(replica_url, sessions.REPLICA_SETTING)
    yield Eyes(source, replica)
    await source.close()
    await replica.close()


async def test_each_fault_of_a_tables_shape(setup: Setup, eyes: Eyes, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    """Each is provoked by one statement, found alone, and mended by its counterpart."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text, n int)")
    await setup("t")
    await eyes.until("copying", "info", there=False)
    assert await eyes.found() == {}
    faults = [
        (replica, "ALTER TABLE t DROP COLUMN n", "ALTER TABLE t ADD n int", "no-column", "error", 'ADD COLUMN "n" integer'),
        (replica, "ALTER TABLE t ALTER n TYPE bigint", "ALTER TABLE t ALTER n TYPE int", "type-differs", "warning", "TYPE integer"),
        (replica, "ALTER TABLE t ALTER v SET NOT NULL", "ALTER TABLE t ALTER v DROP NOT NULL", "null-differs", "warning", 'ALTER COLUMN "v" DROP NOT NULL'),
        (replica, "ALTER TABLE t ADD own int NOT NULL", "ALTER TABLE t DROP own", "column-required", "error", 'ALTER COLUMN "own" DROP NOT NULL'),
        (replica, "ALTER TABLE t ADD own int", "ALTER TABLE t DROP own", "extra-columns", "info", "nothing to do"),
        (replica, "ALTER TABLE t DROP CONSTRAINT t_pkey", "ALTER TABLE t ADD PRIMARY KEY (id)", "key-differs", "warning", 'ADD PRIMARY KEY ("id")'),
        (
            replica,
            f"CREATE TRIGGER fires BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION {HARMLESS}(); ALTER TABLE t ENABLE ALWAYS TRIGGER fires",
            "ALTER TABLE t ENABLE TRIGGER fires",
            "trigger",
            "warning",
            'ENABLE TRIGGER "fires"',
        ),
        (source, "ALTER TABLE t REPLICA IDENTITY NOTHING", "ALTER TABLE t REPLICA IDENTITY DEFAULT", "no-identity", "error", "REPLICA IDENTITY FULL"),
        (
            source,
            "ALTER PUBLICATION tocsin SET (publish = 'insert')",
            "ALTER PUBLICATION tocsin SET (publish = 'insert, update, delete, truncate')",
            "partial-publication",
            "warning",
            "publish = 'insert, update, delete, truncate'",
        ),
        (source, "ALTER PUBLICATION tocsin DROP TABLE t", "ALTER PUBLICATION tocsin ADD TABLE t", "unpublished", "error", "tocsin replicate public.t"),
        (replica, "ALTER TABLE t RENAME TO u", "ALTER TABLE u RENAME TO t", "no-table", "error", "tocsin replicate public.t"),
    ]
    for connection, provoke, mend, code, severity, fix in faults:
        await connection.execute(provoke)
        found = await eyes.found()
        assert code in found, (provoke, found)
        assert (found[code].severity, fix in found[code].fix) == (severity, True), found[code]
        await connection.execute(mend)
        assert code not in await eyes.found(), mend


async def test_writers_on_the_replica_are_named(setup: Setup, eyes: Eyes, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await setup("t")
    database = await replica.fetchval("SELECT current_database()")
    role = f"app_{database}"
    await replica.execute(f"CREATE ROLE {role}; GRANT SELECT, UPDATE ON t TO {role}")
    try:
        finding = (await eyes.found())["writer"]
        assert finding.message.startswith(f"{role} may write on the replica: public.t")
        await replica.execute(finding.fix.removeprefix("run on the replica: "))
        assert "writer" not in await eyes.found()
        await replica.execute("GRANT INSERT ON t TO PUBLIC")
        assert (await eyes.found())["writer"].message.startswith("PUBLIC may write")
        await replica.execute(f"REVOKE INSERT ON t FROM PUBLIC; GRANT pg_write_all_data TO {role}")
        assert (await eyes.found())["writer"].message.startswith(f"{role} may write")
    finally:
        await replica.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_sequences_behind_and_a_key_that_is_missing(setup: Setup, eyes: Eyes, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute(
        "CREATE TABLE t (id serial PRIMARY KEY, v int); CREATE TABLE k (v int); ALTER TABLE k REPLICA IDENTITY FULL; INSERT INTO t (v) VALUES (1), (2)"
    )
    await setup()
    found = await eyes.found()
    assert found["no-key"].table == "public.k"
    assert "public.t_id_seq" in found["sequence-behind"].message
    await replica.execute(found["sequence-behind"].fix.removeprefix("before the replica takes over: "))
    assert "sequence-behind" not in await eyes.found()


async def test_each_fault_of_the_subscription(setup: Setup, eyes: Eyes, source: asyncpg.Connection, replica: asyncpg.Connection, own_url: str) -> None:
    """Disabled, without a worker, to skip, copying, not subscribed, conflicts and errors, no slot."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b'); CREATE TABLE late (id int PRIMARY KEY)")
    await setup("t")
    await replica.execute("ALTER SUBSCRIPTION tocsin SKIP (lsn = '7FFFFFFF/0')")
    assert (await eyes.found())["skip"].severity == "warning"
    await replica.execute("ALTER SUBSCRIPTION tocsin SKIP (lsn = NONE)")
    assert "skip" not in await eyes.found()

    await replica.execute("DELETE FROM t WHERE id = 2")
    await source.execute("UPDATE t SET v = 'c' WHERE id = 2")
    finding = await eyes.until("conflict-update-missing", "warning")
    assert "REVOKE" in finding.fix

    await replica.execute("INSERT INTO t VALUES (3, 'mine')")
    await source.execute("INSERT INTO t VALUES (3, 'theirs')")
    assert "applying changes has failed" in (await eyes.until("apply-error-count", "error")).message
    assert "log" in (await eyes.until("no-worker", "error")).fix
    assert "conflict-insert-exists" in await eyes.found()
    await replica.execute("DELETE FROM t WHERE id = 3")
    await eyes.until("no-worker", "error", there=False)

    await source.execute("ALTER PUBLICATION tocsin ADD TABLE late")
    await replica.execute("CREATE TABLE late (id int PRIMARY KEY)")
    assert (await eyes.found())["uncovered"].fix == "tocsin replicate public.late"
    await source.execute("INSERT INTO late VALUES (1)")
    await replica.execute("INSERT INTO late VALUES (1)")
    await replica.execute("ALTER SUBSCRIPTION tocsin REFRESH PUBLICATION")
    assert "the initial copy of public.late" in (await eyes.until("copying", "info")).message
    assert "the initial copy has failed" in (await eyes.until("sync-error-count", "error")).message
    await replica.execute("DELETE FROM late")
    await eyes.until("copying", "info", there=False)

    await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
    assert "ENABLE" in (await eyes.found())["disabled"].fix
    slot = await source.fetchval("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
    async with asyncio.timeout(20):
        while await source.fetchval("SELECT active FROM pg_replication_slots WHERE slot_name = $1", slot):
            await asyncio.sleep(0.05)
    await replica.execute("ALTER SUBSCRIPTION tocsin CONNECTION 'host=127.0.0.1 port=1'")
    await replica.execute("ALTER SUBSCRIPTION tocsin ENABLE")
    await eyes.until("slot-idle", "warning")
    await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
    await source.execute("SELECT pg_drop_replication_slot($1)", slot)
    finding = (await eyes.found())["no-slot"]
    assert (finding.severity, "--drop --with-data" in finding.fix) == ("error", True)


async def _until_endangered(source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    """Beyond the limit and before the next checkpoint the slot is in danger, and that is told."""
    async with asyncio.timeout(30):
        while await source.fetchval("SELECT wal_status FROM pg_replication_slots") != "unreserved":
            await source.execute("INSERT INTO t VALUES (2) ON CONFLICT DO NOTHING; SELECT pg_switch_wal()")
    await source.execute("SET search_path = pg_catalog")
    await replica.execute("SET search_path = pg_catalog")
    finding = next(f for f in findings((await inventory.take(source, replica, {})).facts) if f.code == "slot-endangered")
    assert (finding.severity, "max_slot_wal_keep_size" in finding.fix) == ("error", True)
    await source.execute("RESET search_path")
    await replica.execute("RESET search_path")


async def test_a_lost_slot_is_told_and_its_fix_mends_it(replica_url: str) -> None:
    """A source with 1 MB for slots removes the WAL that a stopped replica needs; the fix named copies it all anew."""
    with tempfile.TemporaryDirectory(prefix="tocsin-slot-") as folder:
        Path(folder).chmod(0o755)
        limits = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
        server = PostgresServer(Path(folder) / "source", free_port(), configuration={**servers.FAST, **limits})
        await server.start()
        try:
            source, replica = await asyncpg.connect(server.url()), await asyncpg.connect(replica_url)
            await source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
            await replicate(source_url=server.url(), replica_url=replica_url, patience=60)
            await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
            await _until_endangered(source, replica)
            checker = Checker(server.url(), replica_url, publishing=False)
            async with open_sides(server.url(), replica_url) as sides, asyncio.timeout(40):
                while True:
                    await source.execute("INSERT INTO t VALUES (2) ON CONFLICT DO NOTHING; SELECT pg_switch_wal(); CHECKPOINT")
                    await checker.take_stock(sides)
                    if {f.code for f in checker.report().replication.findings} >= {"slot-lost"}:
                        break
                [finding] = [f for f in checker.report().replication.findings if f.code == "slot-lost"]
                assert "tocsin replicate --drop --with-data, then tocsin replicate" in finding.fix
                assert (checker.report().tables[0].status, "slot is lost" in (checker.report().tables[0].reason or "")) == ("unauditable", True)
            await unreplicate(source_url=server.url(), replica_url=replica_url, with_data=True)
            await replicate(source_url=server.url(), replica_url=replica_url, patience=60)
            assert await replica.fetchval("SELECT count(*) FROM t") == 2
            await unreplicate(source_url=server.url(), replica_url=replica_url)
            await source.close()
            await replica.close()
        finally:
            await server.stop()


async def test_a_partition_that_the_replica_lacks_wal_held_back_and_old_versions(
    setup: Setup, eyes: Eyes, source: asyncpg.Connection, replica: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the versions and the sizes the thresholds are moved, the rest is real."""
    await source.execute("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)")
    await setup()
    assert not {"no-partition", "slot-retains", "version-loses-rows", "version-memory"} & (await eyes.found()).keys()
    await source.execute("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)")
    finding = (await eyes.found())["no-partition"]
    assert (finding.severity, "p2" in finding.message, finding.fix) == ("error", True, "tocsin replicate public.p")
    await setup("p")
    assert "no-partition" not in await eyes.found(), "its fix mends it"
    monkeypatch.setattr(findings_module, "RETAINED_WARNING", 0)
    await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
    await source.execute("CREATE TABLE bulk AS SELECT repeat('x', 100) FROM generate_series(1, 2000)")
    assert (await eyes.until("slot-retains", "warning")).message.endswith("of WAL on the source")
    major, minor = divmod(int(await source.fetchval("SHOW server_version_num")), 10_000)
    monkeypatch.setattr(findings_module, "INVALIDATIONS_FIXED", {major: minor + 1})
    assert (await eyes.found())["version-memory"].severity == "warning"
    monkeypatch.setattr(findings_module, "DATA_LOSS_FIXED", {major: minor + 1})
    assert f"update it to {major}.{minor + 1}" in (await eyes.found())["version-loses-rows"].fix
    await replica.execute("ALTER SUBSCRIPTION tocsin ENABLE")


async def test_a_replica_without_a_subscription_says_so(source: asyncpg.Connection, eyes: Eyes) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    finding = (await eyes.found())["no-subscription"]
    assert (finding.severity, finding.fix) == ("error", "tocsin replicate")
