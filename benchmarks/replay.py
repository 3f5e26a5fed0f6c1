"""Live clients' latency while others replay a long stream: with 1, 20 and 200 slow ones, with one that takes
4 MB a second, and while 200 begin at once, in turns of one run.

A slow client asks for everything since the start and takes so many bytes a second, so that its replay goes on for as long as its turn. Latency is from
just before the publish to JetStream until the event was read by each of the first ten live clients. Publisher, live clients, replaying clients and
gateway are processes of their own. The gateway's processor time is told beside: what a replay takes, it takes from its core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from benchmarks.fanout import EVENT, make_stream
from benchmarks.report import quantile, report
from tests.support.pipeline import pipeline
from tocsin.event import EPOCH, MSG_ID

OLD, LIVE = "pg.shop.change.public.orders.insert", "pg.shop.change.public.live.insert"
LIVE_CLIENTS = 20
FAST = 4_000_000
TURNS: dict[str, tuple[int, float, float]] = {
    "none": (0, 0.0, 0.0),
    "1 slow": (1, 65_536, 3.0),
    "20 slow": (20, 65_536, 3.0),
    "200 slow": (200, 16_384, 3.0),
    "1 fast": (1, FAST, 0.5),
    "200 begin": (200, 65_536, 0.0),
}
"""By name: how many replay, how many bytes a second each takes, and how many seconds they do before the turn: at first the kernel's buffers fill."""

RATE = 100
PIPE = asyncio.subprocess.PIPE


def subscribe(subject: str, since: str) -> str:
    return msgspec.json.encode({"op": "subscribe", "id": "a", "subject": subject, "since": since}).decode()


async def start(module: str, *arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments), stdin=PIPE, stdout=PIPE, limit=1 << 26)


async def line(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdout is not None
    async with asyncio.timeout(60):
        return await child.stdout.readline()


async def clients(module: str, *arguments: object, hello: str = "") -> asyncio.subprocess.Process:
    """A process of clients, all of them subscribed."""
    child = await start(module, *arguments)
    assert child.stdin is not None
    if hello:
        child.stdin.write(hello.encode())
        child.stdin.close()
    assert await line(child) == b"ready\n"
    return child


@contextlib.asynccontextmanager
async def replaying(port: int, count: int, rate: float, settle: float) -> AsyncIterator[None]:
    """That many replays go on, each at its pace."""
    if not count:
        yield
        return
    child = await clients("slow_sink", "127.0.0.1", port, "/ws", count, rate, subscribe(OLD, "start"))
    try:
        await asyncio.sleep(settle)
        yield
        assert child.stdin is not None
        child.stdin.close()
        told = msgspec.json.decode(await line(child))
        assert all(told["taken"]), f"a replay did not go on: {told}"
        assert rate == FAST or not settle or max(told["empty"]) < told["turns"] / 10, f"a slow client had to wait for the gateway: {told}"
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def processor_seconds(pid: int) -> float:
    """What the event loop's thread ran."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def turn(port: int, nats_url: str, pid: int, count: int) -> tuple[list[float], float]:
    """The latencies in ms of so many events at ten live clients, and what share of a core the gateway took."""
    live = await clients("arrivals", "127.0.0.1", port, "/ws", LIVE_CLIENTS, count, "websocket", hello=subscribe(LIVE, "now"))
    before = processor_seconds(pid)
    writer = await start("stream_writer", nats_url, LIVE, RATE, count)
    sent = msgspec.json.decode((await writer.communicate())[0])
    arrived = msgspec.json.decode(await line(live))
    share = (processor_seconds(pid) - before) / (count / RATE)
    await live.wait()
    assert all(at is not None for times in arrived for at in times), "live events are missing"
    return [(at - sent[number]) * 1000 for times in arrived for number, at in enumerate(times)], share


async def main(events: int, rounds: int, seconds: float) -> None:
    latencies: dict[str, list[float]] = {name: [] for name in TURNS}
    shares: dict[str, list[float]] = {name: [] for name in TURNS}
    async with pipeline() as running:
        client = Client()
        await client.connect(running.nats.url)
        await make_stream(client)
        context = client.jetstream(publish_async_max_pending=4000)
        for old in range(events):
            await context.publish_async(OLD, EVENT.format(old).encode(), headers={MSG_ID: f"old-{old}", EPOCH: "bench0000"})
        await context.publish_async_completed()
        await client.close()
        gateway = await running.start("gateway")
        port = int(running.environment["TOCSIN_GATEWAY_PORT"])
        for _ in range(rounds):
            for name, replays in TURNS.items():
                async with replaying(port, *replays):
                    found, share = await turn(port, running.nats.url, gateway.pid, int(seconds * RATE))
                latencies[name] += found
                shares[name].append(share)
    rows: list[dict[str, Any]] = [
        {"replays": name, "p50 ms": quantile(found, 0.5), "p99 ms": quantile(found, 0.99), "longest ms": max(found), "of a core": quantile(shares[name], 0.5)}
        for name, found in latencies.items()
    ]
    figures = {f"{row['replays']} {q}": round(row[q], 2) for row in rows for q in ("p50 ms", "p99 ms", "of a core")}
    report("replay", rows, figures | {f"ratio_p99 {row['replays']}": round(row["p99 ms"] / rows[0]["p99 ms"], 2) for row in rows[1:]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.events, given.rounds, given.seconds))
