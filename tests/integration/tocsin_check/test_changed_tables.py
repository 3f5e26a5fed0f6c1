"""Tables that are altered, replaced, copied anew or locked while they are audited: nothing is called drift that a change of the table may have made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tocsin.errors import OperatorError
from tocsin_check import sessions
from tocsin_check.auditing import audit as audit_module
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import open_sides
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.report import TableReport

Setup = Callable[..., Awaitable[None]]
Between = Callable[[], Awaitable[None]]

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 3000) i"


async def audited(source_url: str, replica_url: str, then: Between, monkeypatch: pytest.MonkeyPatch) -> TableReport:
    """What is said of public.t once it was audited, where `then` happened after its first block."""
    monkeypatch.setattr(audit_module, "FIRST_BLOCK", 500)
    monkeypatch.setattr(audit_module, "LARGEST_BLOCK", 500)
    monkeypatch.setattr(audit_module, "AHEAD", 1)
    checker = Checker(source_url, replica_url, pace=Pace())

    async def on_block(outcome: Outcome) -> None:
        if outcome.blocks == 1:
            await then()

    async with open_sides(source_url, replica_url) as sides:
        [table] = [table for table in await checker.take_stock(sides) if isinstance(table, Comparable)]
        await checker.auditor.audit_table(sides, table, on_block)
    [report] = checker.report().tables
    return report


async def test_a_table_that_is_replaced_in_the_midst_is_not_called_drifted(
    setup: Setup, audit: Audit, source: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.execute(TABLE)
    await setup("t")

    async def replaced() -> None:
        await source.execute("CREATE TABLE other (LIKE t INCLUDING ALL); BEGIN; ALTER TABLE t RENAME TO old; ALTER TABLE other RENAME TO t; COMMIT")

    report = await audited(source_url, replica_url, replaced, monkeypatch)
    assert (report.status, report.extra) == ("pending", 0)
    assert "was changed while it was audited" in (report.reason or "")
    after = (await audit())["public.t"]
    assert (after.status, "not published" in (after.reason or "")) == ("unauditable", True)


async def test_a_table_that_is_copied_anew_in_the_midst_is_not_called_drifted_before_the_next_audit(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.execute(TABLE)
    await setup("t")

    async def copied() -> None:
        await source.execute("ALTER PUBLICATION tocsin DROP TABLE t")
        await replica.execute("ALTER SUBSCRIPTION tocsin REFRESH PUBLICATION")
        await replica.execute("TRUNCATE t")
        await source.execute("ALTER PUBLICATION tocsin ADD TABLE t")
        await replica.execute("ALTER SUBSCRIPTION tocsin REFRESH PUBLICATION WITH (copy_data = false)")

    report = await audited(source_url, replica_url, copied, monkeypatch)
    assert (report.status, report.missing) == ("pending", 0)
    after = (await audit())["public.t"]
    assert (after.status, after.missing) == ("drift", 3000)


async def test_columns_that_change_in_the_midst_are_no_fault_of_the_table(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.execute(TABLE)
    await setup("t")

    async def retyped() -> None:
        for side in (replica, source):
            await side.execute("ALTER TABLE t ALTER v TYPE jsonb USING to_jsonb(v), ALTER id TYPE bigint")

    report = await audited(source_url, replica_url, retyped, monkeypatch)
    assert (report.status, "was changed while it was audited" in (report.reason or "")) == ("pending", True)
    assert (await audit())["public.t"].status == "in_sync"


async def test_a_locked_table_is_told_with_its_holder_and_the_others_are_audited(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL 18, not 15, opens every published table to say what is published, so the catalogs can't be read either."""
    monkeypatch.setattr(sessions, "PINNED", sessions.PINNED.replace("lock_timeout = '5s'", "lock_timeout = '100ms'"))
    await source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)")
    await setup("a", "b")
    checker = Checker(source_url, replica_url)

    async def until(condition: Callable[[dict[str, TableReport]], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition({table.table: table for table in checker.report().tables}):
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        audits = group.create_task(checker.run_audits())
        await until(lambda tables: len(tables) == 2 and all(table.status == "in_sync" for table in tables.values()))
        async with source.transaction():
            await source.execute("LOCK TABLE a")
            await replica.execute("DELETE FROM b")
            checker.ask(None)
            await until(lambda tables: tables["public.b"].status == "drift" and tables["public.a"].status == "pending")
            [a, _] = checker.report().tables
            process = await source.fetchval("SELECT pg_backend_pid()")
            assert f"process {process}, holds it" in (a.reason or "")
            opens_all = source.get_server_version().major >= 18
            with pytest.raises(OperatorError, match=f"process {process}, holds it") if opens_all else contextlib.nullcontext() as told:
                async with open_sides(source_url, replica_url) as sides:
                    await Checker(source_url, replica_url).take_stock(sides)
            assert told is None or f"pg_terminate_backend({process})" in told.value.fix
        checker.ask(None)
        await until(lambda tables: tables["public.a"].status == "in_sync")
        audits.cancel()
