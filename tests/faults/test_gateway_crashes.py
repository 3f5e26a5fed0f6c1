"""kill -9 of the gateway and of NATS under load: every client has every event once, in order; what can't be is told."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.support.gateway import RunningGateway, gateway_process, numbers, peer
from tests.support.stream import EPOCH_TWO, Stream
from tests.support.stream import stream as make_stream
from tocsin.client import Delivery, Gap, GapError, subscribe
from tocsin.stack import process
from tocsin.stack.nats_server import NatsServer

SOURCE = "shop"
CLIENTS = 12


@dataclass(slots=True)
class Site:
    """NATS and a gateway of the test's own, the gateway a process."""

    folder: Path
    server: NatsServer
    stream: Stream
    gateway: RunningGateway
    child: asyncio.subprocess.Process | None = None

    async def start_gateway(self) -> None:
        self.child = await gateway_process(self.gateway, self.server.url, SOURCE, self.folder / "gateway.log")

    async def kill_gateway(self) -> None:
        assert self.child is not None
        await process.kill(self.child)

    async def publish(self, count: int) -> None:
        for _ in range(count):
            await self.stream.insist(self.stream.subject())


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = NatsServer(folder / "nats", process.free_port())
        await server.start()
        publisher = Client()
        await publisher.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)  # type: ignore[arg-type]
        made = Site(folder, server, await make_stream(publisher, SOURCE), RunningGateway(process.free_port()))
        try:
            await made.start_gateway()
            yield made
        finally:
            if made.child is not None:
                await process.stop(made.child)
            with contextlib.suppress(nats.errors.Error):
                await publisher.close()
            await server.stop()


@dataclass(slots=True)
class Reader:
    """A client that resumes by itself: the journal numbers that it got, and how often it was live anew."""

    seen: list[int] = field(default_factory=list)
    lives: int = 0

    async def read(self, site: Site) -> None:
        def on_state(state: str, _error: BaseException | None) -> None:
            self.lives += state == "live"

        async with subscribe(site.gateway.url, site.stream.subject(), on_state=on_state) as events:
            async for delivery in events:
                self.seen.append(int(delivery.event.sequence))

    async def until(self, condition: Callable[[Reader], bool]) -> None:
        async with asyncio.timeout(40):
            while not condition(self):
                await asyncio.sleep(0.01)


async def strike(site: Site, fault: str, readers: list[Reader]) -> None:
    """The fault, and the wait until each client gets events again."""
    before = [reader.lives for reader in readers]
    if fault == "gateway":
        await site.kill_gateway()
        await site.start_gateway()
        for reader, lives in zip(readers, before, strict=True):
            await reader.until(lambda reader, lives=lives: reader.lives > lives)  # type: ignore[misc]
    else:
        await site.server.kill()
        await asyncio.sleep(0.3)  # an outage, not a blink
        await site.server.start()
    now = site.stream.number
    for reader in readers:
        await reader.until(lambda reader: bool(reader.seen) and reader.seen[-1] > now + 20)


@pytest.mark.parametrize("faults", [["gateway", "gateway"], ["nats", "nats"], ["nats", "gateway", "nats"]], ids=" ".join)
async def test_clients_have_every_event_once_and_in_order_across_kills(site: Site, faults: list[str]) -> None:
    """The load goes on from before the first fault until every client has met the last one."""
    readers = [Reader() for _ in range(CLIENTS)]
    over = asyncio.Event()

    async def load() -> None:
        while not over.is_set():
            await site.publish(5)
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        reading = [group.create_task(reader.read(site)) for reader in readers]
        for reader in readers:
            await reader.until(lambda reader: reader.lives == 1)
        loading = group.create_task(load())
        for reader in readers:
            await reader.until(lambda reader: len(reader.seen) > 20)
        for fault in faults:
            await strike(site, fault, readers)
        over.set()
        await loading
        for reader in readers:
            await reader.until(lambda reader: reader.seen[-1] == site.stream.number)
        for task in reading:
            task.cancel()
    assert [sequence for _, _, sequence in site.stream.sent] == list(range(1, site.stream.number + 1))
    for reader in readers:
        assert reader.seen == list(range(1, site.stream.number + 1))
        assert reader.lives >= 1 + faults.count("gateway")


async def test_readiness_follows_nats_and_a_subscription_lives_through_its_outage(site: Site) -> None:
    async with httpx.AsyncClient(base_url=site.gateway.url, timeout=5) as http, peer(site.gateway) as client:
        await client.subscribe(site.stream.subject())
        await site.server.kill()
        async with asyncio.timeout(20):
            while (await http.get("/readyz")).status_code != 503:
                await asyncio.sleep(0.05)
        assert (await http.get("/healthz")).status_code == 200
        answer = await client.subscribe("pg.>", "b")
        assert (answer["op"], answer["code"]) == ("error", "unavailable")
        await site.server.start()
        await site.gateway.until_ready()
        await site.publish(3)
        assert numbers(await client.events(3)) == [1, 2, 3]


async def test_a_stream_recreated_while_the_gateway_is_dead_is_a_gap_that_the_client_cannot_miss(site: Site) -> None:
    """Its user may choose to hear it as a word in the stream instead of an exception."""
    await site.publish(5)
    events = subscribe(site.gateway.url, site.stream.subject(), since="start")
    tolerant = subscribe(site.gateway.url, site.stream.subject(), since="start", tolerate_gaps=True)
    async with asyncio.timeout(60), events, tolerant:
        for live in (events, tolerant):
            assert [int((await anext(live)).event.sequence) for _ in range(5)] == [1, 2, 3, 4, 5]  # type: ignore[union-attr]
        await site.kill_gateway()
        await site.stream.recreate(EPOCH_TWO)
        await site.publish(8)
        await site.start_gateway()
        with pytest.raises(GapError) as raised:
            await anext(events)
        assert (raised.value.reason, raised.value.position) == ("epoch", site.stream.position(8))
        assert await anext(tolerant) == Gap(site.stream.subject(), site.stream.position(8), "epoch")
        await site.publish(1)
        following = await anext(tolerant)
        assert isinstance(following, Delivery)
        assert following.position == site.stream.position(9)


async def test_nats_that_is_away_at_the_start_is_waited_for(site: Site) -> None:
    await site.kill_gateway()
    await site.server.kill()
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(site.start_gateway())
        async with asyncio.timeout(20):
            while "TOCSIN_NATS_URL" not in process.tail(site.folder / "gateway.log", 50):
                await asyncio.sleep(0.05)
        assert not starting.done()
        await site.server.start()
    async with peer(site.gateway) as client:
        assert (await client.subscribe("pg.>"))["op"] == "subscribed"
