"""One-row INSERTs at a steady rate from four connections, in a process of its own.

    python -m benchmarks.writer URL TABLE RATE COUNT

Prints one line of JSON: by number, when the statement was sent and when its commit was answered, in monotonic seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import asyncpg
import uvloop

WRITERS = 4


async def main(url: str, table: str, rate: int, count: int) -> None:
    told: list[tuple[float, float]] = [(0.0, 0.0)] * count
    connections = [await asyncpg.connect(url) for _ in range(WRITERS)]
    insert = f"INSERT INTO {table} (number, note, amount) VALUES ($1, 'a note of some forty characters, or so', 12.34)"
    statements = [await connection.prepare(insert) for connection in connections]
    begin = time.perf_counter() + 0.2

    async def write(first: int) -> None:
        for number in range(first, count, WRITERS):
            pause = begin + number / rate - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            sent = time.perf_counter()
            await statements[first].fetch(number)
            told[number] = (sent, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for first in range(WRITERS):
            group.create_task(write(first))
    for connection in connections:
        await connection.close()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
