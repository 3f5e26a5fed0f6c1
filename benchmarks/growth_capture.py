"""How the cost of capture grows: with watched tables, writers, the size of rows, the journal that is kept, and a transaction open meanwhile.

At each point pgbench writes one-row INSERTs into a bare table and into a watched one of the same shape, in turn, with the listener
running; the ratio is what capture and relay leave on the same machine. `drain s` is how long after the last commit the stream has all.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from nats.aio.client import Client

from benchmarks.report import report
from tests.support.pipeline import Pipeline, pipeline

MOST_TABLES = 1000
COLUMNS = "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, note text NOT NULL)"
KEPT_LEAVES = (6, 7)
UNLOGGED = "ALTER TABLE tocsin.journal_{leaf} SET UNLOGGED"
FILL = """
INSERT INTO tocsin.journal_{leaf} (leaf, seq, xid, subject, type, key, data)
SELECT {leaf}, g - 1000000000, '2', 'change.public.kept.insert', 'kept', g::text, '{{"op":"insert"}}' FROM generate_series($1::bigint, $2::bigint) AS g
"""
"""Rows of a transaction before every snapshot: kept, published long ago; in the order of the index, into leaves that nobody writes."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of what is varied; the others stand at 1 table, 8 writers and 100 bytes."""

    what: str
    tables: int = 1
    writers: int = 8
    size: int = 100

    def script(self, kind: str) -> str:
        note = f"left(repeat(md5(':c'), {self.size // 32 + 1}), {self.size})"
        return f"\\set t random(1, {self.tables})\n\\set c random(1, 1000)\nINSERT INTO {kind}_:t (customer, note) VALUES (:c, {note});\n"


class Site:
    """Servers with `MOST_TABLES` bare tables, as many watched as a point asks for, and a listener."""

    def __init__(self, running: Pipeline, source: asyncpg.Connection, client: Client) -> None:
        self.running = running
        self.source = source
        self._client = client
        self._watched = 0
        self._written = 0

    async def watch(self, tables: int) -> float:
        """Watch so many tables in all; seconds that it took."""
        begun = time.monotonic()
        names = [f"watched_{number}" for number in range(self._watched + 1, tables + 1)]
        for first in range(0, len(names), 100):
            await self.running.tocsin("watch", *names[first : first + 100])
        self._watched = max(tables, self._watched)
        return time.monotonic() - begun

    async def measure(self, point: Point, seconds: int) -> dict[str, float | int | str]:
        bare = (await self.running.pgbench(point.script("bare"), writers=point.writers, seconds=seconds))[1]
        count, watched = await self.running.pgbench(point.script("watched"), writers=point.writers, seconds=seconds)
        self._written += count
        return {"": point.what, "bare/s": bare, "captured/s": watched, "of bare": watched / bare, "drain s": await self._drained()}

    async def _drained(self) -> float:
        begun = time.monotonic()
        async with asyncio.timeout(120):
            while True:
                info = await self._client.jetstream().stream_info("TOCSIN_SHOP", subjects_filter="pg.shop.change.>")
                if sum((info.state.subjects or {}).values()) >= self._written:
                    return time.monotonic() - begun
                await asyncio.sleep(0.05)

    async def keep(self, present: int, rows: int) -> float:
        """So many published rows in the journal, of which `present` are there; seconds that it took."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for leaf in KEPT_LEAVES:
                group.create_task(self._fill(leaf, present // len(KEPT_LEAVES), rows // len(KEPT_LEAVES)))
        return time.monotonic() - begun

    async def _fill(self, leaf: int, present: int, rows: int) -> None:
        filler = await asyncpg.connect(self.running.source_url)
        if present == 0 and rows:
            await filler.execute(UNLOGGED.format(leaf=leaf))
        for first in range(present + 1, rows + 1, 1_000_000):
            await filler.execute(FILL.format(leaf=leaf), first, min(first + 999_999, rows), timeout=600)
        await filler.close()


@asynccontextmanager
async def site(tables: int) -> AsyncIterator[Site]:
    async with pipeline() as running:
        source = await asyncpg.connect(running.source_url)
        for number in range(1, tables + 1):
            await source.execute(f"CREATE TABLE bare_{number} {COLUMNS}; CREATE TABLE watched_{number} {COLUMNS}")
        await running.tocsin("install")
        client = Client()
        await client.connect(running.nats.url)
        made = Site(running, source, client)
        await made.watch(1)
        await running.start("listener")
        yield made
        await client.close()
        await source.close()


def points(tables: list[int], writers: list[int], sizes: list[int]) -> Iterator[Point]:
    for count in writers:
        yield Point(f"{count} writers", writers=count)
    for size in sizes:
        yield Point(f"rows of {size:,} bytes", size=size)
    for count in tables:
        yield Point(f"{count:,} watched tables", tables=count)


async def main(seconds: int, tables: list[int], writers: list[int], sizes: list[int], kept: list[int]) -> None:
    rows, figures = [], {}
    async with site(max(tables)) as measured:
        for point in points(tables, writers, sizes):
            figures[f"watching_{point.tables}_seconds"] = round(await measured.watch(point.tables), 1)
            rows.append(await measured.measure(point, seconds))
        present = 0
        for count in kept:
            figures[f"keeping_{count}_seconds"] = round(await measured.keep(present, count), 1)
            present = count
            rows.append(await measured.measure(Point(f"{count:,} rows kept in the journal"), seconds))
        long = await asyncpg.connect(measured.running.source_url)
        await long.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO watched_1 (customer, note) VALUES (1, 'open for the whole run')")
        rows.append(await measured.measure(Point("a transaction open for the whole run"), seconds))
        await long.execute("ROLLBACK")
        await long.close()
    figures = {name: value for name, value in figures.items() if value > 0.1 or name == "watching_1_seconds"}
    figures |= {f"{row['']}, of bare": round(float(row["of bare"]), 3) for row in rows}
    figures |= {f"{row['']}, drain s": round(float(row["drain s"]), 2) for row in rows}
    report("growth_capture", rows, {"seconds": seconds, **figures})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--tables", type=int, nargs="+", default=[1, 10, 100, MOST_TABLES])
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 8, 32, 100])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--kept", type=int, nargs="+", default=[0, 50_000_000], help="rows kept in the journal; 50 million take some 6 GB")
    given = parser.parse_args()
    asyncio.run(main(given.seconds, given.tables, given.writers, given.sizes, given.kept))
