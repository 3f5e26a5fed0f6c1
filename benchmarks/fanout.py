"""WebSocket messages delivered a second, 100 and 1,000 clients, 150-byte events, from JetStream.

Rivals in the same run, with the same clients and messages: nats-server's own WebSocket listener, and a FastAPI loop of
`send_json`. The time is from the first message at any client to the last one at the last client.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from nats.aio.client import Client

from benchmarks.report import report
from tests.support.pipeline import pipeline
from tocsin.event import EPOCH, EPOCH_METADATA, MSG_ID
from tocsin.stack import process
from tocsin.subject import stream_subjects

SUBJECT = "pg.shop.change.public.orders.insert"
EVENT = (
    '{{"specversion":"1.0","id":"bench-{0}","source":"/pg/shop","type":"public.orders.insert","time":"2026-01-01T00:00:00.000000Z","sequence":"{0}",'
    '"txid":"{0}","data":{{"op":"insert","new":{{"id":{0}}}}}}}'
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the sink connects, what it says, what tells it that it is subscribed, and what it counts."""

    name: str
    port: int
    path: str
    hellos: tuple[str, ...]
    kind: str
    ready: str
    marker: str


async def publish(client: Client, count: int) -> None:
    context = client.jetstream(publish_async_max_pending=4000)
    # A round that follows within the stream's window of duplicates must not repeat the ids of the one before.
    batch = uuid.uuid4().hex
    for number in range(count):
        await context.publish_async(SUBJECT, EVENT.format(number).encode(), headers={MSG_ID: f"{batch}-{number}", EPOCH: "bench0000"})
    await context.publish_async_completed()


async def open_sink(target: Target, clients: int, messages: int) -> asyncio.subprocess.Process:
    """That many clients in a process of their own, subscribed."""
    sink = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.sink", "127.0.0.1", str(target.port), target.path, str(clients), target.marker, str(messages), target.kind),
        target.ready,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert sink.stdin is not None
    assert sink.stdout is not None
    sink.stdin.write("".join(f"{hello}\n" for hello in target.hellos).encode())
    sink.stdin.close()
    async with asyncio.timeout(180):
        assert (await sink.stdout.readline()).strip() == b"ready"
    return sink


async def measure(client: Client, target: Target, clients: int, messages: int) -> float:
    """Deliveries a second."""
    sink = await open_sink(target, clients, messages)
    assert sink.stdout is not None
    async with asyncio.timeout(120):
        await publish(client, messages)
        result = msgspec.json.decode(await sink.stdout.readline())
        await sink.wait()
    if result["count"] != clients * messages:
        print(f"{target.name}: {result['count']} of {clients * messages} arrived; slowest client {result['slowest']}")
        return 0.0
    return float(result["count"] / result["seconds"])


async def make_stream(client: Client) -> None:
    await client.jetstream().add_stream(
        name="TOCSIN_SHOP", subjects=list(stream_subjects("pg", "shop")), metadata={EPOCH_METADATA: "bench0000"}, allow_direct=True, duplicate_window=1
    )


async def main(rounds: int, cases: list[tuple[int, int]]) -> None:
    websocket_port, rival_port = process.free_port(), process.free_port()
    rows: list[dict[str, Any]] = []
    async with pipeline(nats_extra=f'websocket {{ listen: "127.0.0.1:{websocket_port}", no_tls: true }}') as running:
        client = Client()
        await client.connect(running.nats.url)
        await make_stream(client)
        await running.start("gateway")
        rival = await process.start(sys.executable, "-m", "benchmarks.rivals.send_json", running.nats.url, str(rival_port), log=running.folder / "rival.log")
        async with asyncio.timeout(15):
            while not process.port_is_open(rival_port):
                await asyncio.sleep(0.05)
        subscribe = msgspec.json.encode({"op": "subscribe", "id": "a", "subject": "pg.shop.change.public.orders.*"}).decode()
        targets = (
            Target("tocsin", int(running.environment["TOCSIN_GATEWAY_PORT"]), "/ws", (subscribe,), "text", '"subscribed"', '"op":"event"'),
            Target(
                "nats-server",
                websocket_port,
                "/",
                ('CONNECT {"verbose":false,"headers":true}\\r\\nSUB pg.shop.change.public.orders.* 1\\r\\nPING\\r\\n',),
                "binary",
                "PONG",
                "MSG pg.shop",
            ),
            Target("send_json loop", rival_port, "/ws", ("hello",), "text", '"ready"', '"op":"event"'),
        )
        for clients, messages in cases:
            for target in targets:
                count = messages // 10 if target.name == "send_json loop" else messages
                best = sorted([await measure(client, target, clients, count) for _ in range(rounds)])[rounds // 2]
                rows.append({"clients": clients, "": target.name, "deliveries/s": best})
        await process.stop(rival)
        await client.close()
    by = {(row["clients"], row[""]): row["deliveries/s"] for row in rows}
    figures = {
        f"ratio_{rival.replace('-', '_').replace(' ', '_')}_{clients}": round(by[clients, "tocsin"] / max(by[clients, rival], 1), 2)
        for clients, _ in cases
        for rival in ("nats-server", "send_json loop")
    }
    report("fanout", rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.rounds, [(100, 20_000), (1000, 2_000)]))
