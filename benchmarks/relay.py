"""Events/s from a journal of 200,000 rows to acknowledged in JetStream, file storage, with NATS's default sync and with sync always.

The rivals in the same run, on the same servers: nats-outbox from the package index (--outbox PYTHON names the interpreter of a virtual
environment that has it; else one is made for the run), and nats-py's `publish` one by one. Also commit to acknowledgement, one event at
a time into an idle listener.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg
from nats.aio.client import Client

from benchmarks.report import quantile, report
from tests.support.pipeline import Pipeline, pipeline
from tocsin.stack import process

TABLE = """
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, note text NOT NULL, amount numeric(12,2) NOT NULL)
"""
INSERT = "INSERT INTO orders (customer, note, amount) SELECT n, 'a note of some forty characters, or so', 12.34 FROM generate_series(1, $1::int) AS n"
A_TRANSACTION = 1000
RIVAL_EVENTS = 3000


async def until_stored(client: Client, stream: str, subject: str, count: int) -> float:
    """Events/s between the first sight of any and the last; fails after two minutes."""
    first: tuple[float, int] | None = None
    context = client.jetstream()
    async with asyncio.timeout(120):
        while True:
            found = 0
            try:
                found = sum(((await context.stream_info(stream, subjects_filter=subject)).state.subjects or {}).values())
            except Exception as error:  # the stream is not there yet
                if "not found" not in str(error):
                    raise
            now = time.perf_counter()
            if found and first is None:
                first = (now, found)
            if found >= count and first is not None:
                return (found - first[1]) / (now - first[0]) if found > first[1] else float("inf")
            await asyncio.sleep(0.005)


async def relay(running: Pipeline, source: asyncpg.Connection, client: Client, rows: int) -> float:
    for _ in range(rows // A_TRANSACTION):
        await source.execute(INSERT, A_TRANSACTION)
    await source.execute("CHECKPOINT")
    child = await running.start("listener", ready=False)
    rate = await until_stored(client, "TOCSIN_SHOP", "pg.shop.change.public.orders.insert", rows)
    await running.until_ready(running.listener_url, child, "listener")
    return rate


async def idle_latency(source: asyncpg.Connection, client: Client, count: int) -> list[float]:
    """Milliseconds from the answer to COMMIT to the message at a plain subscriber of the stream's subjects, which gets it at the earliest
    when the server takes it: an acknowledgement is seen by the listener alone, so its own histogram tells that half.
    """
    arrived: asyncio.Queue[float] = asyncio.Queue()

    async def on_message(_: object) -> None:
        arrived.put_nowait(time.perf_counter())

    subscription = await client.subscribe("pg.shop.change.>", cb=on_message)
    await client.flush()
    found = []
    for _ in range(count):
        await asyncio.sleep(0.05)
        await source.execute("INSERT INTO orders (customer, note, amount) VALUES (1, 'one', 1)")
        committed = time.perf_counter()
        found.append(1000 * (await asyncio.wait_for(arrived.get(), 5) - committed))
    await subscription.unsubscribe()
    return found


async def one_by_one(client: Client, count: int) -> float:
    context = client.jetstream()
    body = b"x" * 400
    begin = time.perf_counter()
    for number in range(count):
        await context.publish("rival.single", body, headers={"Nats-Msg-Id": str(number)})
    return count / (time.perf_counter() - begin)


async def outbox(running: Pipeline, client: Client, python: str, count: int) -> float:
    script = str(Path(__file__).parent / "rivals" / "outbox_relay.py")
    log = running.folder / "outbox.log"
    preparing = await process.start(python, script, running.source_url, running.nats.url, "prepare", str(count), log=log)
    if await preparing.wait():
        raise SystemExit(process.tail(log))
    child = await process.start(python, script, running.source_url, running.nats.url, "relay", log=log)
    try:
        return await until_stored(client, "RIVAL", "rival.outbox", count)
    except TimeoutError:
        raise SystemExit(process.tail(log)) from None
    finally:
        await process.stop(child)


async def main(rows: int, rounds: int, python: str) -> None:
    table: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for name, sync in (("default", "2m"), ("sync always", "always")):
        rates: dict[str, list[float]] = {"tocsin": [], "nats-outbox": [], "nats-py one by one": []}
        latencies: list[float] = []
        for _ in range(rounds):
            async with pipeline(sync=sync, configuration={"max_wal_size": "4GB"}) as running:
                source = await asyncpg.connect(running.source_url)
                await source.execute(TABLE)
                await running.tocsin("install")
                await running.tocsin("watch", "orders")
                client = Client()
                await client.connect(running.nats.url)
                await client.jetstream().add_stream(name="RIVAL", subjects=["rival.>"])
                rates["nats-py one by one"].append(await one_by_one(client, RIVAL_EVENTS))
                rates["nats-outbox"].append(await outbox(running, client, python, RIVAL_EVENTS))
                rates["tocsin"].append(await relay(running, source, client, rows))
                latencies += await idle_latency(source, client, 60)
                await client.close()
                await source.close()
        median = {who: sorted(found)[len(found) // 2] for who, found in rates.items()}
        table += [{"sync": name, "": who, "events/s": round(rate), "of tocsin": rate / median["tocsin"]} for who, rate in median.items()]
        result |= {
            f"{name} events/s": round(median["tocsin"]),
            f"{name} times nats-outbox": round(median["tocsin"] / median["nats-outbox"], 1),
            f"{name} times nats-py one by one": round(median["tocsin"] / median["nats-py one by one"], 1),
            f"{name} idle commit to stream p50 ms": round(quantile(latencies, 0.5), 2),
            f"{name} idle commit to stream p99 ms": round(quantile(latencies, 0.99), 2),
        }
    report("relay", table, result)


def with_outbox(folder: str) -> str:
    """A virtual environment of its own for the rival: its dependencies are none of ours."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(Path(folder) / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "nats-outbox==0.1.0"], check=True)
    return python


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--outbox", metavar="PYTHON", help="the interpreter of an environment that has nats-outbox")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tocsin-outbox-") as made:
        asyncio.run(main(given.rows, given.rounds, given.outbox or with_outbox(made)))
