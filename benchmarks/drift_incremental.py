"""An audit after 1,000 changed rows, as the event stream tells them, against the full audit of the same table."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import asyncpg

from benchmarks.drift import FILL, TABLE
from benchmarks.report import report
from tests.support.pipeline import pipeline
from tocsin.settings import load_settings
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.changes import Changes
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.feed import Feed, follow
from tocsin_check.watch.incremental import Incremental

CHANGED = 1_000


async def only(checker: Checker, sides: Sides) -> Comparable:
    [table] = [t for t in await checker.take_stock(sides) if isinstance(t, Comparable)]
    return table


async def measure(
    source: asyncpg.Connection, checker: Checker, incremental: Incremental, changes: Changes, sides: Sides, rows: int, rounds: int
) -> list[float]:
    """Seconds of the full audit that makes the table followed, then of each audit after CHANGED changed rows spread over it."""
    while not changes._reading:  # noqa: SLF001
        await asyncio.sleep(0.05)
    taken = []
    table = await only(checker, sides)
    begin = time.perf_counter()
    await checker.auditor.audit_table(sides, table)
    taken.append(time.perf_counter() - begin)
    for number in range(rounds):
        await source.execute(f"UPDATE t SET a = a + 1 WHERE id % {rows // CHANGED} = {number + 1}")
        while (changes.dirty("public.t") or 0) < CHANGED:
            await asyncio.sleep(0.02)
        table = await only(checker, sides)
        begin = time.perf_counter()
        await incremental.audit_changes(table, checker.auditor.audit_of(sides), lambda _name, outcome: check(outcome.rows))
        taken.append(time.perf_counter() - begin)
    assert checker.report().status == "in_sync", checker.report()
    return taken


def check(rows: int) -> None:
    assert rows == CHANGED, rows


async def main(rows: int, rounds: int) -> None:
    async with pipeline(replica=True) as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute(TABLE)
        await source.execute(FILL.format(rows=rows))
        await replicate(source_url=running.source_url, replica_url=running.replica_url, tables=["t"], patience=1200)
        await running.tocsin("install")
        await running.tocsin("watch", "t")
        await running.start("listener")
        for url in (running.source_url, running.replica_url):
            connection = await asyncpg.connect(url)
            await connection.execute("VACUUM ANALYZE t")
            await connection.close()
        settings = load_settings(database_url=running.source_url, nats_url=running.nats.url)
        changes = Changes()
        feed = Feed(changes, stream=settings.stream_name, prefix="pg", source=settings.source_name)
        checker = Checker(running.source_url, running.replica_url, pace=Pace(), followed=(changes, feed))
        assert checker.incremental is not None
        following = asyncio.create_task(follow(feed, settings.nats_servers, settings.nats_login))
        async with open_sides(running.source_url, running.replica_url) as sides:
            full, *parts = await measure(source, checker, checker.incremental, changes, sides, rows, rounds)
        following.cancel()
        await source.close()
    part = statistics.median(parts)
    lines = [{"": "full audit", "s": full, "of full": 1.0}, {"": f"after {CHANGED:,} changed rows", "s": part, "of full": part / full}]
    report("drift_incremental", lines, {"rows": rows, "changed": CHANGED, "seconds": round(part, 3), "ratio_full": round(part / full, 4)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.rows, given.rounds))
