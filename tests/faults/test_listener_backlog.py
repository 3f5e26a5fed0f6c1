"""F14: NATS was down for long. The journal has grown, the listener's memory does not, and catching up is paged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nats.aio.client import Client

from tests.faults.test_listener_crashes import STREAM, running_listener

ROWS = 120_000
MOST_GROWTH = 120 << 20
"""Bytes. What is in flight was measured at 36 MiB; the backlog is several times that."""


def resident(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


async def test_a_journal_of_hours_is_caught_up_in_bounded_memory() -> None:
    async with running_listener() as (running, source):
        pid = running.services["listener"].pid
        await source.execute("ALTER TABLE t ADD COLUMN note text")
        before = resident(pid)
        await running.nats.stop()
        for _ in range(3):
            await source.execute("INSERT INTO t (n, note) SELECT i, repeat('x', 2000) FROM generate_series(1, $1::int) AS i", ROWS // 3)
        assert await source.fetchval("SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'tocsin.journal'::regclass") > 15 << 20
        await running.nats.start()
        most = 0
        client = Client()
        await client.connect(running.nats.url)
        context = client.jetstream()
        async with asyncio.timeout(60):
            stored = 0
            while stored < ROWS:
                most = max(most, resident(pid))
                info = await context.stream_info(STREAM, subjects_filter="pg.shop.change.>")
                stored = sum((info.state.subjects or {}).values())
                await asyncio.sleep(0.02)
        assert stored == ROWS
        size = info.state.bytes
        assert size > 2 * MOST_GROWTH, "the backlog must be larger than what the memory may grow by"
        assert most - before < MOST_GROWTH, f"{(most - before) >> 20} MiB more for a backlog of {size >> 20} MiB"
        await client.close()
