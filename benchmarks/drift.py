"""A full audit of one table, clean and with 100 drifted rows, quiet and under writes, against COPY (binary), count(*), and reladiff where it is installed.

Of each: seconds, seconds of the source's processor (the writers' too, where there are some), bytes over the wire (all of loopback's, so only where nobody
writes), rows that were changing just then. A false alarm or a missed drift ends it with an error.
The audit goes the fast way, a share of 1, as `tocsin drift` does. Narrow rows have 2 columns, usual ones 8, wide ones 30 and 1 kB. `--all` takes them all,
and 5 million rows too, in some five minutes. reladiff is not a dependency; it gets a virtual environment of its own:

    python -m venv rival && rival/bin/pip install 'reladiff[postgresql]'
    python -m benchmarks.drift --reladiff rival/bin/reladiff
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.report import report
from tests.support.pipeline import Pipeline, pipeline
from tocsin_check.auditing.audit import TableAudit
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.checker import Checker

TABLE = "CREATE TABLE t (id bigint PRIMARY KEY, a int, b text, at timestamptz, amount numeric(12,2), u uuid, doc jsonb, f float8)"
FILL = """
INSERT INTO t SELECT i, i % 1000, 'a note of some forty characters, or so ' || i, timestamptz '2026-01-01' + i * interval '1 s', i / 7.0,
                     md5(i::text)::uuid, jsonb_build_object('n', i), i / 3.0 FROM generate_series(1, {rows}) i
"""
WIDE = [f"c{i}" for i in range(28)]
DRIFTS = 100
WRITES = "\\set id 2 * random(1, {rows} / 2)\nUPDATE t SET b = b || '' WHERE id = :id;\n\\sleep 10 ms\n"
"""Of rows with even numbers; those that drift have odd ones, for an UPDATE would heal them."""
WRITERS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A table `t` with columns `id` and `b`."""

    columns: str
    create: str
    fill: str


SHAPES = {
    "narrow": Shape("id, b", "CREATE TABLE t (id bigint PRIMARY KEY, b text)", "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, {rows}) i"),
    "usual": Shape("id, a, b, at, amount, u, doc, f", TABLE, FILL),
    "wide": Shape(
        f"id, b, {', '.join(WIDE)}",
        f"CREATE TABLE t (id bigint PRIMARY KEY, b text, {', '.join(f'{name} text' for name in WIDE)})",
        f"INSERT INTO t SELECT i, 'v' || i, {', '.join(f'md5(i::text) || {place}' for place in range(len(WIDE)))} FROM generate_series(1, {{rows}}) i",
    ),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took; `bytes` of both directions together."""

    seconds: float
    cpu: float
    bytes: int
    pending: int = 0


def cpu_of(pid: int) -> float:
    """Seconds of the processor that this server and all its sessions, the ended ones too, have used."""
    spent, tick = 0, os.sysconf("SC_CLK_TCK")
    for process in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = process.read_text().rpartition(")")[2].split()
            if int(process.parent.name) == pid:
                spent += sum(map(int, fields[11:15]))
            elif int(fields[1]) == pid:
                spent += sum(map(int, fields[11:13]))
    return spent / tick


def loopback() -> int:
    """Bytes that loopback has carried, with their headers."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


async def cost(running: Pipeline, rounds: int, call: Callable[[], Awaitable[int | None]]) -> Cost:
    """The medians of `rounds` runs; what a call returns is how many rows it left pending."""
    pid = running.source.pid
    assert pid is not None
    found = []
    for _ in range(rounds):
        cpu, carried, begin = cpu_of(pid), loopback(), time.perf_counter()
        pending = await call()
        found.append(Cost(time.perf_counter() - begin, cpu_of(pid) - cpu, loopback() - carried, pending or 0))
    return Cost(
        statistics.median(c.seconds for c in found),
        statistics.median(c.cpu for c in found),
        int(statistics.median(c.bytes for c in found)),
        max(c.pending for c in found),
    )


async def reladiff(command: str, source_url: str, replica_url: str, shape: Shape) -> None:
    columns = [argument for column in shape.columns.split(", ")[1:] for argument in ("-c", column)]
    child = await asyncio.create_subprocess_exec(
        *(command, source_url, "t", replica_url, "t", "-k", "id", *columns, "--json"), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()


async def audited(sides: Sides, table: Comparable, drifts: int) -> int:
    """Rows pending, which are changing just now. AssertionError for a false alarm or a missed drift."""
    outcome = await TableAudit(sides, table).run()
    assert len(outcome.drifted) == drifts, f"{len(outcome.drifted)} found, {drifts} planted"
    return len(outcome.pending)


@contextlib.asynccontextmanager
async def writing(running: Pipeline, rows: int) -> AsyncIterator[None]:
    """Up to 400 commits a second meanwhile."""

    over = asyncio.Event()

    async def write() -> None:
        while not over.is_set():
            await running.pgbench(WRITES.format(rows=rows), writers=WRITERS, seconds=1)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await asyncio.sleep(1)
        try:
            yield
        finally:
            over.set()


async def measure(shape: Shape, rows: int, rounds: int, rival: str | None) -> dict[str, Cost]:
    """Each variant's cost, by its name."""
    async with pipeline(replica=True) as running:
        source, replica = await asyncpg.connect(running.source_url), await asyncpg.connect(running.replica_url)
        await source.execute(shape.create)
        await source.execute(shape.fill.format(rows=rows))
        await replicate(source_url=running.source_url, replica_url=running.replica_url, tables=["t"], patience=900)
        for connection in (source, replica):
            await connection.execute("VACUUM ANALYZE t")
            await connection.execute("CHECKPOINT")
        found = {
            "count(*)": await cost(running, rounds, lambda: source.fetchval("SELECT count(*) * 0 FROM t")),
            "COPY binary": await cost(running, rounds, lambda: source.fetchval("COPY t TO '/dev/null' (FORMAT binary)")),
        }
        async with open_sides(running.source_url, running.replica_url) as sides:
            [table] = [t for t in await Checker(running.source_url, running.replica_url).take_stock(sides) if isinstance(t, Comparable)]
            for drifts in (0, DRIFTS):
                if drifts:
                    await replica.execute(f"UPDATE t SET b = 'drift' WHERE id % {rows // DRIFTS} = 1")
                name = f"{drifts} drifts" if drifts else "clean"
                found[f"audit, {name}"] = await cost(running, rounds, partial(audited, sides, table, drifts))
                if rival:
                    found[f"reladiff, {name}"] = await cost(running, 1, lambda: reladiff(rival, running.source_url, running.replica_url, shape))
                async with writing(running, rows):
                    found[f"audit, {name}, under writes"] = await cost(running, rounds, partial(audited, sides, table, drifts))
        for connection in (source, replica):
            await connection.close()
    return found


def headline(rows: int, found: dict[str, Cost]) -> dict[str, Any]:
    """What README shows, of the usual table."""
    floor = found["COPY binary"].seconds
    figures = {
        "rows": rows,
        "rows_per_second": round(rows / found["audit, clean"].seconds),
        "ratio_copy": round(found["audit, clean"].seconds / floor, 2),
        "ratio_copy_drifted": round(found["audit, 100 drifts"].seconds / floor, 2),
    }
    if "reladiff, clean" in found:
        figures["ratio_reladiff"] = round(found["reladiff, clean"].seconds / found["audit, clean"].seconds, 2)
        figures["ratio_reladiff_drifted"] = round(found["reladiff, 100 drifts"].seconds / found["audit, 100 drifts"].seconds, 2)
    return figures


async def main(tables: list[tuple[str, int]], rounds: int, rival: str | None) -> None:
    lines: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for name, rows in tables:
        found = await measure(SHAPES[name], rows, rounds, rival)
        if not figures:
            figures = headline(rows, found)
        for variant, taken in found.items():
            quiet = "writes" not in variant
            lines.append(
                {
                    "table": name,
                    "rows": rows,
                    "": variant,
                    "s": taken.seconds,
                    "of COPY": taken.seconds / found["COPY binary"].seconds,
                    "source CPU s": taken.cpu,
                    "kB on the wire": taken.bytes // 1000 if quiet else "",
                    "pending": taken.pending,
                }
            )
            what = f"{name}, {rows:,} rows: {variant}"
            figures[f"{what}, s"] = round(taken.seconds, 3)
            figures[f"{what}, source CPU s"] = round(taken.cpu, 2)
            if quiet:
                figures[f"{what}, kB on the wire"] = taken.bytes // 1000
    if not rival:
        print("reladiff is left out: --reladiff names its command")
    print("0 false alarms, 0 missed drifts: the audit counts exactly what was planted, or this ends with an error")
    report("drift", lines, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reladiff", default=None, metavar="COMMAND")
    parser.add_argument("--all", action="store_true", help="narrow and wide rows too, and five times as many")
    given = parser.parse_args()
    more = [("narrow", given.rows), ("wide", given.rows), ("narrow", 5 * given.rows), ("usual", 5 * given.rows)] if given.all else []
    asyncio.run(main([("usual", given.rows), *more], given.rounds, given.reladiff))
