"""How the gateway's cost grows: clients, different patterns, subscriptions of a client, filters, and events that nobody wants.

Each row tells the processor time that the gateway's event loop took for an event (microseconds, user and system), and for a delivery. Events nobody
wants must cost next to nothing: the consumer's filter keeps them in JetStream. It ends by itself, after some four minutes at the default size.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from benchmarks.fanout import EVENT, Target, make_stream, open_sink
from benchmarks.report import report
from tests.support.pipeline import pipeline
from tocsin.event import EPOCH, MSG_ID

ORDERS = "pg.shop.change.public.orders"
LEDGER = "pg.shop.change.public.ledger"
SETTLE_SECONDS = 0.5
QUIET_SECONDS = 0.3


def processor_seconds(pid: int) -> float:
    """What the event loop's thread ran, to the nanosecond; the usual counters tick a hundred times a second."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@dataclass(frozen=True, slots=True)
class Case:
    """What the clients ask for, and what is published. `matching`: how many of the clients each event is for."""

    name: str
    count: int
    clients: int
    hellos: tuple[str, ...]
    matching: int
    subject: str = f"{ORDERS}.insert"


def hello(id: int, subject: str, **more: Any) -> str:  # noqa: A002  # the field's name
    """In `subject` and values CLIENT stands for the client's number."""
    return msgspec.json.encode({"op": "subscribe", "id": str(id), "subject": subject, **more}).decode().replace('"CLIENT"', "CLIENT")


def cases(many: int) -> Iterator[Case]:
    sizes = sorted({1, max(1, many // 50), max(1, many // 5), many})
    plain = hello(0, f"{ORDERS}.>")
    for count in sizes:
        yield Case("clients", count, count, (plain,), count)
    for count in sizes:
        yield Case("clients with one filter", count, count, (hello(0, f"{ORDERS}.>", where={"id": {"gte": 0}}),), count)
    for count in sizes:
        yield Case("clients that follow a value each", count, count, (hello(0, f"{ORDERS}.>", where={"id": {"eq": "CLIENT"}}),), 1)
    for count in sizes[:2]:
        bound = {"gte": "CLIENT", "lt": many + 1}
        yield Case("clients with a filter of their own", count, count, (hello(0, f"{ORDERS}.>", where={"id": bound}),), -1)
    for count in sizes:
        yield Case("patterns, a client each", count, count, (hello(0, f"{ORDERS}.*.CLIENT"),), 1, f"{ORDERS}.insert.CLIENT")
    for count in (1, 10, 100):
        others = tuple(hello(number, f"pg.shop.change.public.other{number}.>") for number in range(1, count))
        yield Case("subscriptions of 10 clients each, one matches", count, 10, (plain, *others), 10)
    for count in (1, 10, 100):
        yield Case("subscriptions of 10 clients each, all match", count, 10, tuple(hello(number, f"{ORDERS}.>") for number in range(count)), 10)
    yield Case("clients, of whom a filter keeps every event", 100, 100, (hello(0, f"{ORDERS}.>", where={"id": {"lt": 0}}),), 0)
    yield Case("clients, events nobody wants", 100, 100, (plain,), 0, f"{LEDGER}.insert")


async def publish(client: Client, case: Case, count: int) -> None:
    """Event n bears the id of client n (modulo their number), and in its subject too where the case says so."""
    context = client.jetstream(publish_async_max_pending=1000)
    run = time.monotonic_ns()
    for number in range(count):
        whose = str(number % case.clients)
        body = EVENT.format(whose).encode()
        await context.publish_async(case.subject.replace("CLIENT", whose), body, headers={MSG_ID: f"growth-{run}-{number}", EPOCH: "bench0000"})
    await context.publish_async_completed()


async def until_quiet(pid: int) -> None:
    """Returns once the gateway does next to nothing."""
    async with asyncio.timeout(60):
        before = processor_seconds(pid)
        while True:
            await asyncio.sleep(QUIET_SECONDS)
            if (now := processor_seconds(pid)) - before < QUIET_SECONDS / 20:
                return
            before = now


async def measure(client: Client, pid: int, port: int, case: Case, events: int) -> dict[str, Any]:
    """One row; at most 100 deliveries for each of `events`, or 5,000 clients would take minutes."""
    number = max(20, min(events, events * 100 // max(1, case.matching, case.clients if case.matching < 0 else 0)))
    if case.matching == 1:
        number = max(number // case.clients, 1) * case.clients
    # More than can come where it is not known how many do, so that the sink waits until it is stopped.
    each = number * case.matching // case.clients if case.matching > 0 else 1_000_000
    target = Target(case.name, port, "/ws", case.hellos, "text", f'"subscribed","id":"{len(case.hellos) - 1}"', '"op":"event"')
    sink = await open_sink(target, case.clients, each)
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        await until_quiet(pid)
        before = processor_seconds(pid)
        await publish(client, case, number)
        if case.matching > 0:
            assert sink.stdout is not None
            async with asyncio.timeout(60):
                result = msgspec.json.decode(await sink.stdout.readline())
            assert result["count"] == each * case.clients, (case, result)
        else:
            await until_quiet(pid)
        used = (processor_seconds(pid) - before) * 1e6
    finally:
        if sink.returncode is None:
            sink.kill()
        await sink.wait()
    return {"": case.name, "count": case.count, "us an event": used / number, "us a delivery": used / number / case.matching if case.matching > 0 else 0.0}


async def main(size: float, events: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows: list[dict[str, Any]] = []
    async with pipeline(TOCSIN_LIMITS="messages_per_second=10000") as running:
        client = Client()
        await client.connect(running.nats.url)
        await make_stream(client)
        gateway = await running.start("gateway")
        for case in cases(max(2, int(5000 * size))):
            row = await measure(client, gateway.pid, int(running.environment["TOCSIN_GATEWAY_PORT"]), case, events)
            print(", ".join(map(str, row.values())), flush=True)
            rows.append(row)
        await client.close()
    figures = {f"{row['']} {row['count']}": round(row["us an event"], 1) for row in rows}
    report("growth_gateway", rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="1 is 5,000 clients")
    parser.add_argument("--events", type=int, default=2000)
    given = parser.parse_args()
    asyncio.run(main(given.size, given.events))
