"""How the gateway's cost grows: clients, subscriptions of a client, filters, and events that nobody wants.

Each row publishes the same number of events and tells the processor time that the gateway's process took for each of them
(microseconds, user and system), and for each delivery. Events nobody wants must cost next to nothing: the consumer's
filter keeps them in JetStream.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from benchmarks.fanout import EVENT, Target, make_stream, open_sink
from benchmarks.report import report
from tests.support.pipeline import pipeline
from tocsin.event import EPOCH, MSG_ID

WANTED = "pg.shop.change.public.orders.insert"
UNWANTED = "pg.shop.change.public.ledger.insert"
SETTLE_SECONDS = 0.5


def processor_seconds(pid: int) -> float:
    """What the event loop's thread ran, to the nanosecond; the usual counters tick a hundred times a second."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def subscribes(count: int, subject: str = "pg.shop.change.public.orders.*", **more: Any) -> tuple[str, ...]:
    """That many subscriptions; all but the first are of other tables, each of its own."""
    subjects = [subject, *(f"pg.shop.change.public.other{number}.*" for number in range(1, count))]
    return tuple(msgspec.json.encode({"op": "subscribe", "id": str(n), "subject": s, **(more if n == 0 else {})}).decode() for n, s in enumerate(subjects))


async def publish(client: Client, subject: str, count: int) -> None:
    context = client.jetstream(publish_async_max_pending=1000)
    run = time.monotonic_ns()
    for number in range(count):
        await context.publish_async(subject, EVENT.format(number).encode(), headers={MSG_ID: f"growth-{run}-{number}", EPOCH: "bench0000"})
    await context.publish_async_completed()


async def measure(client: Client, pid: int, target: Target, clients: int, events: int, *, subject: str = WANTED, delivered: bool = True) -> dict[str, Any]:
    """One row."""
    # More than can come, so that the sink waits until it is stopped.
    sink = await open_sink(target, clients, events if delivered else 1_000_000)
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        before = processor_seconds(pid)
        await publish(client, subject, events)
        if delivered:
            assert sink.stdout is not None
            async with asyncio.timeout(60):
                result = msgspec.json.decode(await sink.stdout.readline())
            assert result["count"] == clients * events, result
        else:
            await asyncio.sleep(SETTLE_SECONDS)
        used = (processor_seconds(pid) - before) * 1e6
    finally:
        if sink.returncode is None:
            sink.kill()
        await sink.wait()
    return {"us an event": used / events, "us a delivery": used / events / clients if delivered else 0.0}


async def main(size: float, events: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    many = max(2, int(5000 * size))
    rows: list[dict[str, Any]] = []
    async with pipeline(TOCSIN_LIMITS="messages_per_second=10000") as running:
        client = Client()
        await client.connect(running.nats.url)
        await make_stream(client)
        gateway = await running.start("gateway")
        port = int(running.environment["TOCSIN_GATEWAY_PORT"])

        async def row(what: str, count: int, hellos: tuple[str, ...], clients: int, **how: Any) -> None:
            target = Target(what, port, "/ws", hellos, "text", f'"subscribed","id":"{len(hellos) - 1}"', '"op":"event"')
            # The same deliveries at most, or 5,000 clients would take minutes.
            number = max(20, min(events, events * 100 // clients)) if how.get("delivered", True) else events
            rows.append({"": what, "count": count, **await measure(client, gateway.pid, target, clients, number, **how)})

        for count in sorted({1, max(1, many // 50), max(1, many // 5), many}):
            await row("clients", count, subscribes(1), count)
        for count in sorted({1, 10, 100}):
            await row("subscriptions a client", count, subscribes(count), 10)
        await row("filters: all pass", 100, subscribes(1, where={"id": {"gte": 0}}), 100)
        await row("no filter", 100, subscribes(1), 100)
        await row("events nobody wants", 100, subscribes(1), 100, subject=UNWANTED, delivered=False)
        await client.close()
    figures = {f"{row['']} {row['count']}": round(row["us an event"], 1) for row in rows}
    report("growth_gateway", rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="1 is 5,000 clients")
    parser.add_argument("--events", type=int, default=2000)
    given = parser.parse_args()
    asyncio.run(main(given.size, given.events))
