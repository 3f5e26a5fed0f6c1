"""Memory of the gateway per idle subscribed client, at 5,000 clients; nats-server's WebSocket listener in the same run."""

from __future__ import annotations

import argparse
import asyncio
import resource
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from benchmarks.fanout import Target, make_stream, open_sink
from benchmarks.report import report
from tests.support.pipeline import pipeline
from tocsin.stack import process


def resident(pid: int) -> int:
    """Bytes of memory that are the process's own (anonymous), so that mapped files do not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc")


async def measure(target: Target, pid: int, clients: int) -> float:
    """KiB per client, between a tenth of them and all of them."""
    sizes = []
    for count in (clients // 10, clients):
        sink = await open_sink(target, count, 1)
        await asyncio.sleep(2)
        sizes.append(resident(pid))
        sink.kill()
        await sink.wait()
        await asyncio.sleep(1)
    return (sizes[1] - sizes[0]) / (clients - clients // 10) / 1024


async def main(clients: int) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    port = process.free_port()
    # Both servers get the room; limits per address are for the world outside.
    async with pipeline(nats_extra=f'max_connections: 64000\nwebsocket {{ listen: "127.0.0.1:{port}", no_tls: true }}') as running:
        client = Client()
        await client.connect(running.nats.url)
        await make_stream(client)
        gateway = await running.start("gateway")
        subscribe = msgspec.json.encode({"op": "subscribe", "id": "a", "subject": "pg.shop.change.public.orders.*"}).decode()
        hello = 'CONNECT {"verbose":false,"headers":true}\\r\\nSUB pg.shop.change.public.orders.* 1\\r\\nPING\\r\\n'
        ours = Target("tocsin", int(running.environment["TOCSIN_GATEWAY_PORT"]), "/ws", (subscribe,), "text", '"subscribed"', '"op":"event"')
        theirs = Target("nats-server", port, "/", (hello,), "binary", "PONG", "MSG pg.shop")
        assert running.nats.pid is not None
        rows: list[dict[str, Any]] = [
            {"": "tocsin", "clients": clients, "KiB per client": await measure(ours, gateway.pid, clients)},
            {"": "nats-server", "clients": clients, "KiB per client": await measure(theirs, running.nats.pid, clients)},
        ]
        await client.close()
    report("connections", rows, {str(row[""]).replace("-", "_") + "_kib": round(row["KiB per client"], 1) for row in rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=5000)
    asyncio.run(main(parser.parse_args().clients))
