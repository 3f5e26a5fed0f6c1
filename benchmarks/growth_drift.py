"""How the cost of an audit grows: with rows, with drifted rows, with wide rows, and with tables. It ends by itself."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import asyncpg

from benchmarks.drift import FILL, TABLE
from benchmarks.report import report
from tests.support.pipeline import Pipeline, pipeline
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.checker import Checker

WIDE_COLUMNS = 60
WIDE = f"CREATE TABLE t (id bigint PRIMARY KEY, {', '.join(f'c{i} text' for i in range(WIDE_COLUMNS))})"
FILL_WIDE = f"INSERT INTO t SELECT i, {', '.join(f'md5(i::text) || {i}' for i in range(WIDE_COLUMNS))} FROM generate_series(1, {{rows}}) i"
"""Rows of about 2 kB."""
SMALL = "CREATE TABLE t{i} (id int PRIMARY KEY, v text); INSERT INTO t{i} SELECT j, 'v' FROM generate_series(1, 10) j;"


async def audit(running: Pipeline, drifted: int) -> float:
    """Seconds of one look at everything, catalogs included."""
    checker = Checker(running.source_url, running.replica_url, pace=Pace(), publishing=False)
    async with open_sides(running.source_url, running.replica_url) as sides:
        begin = time.perf_counter()
        for table in await checker.take_stock(sides):
            assert isinstance(table, Comparable), table
            await checker.auditor.audit_table(sides, table)
        taken = time.perf_counter() - begin
    found = sum(t.missing + t.extra + t.different for t in checker.report().tables)
    assert found == drifted, f"{found} found, {drifted} planted"
    return taken


async def fresh(running: Pipeline, *statements: str) -> tuple[asyncpg.Connection, asyncpg.Connection]:
    """Both sides with nothing but these tables, replicated."""
    source, replica = await asyncpg.connect(running.source_url), await asyncpg.connect(running.replica_url)
    for statement in statements:
        await source.execute(statement)
    await replicate(source_url=running.source_url, replica_url=running.replica_url, patience=1200)
    for connection in (source, replica):
        await connection.execute("VACUUM ANALYZE")
    return source, replica


async def by_rows_and_drift(rows: list[int], drifts: list[int]) -> list[dict[str, Any]]:
    lines = []
    for number in rows:
        async with pipeline(replica=True) as running:
            source, replica = await fresh(running, TABLE, FILL.format(rows=number))
            for drift in [0, *(drift for drift in drifts if number == max(rows) and 0 < drift <= number)]:
                if drift:
                    await replica.execute(f"UPDATE t SET b = 'drift' WHERE id % {number // drift} = 0 AND id <= {number // drift * drift}")
                seconds = await audit(running, drift)
                lines.append({"what": "1 table", "rows": number, "drifted": drift, "s": seconds, "µs a row": seconds / number * 1e6})
            await source.close()
            await replica.close()
    return lines


async def wide(rows: int) -> dict[str, Any]:
    async with pipeline(replica=True) as running:
        for connection in await fresh(running, WIDE, FILL_WIDE.format(rows=rows)):
            await connection.close()
        seconds = await audit(running, 0)
    return {"what": f"1 table, {WIDE_COLUMNS} columns, 2 kB a row", "rows": rows, "drifted": 0, "s": seconds, "µs a row": seconds / rows * 1e6}


async def join(source: asyncpg.Connection, replica: asyncpg.Connection, numbers: range) -> None:
    """More tables into what is replicated, filled alike on both sides: a thousand initial copies would take PostgreSQL several minutes."""
    if not numbers:
        return
    for connection in (source, replica):
        for first in range(numbers.start, numbers.stop, 100):  # each statement holds a lock for each table that it makes
            await connection.execute("".join(SMALL.format(i=i) for i in range(first, min(first + 100, numbers.stop))))
    publication = await source.fetchval("SELECT quote_ident(pubname) FROM pg_publication")
    subscription = await replica.fetchval("SELECT quote_ident(subname) FROM pg_subscription")
    await source.execute(f"ALTER PUBLICATION {publication} ADD TABLE {', '.join(f't{i}' for i in numbers)}")
    await replica.execute(f"ALTER SUBSCRIPTION {subscription} REFRESH PUBLICATION WITH (copy_data = false)")
    assert await replica.fetchval("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") == 0
    for connection in (source, replica):
        await connection.execute("ANALYZE")


async def by_tables(numbers: list[int]) -> list[dict[str, Any]]:
    lines = []
    for number in numbers:
        async with pipeline(replica=True) as running:
            source, replica = await fresh(running, SMALL.format(i=0))
            await join(source, replica, range(1, number))
            seconds = await audit(running, 0)
            lines.append({"what": f"{number:,} tables of 10 rows", "rows": number * 10, "drifted": 0, "s": seconds, "µs a row": seconds / number / 10 * 1e6})
            await source.close()
            await replica.close()
    return lines


async def main(rows: list[int], drifts: list[int], tables: list[int], wide_rows: int) -> None:
    lines = [*await by_rows_and_drift(rows, drifts), await wide(wide_rows), *await by_tables(tables)]
    figures = {f"{line['what']}, {line['rows']:,} rows, {line['drifted']:,} drifted": round(line["s"], 2) for line in lines}
    report("growth_drift", lines, figures)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=numbers, default=[50_000, 200_000])
    parser.add_argument("--drifts", type=numbers, default=[100, 100_000])
    parser.add_argument("--tables", type=numbers, default=[1, 100, 1000])
    parser.add_argument("--wide-rows", type=int, default=50_000)
    given = parser.parse_args()
    asyncio.run(main(given.rows, given.drifts, given.tables, given.wide_rows))
