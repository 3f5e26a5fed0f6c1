"""One statement that touches many rows: INSERT and UPDATE of a watched table against the same table bare; nothing else runs. Best of the rounds."""

from __future__ import annotations

import argparse
import asyncio
import time

import asyncpg

from benchmarks.capture import TABLE
from benchmarks.report import report
from tests.support.pipeline import pipeline

INSERT = "INSERT INTO {name} (customer, note, amount) SELECT g % 1000, 'a note of some forty characters, or so', 12.34 FROM generate_series(1, {rows}) AS g"
UPDATE = "UPDATE {name} SET amount = amount + 1"
UNSEEN = "SET session_replication_role = replica; TRUNCATE tocsin.journal, {name}; {then}; RESET session_replication_role; CHECKPOINT"


async def seconds(source: asyncpg.Connection, name: str, op: str, rows: int) -> float:
    """How long one statement takes, after a checkpoint; the table is filled without being captured."""
    fill = INSERT.format(name=name, rows=rows) if op == "update" else "SELECT 1"
    for statement in UNSEEN.format(name=name, then=fill).split("; "):
        await source.execute(statement)
    begun = time.perf_counter()
    await source.execute(INSERT.format(name=name, rows=rows) if op == "insert" else UPDATE.format(name=name))
    return time.perf_counter() - begun


async def main(rows: int, rounds: int) -> None:
    table, result = [], {}
    async with pipeline() as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute(";".join(TABLE.format(name=name) for name in ("bare", "orders")))
        await running.tocsin("install")
        await running.tocsin("watch", "orders")
        for op in ("insert", "update"):
            best = {name: min([await seconds(source, name, op, rows) for _ in range(rounds)]) for name in ("bare", "orders")}
            table += [{"op": op, "": name, "rows/s": rows / taken, "of bare": best["bare"] / taken} for name, taken in best.items()]
            result[f"ratio_{op}"] = round(best["bare"] / best["orders"], 3)
        await source.close()
    report("bulk", table, result | {"rows": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    asyncio.run(main(given.rows, given.rounds))
