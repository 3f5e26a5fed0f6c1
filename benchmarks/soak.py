"""Random writers, and every few seconds a random kill -9 of a listener, of NATS or of PostgreSQL: journal == stream == client == table.

Two listeners (one leads, one stands by), a gateway, and a WebSocket client that comes back with its position. At the end nothing may be
lost, repeated or out of order per key, and the table rebuilt from the events alone must equal the table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec
from nats.aio.client import Client
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from benchmarks.report import report
from tests.support.pipeline import Pipeline, pipeline
from tests.support.tally import Replica, Tally
from tocsin.event import COPY
from tocsin.stack.process import free_port

STREAM = "TOCSIN_SHOP"
SUBJECT = "pg.shop.change.public.t.>"
WRITER = "a soak's writer"
KEYS = 2000
TABLE = """
CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL, note text NOT NULL DEFAULT '', amount numeric(12,2));
CREATE INDEX ON t (n)
"""
GONE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)


@dataclass(slots=True)
class Run:
    """What happened, and what the client saw."""

    running: Pipeline
    kills: Counter[str] = field(default_factory=Counter)
    committed: int = 0
    rolled_back: int = 0
    client: Tally = field(default_factory=Tally)
    gaps: list[str] = field(default_factory=list)
    resumed: int = 0
    longest: float = 0.0


async def one_transaction(connection: asyncpg.Connection, rng: random.Random) -> bool:
    """A transaction of one to five random statements; whether it was committed."""
    keep = rng.random() > 0.1
    transaction = connection.transaction()
    await transaction.start()
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        await one_statement(connection, rng)
        if rng.random() < 0.05:
            inner = connection.transaction()
            await inner.start()
            await one_statement(connection, rng)
            await inner.rollback()
    await (transaction.commit() if keep else transaction.rollback())
    return keep


async def one_statement(connection: asyncpg.Connection, rng: random.Random) -> None:
    """Inserts, upserts, updates that now and then change the key, deletes; of one row, of some, seldom of many."""
    key, draw = rng.randrange(KEYS), rng.random()
    if draw < 0.4:
        await connection.execute(
            "INSERT INTO t VALUES ($1, $2, $3, $2 / 3.0) ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = excluded.note",
            key,
            rng.randrange(10**9),
            "x" * 40,
        )
    elif draw < 0.7:
        await connection.execute("UPDATE t SET n = n + 1 WHERE id = $1", key)
    elif draw < 0.8:
        await connection.execute("DELETE FROM t WHERE id = $1", key)
    elif draw < 0.9:
        await connection.execute("UPDATE t SET id = $2, n = n + 1 WHERE id = $1 AND NOT EXISTS (SELECT FROM t WHERE id = $2)", key, rng.randrange(KEYS))
    elif draw < 0.995:
        await connection.execute("UPDATE t SET amount = n WHERE id IN (SELECT id FROM t WHERE id >= $1 ORDER BY id LIMIT 20 FOR UPDATE)", key)
    else:
        await connection.execute("INSERT INTO t SELECT g, $1 FROM generate_series($2::bigint, $2 + 999) AS g ON CONFLICT (id) DO NOTHING", key, 10_000 + key)
        await connection.execute("DELETE FROM t WHERE id >= 10000 AND n < $1", key)


async def write(run: Run, seed: int, pause: float) -> None:
    """One writer, over every restart of the database. What deadlocks or collides is rolled back, as an application's would be."""
    rng = random.Random(seed)
    while True:
        connection = None
        try:
            connection = await asyncpg.connect(run.running.source_url, timeout=5, command_timeout=20, server_settings={"application_name": WRITER})
            while True:
                try:
                    begun = time.monotonic()
                    kept = await one_transaction(connection, rng)
                    run.longest = max(run.longest, time.monotonic() - begun)
                    run.committed += kept
                    run.rolled_back += not kept
                except (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError):
                    await connection.reset()
                    run.rolled_back += 1
                await asyncio.sleep(rng.expovariate(1 / pause))
        except GONE:
            await asyncio.sleep(0.1)
        finally:
            if connection is not None:
                connection.terminate()


async def listen(run: Run, live: asyncio.Event) -> None:
    """The WebSocket client: it remembers its position, and comes back with it."""
    position = "start"
    while True:
        with contextlib.suppress(ConnectionClosed, WebSocketException, OSError, TimeoutError):
            async with connect(run.running.socket_url, compression=None, max_size=None, open_timeout=10) as socket:
                await socket.send(msgspec.json.encode({"op": "subscribe", "id": "a", "subject": SUBJECT, "since": position}).decode())
                run.resumed += 1
                async for text in socket:
                    frame = msgspec.json.decode(text)
                    if frame["op"] == "subscribed":
                        live.set()
                        if not frame["recovered"]:
                            run.gaps.append(str(frame.get("reason")))
                    elif frame["op"] == "event":
                        run.client.add(frame["event"])
                    elif frame["op"] == "error" and frame["code"] != "unavailable":
                        run.gaps.append(f"{frame['code']}: {frame['message']}")
                    position = frame.get("position", position)
        await asyncio.sleep(0.2)


async def kill(run: Run, rng: random.Random, pause: tuple[float, float], ports: dict[str, str]) -> None:
    """Every few seconds kill -9 of one part, which is started again after a moment."""
    running = run.running
    while True:
        await asyncio.sleep(rng.uniform(*pause))
        victim = rng.choice(("listener", "listener", "standby", "NATS", "PostgreSQL"))
        away = rng.uniform(0, 2)
        run.kills[victim] += 1
        if victim == "NATS":
            await running.nats.kill()
            await asyncio.sleep(away)
            await running.nats.start()
        elif victim == "PostgreSQL":
            await running.source.kill()
            await asyncio.sleep(away)
            await running.source.start()
        else:
            await running.kill(victim)
            await asyncio.sleep(away)
            await running.start("listener", name=victim, ready=False, TOCSIN_LISTENER_PORT=ports[victim])


async def writers_gone(run: Run) -> None:
    """A cancelled statement may still commit; nothing does once its session has ended."""
    source = await asyncpg.connect(run.running.source_url)
    await source.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", WRITER)
    async with asyncio.timeout(30):
        while await source.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", WRITER):
            await asyncio.sleep(0.05)
    await source.close()


async def stream_tally(running: Pipeline, wanted: set[int], patience: float) -> tuple[Tally, Replica, int]:
    """Everything that the stream holds, read until it has `wanted` or `patience` has passed; and how many epochs there are."""
    tally, replica, epochs = Tally(), Replica(), set()
    client = Client()
    await client.connect(running.nats.url)
    subscription = await client.jetstream().pull_subscribe(SUBJECT, stream=STREAM)
    end = time.monotonic() + patience
    while not wanted <= tally.seen and time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            for message in await subscription.fetch(500, timeout=2):
                headers = message.headers or {}
                epochs.add(headers.get("Tocsin-Epoch"))
                if COPY not in headers:
                    event = msgspec.json.decode(message.data)
                    tally.add(event)
                    replica.apply(event)
                await message.ack()
    with contextlib.suppress(TimeoutError):
        for message in await subscription.fetch(500, timeout=2):
            tally.add(msgspec.json.decode(message.data))
    await client.close()
    return tally, replica, len(epochs)


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[tuple[Run, dict[str, str]]]:
    async with pipeline(TOCSIN_LOG_FORMAT="json") as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute(TABLE)
        await source.close()
        await running.tocsin("install")
        await running.tocsin("watch", "t")
        ports = {"listener": running.environment["TOCSIN_LISTENER_PORT"], "standby": str(free_port())}
        await running.start("listener")
        await running.start("listener", name="standby", TOCSIN_LISTENER_PORT=ports["standby"])
        await running.start("gateway")
        yield Run(running), ports


async def main(minutes: float, writers: int, pause: float, seed: int, between: tuple[float, float]) -> int:
    async with site() as (run, ports):
        begun = time.monotonic()
        live = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            client = group.create_task(listen(run, live))
            await live.wait()
            tasks = [group.create_task(write(run, seed + number, pause)) for number in range(writers)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(minutes * 60):
                    await kill(run, random.Random(seed), between, ports)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await restore(run, ports)
            await writers_gone(run)
            took = time.monotonic() - begun
            code = await verdict(run, took, seed)
            client.cancel()
        return code


async def restore(run: Run, ports: dict[str, str]) -> None:
    """The end of the time may have come while a part was away."""
    running = run.running
    if running.source.pid is None:
        await running.source.start()
    if running.nats.pid is None:
        await running.nats.start()
    for name, port in ports.items():
        child = running.services.get(name)
        if child is None or child.returncode is not None:
            child = await running.start("listener", name=name, ready=False, TOCSIN_LISTENER_PORT=port)
        await running.until_ready(f"http://127.0.0.1:{port}", child, name, patience=60)


async def verdict(run: Run, took: float, seed: int) -> int:
    """Compare journal, stream, client and table; 1 where anything differs."""
    source = await asyncpg.connect(run.running.source_url)
    assert await source.fetchval("SELECT last_value >> 36 FROM tocsin.leaf") < 8, "retention went round: the journal no longer has everything"
    wanted = {row["seq"] for row in await source.fetch("SELECT seq FROM tocsin.events WHERE starts_with(subject, 'change.')")}
    rows = await source.fetch("SELECT id::text AS id, n, note, amount FROM t")
    await source.close()
    stream, replica, epochs = await stream_tally(run.running, wanted, 300)
    end = time.monotonic() + 60
    while not wanted <= run.client.seen and time.monotonic() < end:
        await asyncio.sleep(0.1)
    table = {row["id"]: (row["n"], row["note"], None if row["amount"] is None else float(row["amount"])) for row in rows}
    rebuilt = {key: (new["n"], new["note"], new["amount"]) for key, new in replica.rows.get("t", {}).items()}
    shown = [
        {
            "": name,
            "events": len(tally.seen),
            "lost": len(wanted - tally.seen),
            "invented": len(tally.seen - wanted),
            "repeated": tally.repeated,
            "out of order": tally.disorder,
        }
        for name, tally in (("stream", stream), ("client", run.client))
    ]
    figures: dict[str, Any] = {
        "minutes": round(took / 60, 2),
        "seed": seed,
        "transactions": run.committed,
        "rolled_back": run.rolled_back,
        "events": len(wanted),
        "kills": sum(run.kills.values()),
        **{f"kills_{name.lower()}": count for name, count in sorted(run.kills.items())},
        **{f"{row['']}_{what.replace(' ', '_')}": row[what] for row in shown for what in ("lost", "invented", "repeated", "out of order")},
        "client_connections": run.resumed,
        "client_gaps": len(run.gaps),
        "epochs": epochs,
        "table_equals_events": table == rebuilt,
        "longest_transaction_seconds": round(run.longest, 2),
    }
    report("soak", shown, figures)
    faults = sum(figures[f"{side}_{what}"] for side in ("stream", "client") for what in ("lost", "invented", "repeated", "out_of_order")) + len(run.gaps)
    for text in (*stream.samples, *run.client.samples, *run.gaps[:10]):
        print(text)
    return int(faults > 0 or table != rebuilt)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--writers", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.03, help="mean seconds between one writer's transactions")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--between", type=float, nargs=2, default=(2.0, 6.0), help="seconds between kills: from, to")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.minutes, given.writers, given.pause, given.seed, tuple(given.between))))
