"""Live clients' latency while slow clients replay a long stream: with 0, 1 and 20 of them, in turns of one run.

A slow client asks for everything since the start and takes its bytes at a bounded rate, so that its replay goes on for as long as its turn. Latency is from
just before the publish to JetStream until the event was read by each live client, all in this process; the gateway is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import msgspec
from nats.aio.client import Client
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.fanout import EVENT, make_stream
from benchmarks.report import quantile, report
from tests.support.pipeline import pipeline
from tocsin.event import EPOCH, MSG_ID

OLD, LIVE = "pg.shop.change.public.orders.insert", "pg.shop.change.public.live.insert"
LIVE_CLIENTS = 20
REPLAYS = (0, 1, 20)
SLOW_MESSAGES, SLOW_PAUSE = 10, 0.1
RATE = 50


async def subscribed(url: str, subject: str, since: str, **options: Any) -> ClientConnection:
    socket = await connect(url, compression=None, proxy=None, ping_interval=None, **options)
    await socket.send(msgspec.json.encode({"op": "subscribe", "id": "a", "subject": subject, "since": since}).decode())
    while b'"subscribed"' not in await socket.recv(decode=False):
        pass
    return socket


async def slow(url: str, counts: list[int]) -> None:
    """A replay that takes so many messages a time; cancelled when its turn is over."""
    socket = await subscribed(url, OLD, "start", max_queue=16)
    counts.append(0)
    mine = len(counts) - 1
    try:
        while True:
            for _ in range(SLOW_MESSAGES):
                await socket.recv(decode=False)
                counts[mine] += 1
            await asyncio.sleep(SLOW_PAUSE)
    finally:
        socket.transport.abort()


async def read(socket: ClientConnection, sent: dict[int, float], first: int, count: int, found: list[float]) -> None:
    for number in range(first, first + count):
        message = msgspec.json.decode(await socket.recv(decode=False))
        while message["op"] != "event":
            message = msgspec.json.decode(await socket.recv(decode=False))
        assert message["event"]["sequence"] == str(number), message
        found.append((time.perf_counter() - sent[number]) * 1000)


async def turn(url: str, client: Client, replays: int, first: int, count: int) -> list[float]:
    """The latencies in ms of so many events at each live client, while so many replays go on."""
    found: list[float] = []
    sent: dict[int, float] = {}
    counts: list[int] = []
    context = client.jetstream()
    sockets = [await subscribed(url, LIVE, "now") for _ in range(LIVE_CLIENTS)]
    async with asyncio.TaskGroup() as group:
        slow_ones = [group.create_task(slow(url, counts)) for _ in range(replays)]
        while len(counts) < replays:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        before = list(counts)
        async with asyncio.TaskGroup() as reading:
            for socket in sockets:
                reading.create_task(read(socket, sent, first, count, found))
            for number in range(first, first + count):
                sent[number] = time.perf_counter()
                await context.publish(LIVE, EVENT.format(number).encode(), headers={MSG_ID: f"live-{number}", EPOCH: "bench0000"})
                await asyncio.sleep(1 / RATE)
        assert all(after > then for after, then in zip(counts, before, strict=True)), "a replay did not go on"
        for task in slow_ones:
            task.cancel()
    for socket in sockets:
        await socket.close()
    return found


async def main(events: int, rounds: int, seconds: float) -> None:
    latencies: dict[int, list[float]] = {replays: [] for replays in REPLAYS}
    number, count = events, int(seconds * RATE)
    async with pipeline() as running:
        client = Client()
        await client.connect(running.nats.url)
        await make_stream(client)
        context = client.jetstream(publish_async_max_pending=4000)
        for old in range(events):
            await context.publish_async(OLD, EVENT.format(old).encode(), headers={MSG_ID: f"old-{old}", EPOCH: "bench0000"})
        await context.publish_async_completed()
        await running.start("gateway")
        for _ in range(rounds):
            for replays in REPLAYS:
                latencies[replays] += await turn(running.socket_url, client, replays, number, count)
                number += count
        await client.close()
    rows: list[dict[str, Any]] = [{"slow replays": n, "p50 ms": quantile(found, 0.5), "p99 ms": quantile(found, 0.99)} for n, found in latencies.items()]
    alone = rows[0]["p99 ms"]
    figures = {f"p99 ms {row['slow replays']}": round(row["p99 ms"], 2) for row in rows}
    report("replay", rows, figures | {f"ratio_p99_{row['slow replays']}": round(row["p99 ms"] / alone, 2) for row in rows[1:]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.events, given.rounds, given.seconds))
