"""A hundred clients that come and go over two gateways, which are restarted in turn and killed, as NATS is: each has what the stream has."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client

from tests.faults.test_gateway_storm import SOURCE, TABLES, guests, without_consumers
from tests.support.gateway import RunningGateway, gateway_process
from tests.support.stream import Stream
from tests.support.stream import stream as make_stream
from tocsin.stack import process
from tocsin.stack.nats_server import NatsServer

CLIENTS = 100


@dataclass(slots=True)
class Street:
    """NATS, and two gateways that are processes; `open` are those that a balancer would send a client to."""

    folder: Path
    server: NatsServer
    stream: Stream
    children: dict[RunningGateway, asyncio.subprocess.Process] = field(default_factory=dict)
    open: list[RunningGateway] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(6))

    async def start(self, gateway: RunningGateway) -> None:
        self.children[gateway] = await gateway_process(gateway, self.server.url, SOURCE, self.folder / f"{gateway.port}.log")
        self.open.append(gateway)

    def address(self) -> str:
        return self.chance.choice(self.open).socket_url

    async def restart(self, gateway: RunningGateway, *, kill: bool) -> None:
        """A rolling restart takes it from the balancer first; a kill does not."""
        child = self.children[gateway]
        if kill:
            await process.kill(child)
        self.open.remove(gateway)
        if not kill:
            await process.stop(child, patience=20)
            assert child.returncode == 0, process.tail(self.folder / f"{gateway.port}.log", 30)
        await self.start(gateway)

    async def load(self, enough: asyncio.Event) -> None:
        """One event after the other."""
        chance = random.Random(4)
        while not enough.is_set():
            await self.stream.insist(self.stream.subject(chance.choice(TABLES), chance.choice(("insert", "insert", "update"))))
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def street() -> AsyncIterator[Street]:
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = NatsServer(folder / "nats", process.free_port())
        await server.start()
        publisher = Client()
        await publisher.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)  # type: ignore[arg-type]
        made = Street(folder, server, await make_stream(publisher, SOURCE))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(2):
                    group.create_task(made.start(RunningGateway(process.free_port())))
            yield made
        finally:
            for child in made.children.values():
                await process.stop(child)
            with contextlib.suppress(nats.errors.Error):
                await publisher.close()
            await server.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_hundred_clients_have_everything_across_rolling_restarts_and_kills() -> None:
    """Two rounds: both gateways restarted in turn, one killed, NATS killed. Afterwards neither gateway knows of a client, nor NATS of a consumer."""
    async with street() as site:
        one, other = site.open
        await site.stream.publish_many(site.stream.subject(table) for table in TABLES * 20)
        crowd, enough, over = guests(CLIENTS, 8), asyncio.Event(), asyncio.Event()
        for guest in crowd:
            guest.lives += 2
        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            loading = group.create_task(site.load(enough))
            for guest in crowd:
                group.create_task(guest.stay(site.address, over, site.stream))
            for _ in range(2):
                for gateway in (one, other):
                    await asyncio.sleep(1)
                    await site.restart(gateway, kill=False)
                await site.restart(one, kill=True)
                await site.server.kill()
                await asyncio.sleep(0.5)  # an outage, not a blink
                await site.server.start()
                for gateway in (one, other):
                    await gateway.until_ready()
                one, other = other, one
            while not all(guest.life >= guest.lives for guest in crowd):
                await asyncio.sleep(0.1)
            enough.set()
            await loading
            over.set()
        for guest in crowd:
            for wish in guest.wishes.values():
                assert wish.applied == wish.expected(site.stream)
        returns = sum(guest.returns for guest in crowd)
        print(f"{site.stream.number} events, {returns} returns of {CLIENTS} clients")
        assert returns > 4 * CLIENTS
        for gateway in site.open:
            await gateway.until_metric("tocsin_gateway_clients", 0.0, kind="websocket")
            await gateway.until_metric("tocsin_gateway_subscriptions", 0.0)
        await without_consumers(site.stream)
