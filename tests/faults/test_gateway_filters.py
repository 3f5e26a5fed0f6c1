"""kill -9 of the gateway under load: what filtering clients keep by enter, stay, leave and snapshots is the filtered table."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec
import pytest

from tests.support.pipeline import Pipeline, pipeline
from tocsin.client import Delivery, Item, Row, SnapshotStart, subscribe

WHERE: dict[str, dict[str, Any]] = {"customer": {"in": [1, 2]}, "total": {"gte": 5}}
CONDITION = "customer IN (1, 2) AND total >= 5"
LAST = 10_000


@dataclass(slots=True)
class Kept:
    """What one client makes of what it gets; `strange` has the events that did not fit what it had."""

    since: str
    url: str
    subject: str
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    strange: list[Any] = field(default_factory=list)
    starts: int = 0
    seen: int = 0
    told_last: bool = False

    async def follow(self) -> None:
        """Returns once the last row has come."""
        async with subscribe(self.url, self.subject, since=self.since, where=WHERE) as events:
            async for item in events:
                self.take(item)
                if self.told_last:
                    return

    def take(self, item: Item) -> None:
        if isinstance(item, SnapshotStart):
            self.rows.clear()
            self.starts += 1
        elif isinstance(item, Row):
            assert item.row is not None
            self.rows[item.key["id"]] = item.row
        elif isinstance(item, Delivery):
            self.seen += 1
            key = item.key["id"]
            if (item.effect == "enter") != (key not in self.rows) or item.effect is None:
                self.strange.append(item)
            if item.effect == "leave":
                self.rows.pop(key, None)
            else:
                self.rows[key] = item.new
            self.told_last = key == LAST


async def write(site: Pipeline, seed: int, stop: asyncio.Event) -> None:
    chance = random.Random(seed)
    connection = await asyncpg.connect(site.source_url)
    while not stop.is_set():
        async with connection.transaction():
            for _ in range(chance.randint(1, 5)):
                key, customer, total = chance.randint(1, 60) * 3 + seed, chance.randint(1, 3), chance.randint(0, 10)
                if chance.random() < 0.15:
                    await connection.execute("DELETE FROM orders WHERE id = $1", key)
                else:
                    await connection.execute(
                        "INSERT INTO orders VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET customer = $2, total = $3", key, customer, total
                    )
        await asyncio.sleep(chance.random() / 100)
    await connection.close()


@pytest.mark.slow
async def test_filtered_clients_keep_the_filtered_table_across_kills_of_the_gateway() -> None:
    """The oracle is PostgreSQL itself. Clients come before and between the kills, from the start and by snapshot."""
    async with asyncio.timeout(150), pipeline() as site:
        connection = await asyncpg.connect(site.source_url)
        await connection.execute("CREATE TABLE orders (id int PRIMARY KEY, customer int, total int)")
        await site.tocsin("install")
        await site.tocsin("watch", "orders")
        await site.start("listener")
        await site.start("gateway")
        clients: list[Kept] = []
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write(site, seed, stop)) for seed in range(3)]
            for _ in range(3):
                fresh = [Kept(since, site.gateway_url, "pg.shop.change.public.orders.>") for since in ("start", "snapshot", "snapshot")]
                clients += fresh
                for client in fresh:
                    group.create_task(client.follow())
                while any(client.seen < 30 for client in fresh):
                    await asyncio.sleep(0.02)
                before = [client.seen for client in clients]
                await site.kill("gateway")
                await site.start("gateway")
                while any(client.seen < had + 20 for client, had in zip(clients, before, strict=True)):
                    await asyncio.sleep(0.02)
            stop.set()
            await asyncio.wait(writers)
            await connection.execute("INSERT INTO orders VALUES ($1, 1, 5)", LAST)
        wanted = {
            row["id"]: msgspec.json.decode(row["row"])
            for row in await connection.fetch(f"SELECT id, row_to_json(o)::text AS row FROM orders AS o WHERE {CONDITION}")
        }  # the test's own
        await connection.close()
    assert len(wanted) > 10
    for client in clients:
        assert client.strange == []
        assert client.rows == wanted, client.since
    assert sum(client.starts for client in clients) >= 6
