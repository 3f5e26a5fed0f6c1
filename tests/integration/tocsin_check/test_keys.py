"""Audits of single keys, and what a replica without the source's key can hold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tests.integration.tocsin_check.test_service import tocsin
from tocsin_check.auditing.audit import TableAudit
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.rows.verdict import Key, Verdict
from tocsin_check.watch.checker import Checker

Setup = Callable[..., Awaitable[None]]


@contextlib.asynccontextmanager
async def comparable(source_url: str, replica_url: str) -> AsyncIterator[tuple[Sides, Comparable]]:
    """The sessions, and the one table."""
    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url, publishing=False).take_stock(sides) if isinstance(t, Comparable)]
        yield sides, table


async def test_keys_are_judged_alone_however_they_are_written(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    """Keys as JSON may write them, asked for twice, absent on both sides; rows that nobody asked for do not count."""
    await source.execute(
        "CREATE TABLE t (day date, n numeric(9,2), v text, PRIMARY KEY (day, n)); INSERT INTO t SELECT '2026-01-01', i, 'v' FROM generate_series(1, 9) i"
    )
    await setup("t")
    await replica.execute("UPDATE t SET v = 'drift' WHERE n IN (2, 7); DELETE FROM t WHERE n = 3; INSERT INTO t VALUES ('2026-01-02', 4, 'extra')")
    first = ("1.0", "1", "2", "2.0", "3", "99")
    keys: list[Key] = [*(("2026-01-01", text) for text in first), ("2026-01-02", "4.00")]
    async with comparable(source_url, replica_url) as (sides, table):
        outcome = await TableAudit(sides, table).run_keys(keys)
    assert outcome.keys == {("2026-01-01", f"{n}.00") for n in (1, 2, 3, 99)} | {("2026-01-02", "4.00")}
    found = {case.key: (case.verdict, case.columns) for case in outcome.drifted}
    assert found == {
        ("2026-01-01", "2.00"): (Verdict.DIFFERENT, ("v",)),
        ("2026-01-01", "3.00"): (Verdict.MISSING, ()),
        ("2026-01-02", "4.00"): (Verdict.EXTRA, ()),
    }


async def test_many_keys_are_read_at_the_pace(setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str) -> None:
    """Each read but the last earns its rest."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 3000) i")
    await setup("t")
    pace = Pace(share=0.2)
    async with comparable(source_url, replica_url) as (sides, table):
        begun = time.monotonic()
        outcome = await TableAudit(sides, table, pace=pace).run_keys([(str(i),) for i in range(1, 3001)])
        await pace.rest()
        taken = time.monotonic() - begun
    assert (len(outcome.keys), outcome.drifted) == (3000, [])
    assert taken >= outcome.source_seconds / 0.2


@pytest.mark.parametrize("rows", [500, 30_000])
async def test_a_row_that_the_replica_has_twice_is_extra(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, rows: int
) -> None:
    """Where the replica's table has lost its key, a copy of a row has the same hash as the row."""
    await source.execute(f"CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, {rows}) i")
    await setup("t")
    await replica.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (7, 'v7'), (9, 'v9'), (9, 'v9')")
    report = (await audit())["public.t"]
    assert (report.status, report.missing, report.extra, report.different) == ("drift", 0, 3, 0)
    async with comparable(source_url, replica_url) as (sides, table):
        outcome = await TableAudit(sides, table).run_keys([("7",), ("8",), ("9",)])
    assert {case.key: (case.verdict, case.count) for case in outcome.drifted} == {("7",): (Verdict.EXTRA, 1), ("9",): (Verdict.EXTRA, 2)}


@pytest.mark.parametrize("how", ["apply", "script"])
async def test_no_repair_takes_all_rows_where_one_is_too_many(
    how: str, setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    """A statement that names the key would delete the right row with its copies: it is left alone, told, and the rest is repaired."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 20) i")
    await setup("t")
    await replica.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (7, 'v7'), (9, 'other'); UPDATE t SET v = 'drift' WHERE id = 5")
    flags = ("--apply",) if how == "apply" else ()
    code, out, err = await tocsin("drift", "--repair", *flags, source_url=source_url, replica_url=replica_url)
    if how == "script":
        await replica.execute(out)
        await replica.execute("RESET ALL")
    assert code == 1, out + err
    assert err.count("left alone") == 2
    assert "the replica has 2 rows with this key" in " ".join(err.split())
    rows = await replica.fetch("SELECT id, v FROM t WHERE id IN (5, 7, 9) ORDER BY 1, 2")
    assert [tuple(row) for row in rows] == [(5, "v5"), (7, "v7"), (7, "v7"), (9, "other"), (9, "v9")]
