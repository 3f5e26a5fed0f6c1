"""A full audit of one table, clean and with 100 drifted rows, against COPY (binary), count(*), and reladiff where it is installed.

The audit goes the fast way, a share of 1, as `tocsin drift` does. reladiff is not a dependency; it gets a virtual environment of its own:

    python -m venv rival && rival/bin/pip install 'reladiff[postgresql]'
    python -m benchmarks.drift --reladiff rival/bin/reladiff
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import asyncpg

from benchmarks.report import report
from tests.support.pipeline import pipeline
from tocsin_check.audit import TableAudit
from tocsin_check.checker import Checker
from tocsin_check.replicate import replicate
from tocsin_check.sides import Sides, open_sides
from tocsin_check.table import Comparable

COLUMNS = "id, a, b, at, amount, u, doc, f"
TABLE = "CREATE TABLE t (id bigint PRIMARY KEY, a int, b text, at timestamptz, amount numeric(12,2), u uuid, doc jsonb, f float8)"
FILL = """
INSERT INTO t SELECT i, i % 1000, 'a note of some forty characters, or so ' || i, timestamptz '2026-01-01' + i * interval '1 s', i / 7.0,
                     md5(i::text)::uuid, jsonb_build_object('n', i), i / 3.0 FROM generate_series(1, {rows}) i
"""
DRIFTS = 100


async def timed(rounds: int, call: Callable[[], Awaitable[object]]) -> float:
    """The median of `rounds` runs, in seconds."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


async def reladiff(command: str, source_url: str, replica_url: str) -> None:
    columns = [argument for column in COLUMNS.split(", ")[1:] for argument in ("-c", column)]
    child = await asyncio.create_subprocess_exec(
        *(command, source_url, "t", replica_url, "t", "-k", "id", *columns, "--json"), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()


async def audited(sides: Sides, table: Comparable, drifts: int) -> None:
    outcome = await TableAudit(sides, table).run()
    assert (len(outcome.drifted), len(outcome.pending)) == (drifts, 0)


async def main(rows: int, rounds: int, rival: str | None) -> None:
    async with pipeline(replica=True) as running:
        source, replica = await asyncpg.connect(running.source_url), await asyncpg.connect(running.replica_url)
        await source.execute(TABLE)
        await source.execute(FILL.format(rows=rows))
        await replicate(source_url=running.source_url, replica_url=running.replica_url, tables=["t"], patience=600)
        for connection in (source, replica):
            await connection.execute("VACUUM ANALYZE t")
        seconds = {
            "count(*)": await timed(rounds, lambda: source.fetchval("SELECT count(*) FROM t")),
            "COPY binary": await timed(rounds, lambda: source.execute("COPY t TO '/dev/null' (FORMAT binary)")),
        }
        async with open_sides(running.source_url, running.replica_url) as sides:
            [table] = [t for t in await Checker(running.source_url, running.replica_url).take_stock(sides) if isinstance(t, Comparable)]
            seconds["audit, clean"] = await timed(rounds, lambda: audited(sides, table, 0))
            if rival:
                seconds["reladiff, clean"] = await timed(1, lambda: reladiff(rival, running.source_url, running.replica_url))
            else:
                print("reladiff is left out: --reladiff names its command")
            await replica.execute(f"UPDATE t SET b = 'drift' WHERE id % {rows // DRIFTS} = 1")
            seconds["audit, 100 drifts"] = await timed(rounds, lambda: audited(sides, table, DRIFTS))
            if rival:
                seconds["reladiff, 100 drifts"] = await timed(1, lambda: reladiff(rival, running.source_url, running.replica_url))
        for connection in (source, replica):
            await connection.close()
    floor = seconds["COPY binary"]
    figures = {
        "rows": rows,
        "rows_per_second": round(rows / seconds["audit, clean"]),
        "ratio_copy": round(seconds["audit, clean"] / floor, 2),
        "ratio_copy_drifted": round(seconds["audit, 100 drifts"] / floor, 2),
    }
    if rival:
        figures["ratio_reladiff"] = round(seconds["reladiff, clean"] / seconds["audit, clean"], 2)
        figures["ratio_reladiff_drifted"] = round(seconds["reladiff, 100 drifts"] / seconds["audit, 100 drifts"], 2)
    report("drift", [{"": name, "s": value, "of COPY": value / floor} for name, value in seconds.items()], figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reladiff", default=None, metavar="COMMAND")
    given = parser.parse_args()
    asyncio.run(main(given.rows, given.rounds, given.reladiff))
