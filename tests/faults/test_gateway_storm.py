"""A storm of clients that come, vanish without a word and come back by position, through a kill -9 of the gateway: each has what the stream has.

Afterwards the gateway is what it was before: nothing of a client that has gone stays in its process, nor at NATS.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support import servers
from tests.support.gateway import RunningGateway, gateway_process, running_gateway
from tests.support.stream import Stream
from tests.support.stream import stream as make_stream
from tocsin import broker
from tocsin.stack import process
from tocsin.stack.nats_server import NatsServer
from tocsin.subject import Pattern
from tocsin_gateway.delivery.channels import Channel
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.sessions.session import Session
from tocsin_gateway.sessions.subscription import Subscription

SOURCE = "shop"
TABLES = ("orders", "lines", "customers")
PATTERNS = ("pg.shop.change.public.orders.insert", "pg.shop.change.public.lines.*", "pg.shop.change.*.*.insert", "pg.shop.change.public.>", "pg.>")
FILTERS: tuple[tuple[dict[str, Any] | None, Callable[[int], bool]], ...] = (
    (None, lambda _number: True),
    (None, lambda _number: True),
    ({"id": {"gte": 60}}, lambda number: number >= 60),
    ({"id": {"in": [*range(0, 900, 3)]}}, lambda number: number % 3 == 0 and number < 900),
)
PATIENCE = 240
PER_CLIENT_KIB = 32
"""How much the heap's high water may rise with each client of a second storm. A page of a replay that is kept is some 400."""


@dataclass(slots=True)
class Wish:
    """One subscription: what was applied of it, after which place in the stream, and up to where its client is."""

    pattern: str
    where: dict[str, Any] | None
    wants: Callable[[int], bool]
    since: str
    begin: int = 0
    position: str = ""
    applied: list[int] = field(default_factory=list)

    def expected(self, stream: Stream) -> list[int]:
        """The oracle: what the stream has behind its begin."""
        pattern = Pattern(self.pattern)
        return [number for subject, number, sequence in stream.sent if sequence > self.begin and pattern.matches(subject) and self.wants(number)]


@dataclass(slots=True)
class Guest:
    """A client of one or two subscriptions and so many lives; each but the last ends without a close frame."""

    random: random.Random
    wishes: dict[str, Wish]
    lives: int
    life: int = 0
    returns: int = 0

    async def stay(self, address: Callable[[], str], over: asyncio.Event, stream: Stream) -> None:
        """Returns once the load is over, all lives are lived and everything was applied. `address` is asked before each connection."""
        while True:
            try:
                async with connect(address(), compression=None, proxy=None, open_timeout=60, ping_interval=None, max_queue=None) as socket:
                    if await self._live(socket, over, stream):
                        return
                    socket.transport.abort()
            except (OSError, InvalidHandshake, ConnectionClosed, EOFError):
                await asyncio.sleep(0.05 + self.random.random() / 4)

    async def _live(self, socket: ClientConnection, over: asyncio.Event, stream: Stream) -> bool:
        await socket.recv()
        for name, wish in self.wishes.items():
            more = {} if wish.where is None else {"where": wish.where}
            await socket.send(
                msgspec.json.encode({"op": "subscribe", "id": name, "subject": wish.pattern, "since": wish.position or wish.since, **more}).decode()
            )
        self.returns += self.life > 0
        self.life += 1
        left = self.random.randint(0, 30) if self.life < self.lives else None
        while left is None or left > 0:
            try:
                async with asyncio.timeout(0.5):
                    message = msgspec.json.decode(await socket.recv())
            except TimeoutError:
                if left is None and over.is_set() and all(wish.position and wish.applied == wish.expected(stream) for wish in self.wishes.values()):
                    return True
                left = None if left is None else left - 10
                continue
            if not self._apply(message):
                return False
            left = None if left is None else left - 1
        return False

    def _apply(self, message: dict[str, Any]) -> bool:
        """False where the gateway asks to try again."""
        if message["op"] == "subscribed":
            wish = self.wishes[message["id"]]
            assert message["recovered"], message
            if not wish.position:
                wish.begin = int(message["position"].rsplit("-", 1)[1])
            wish.position = message["position"]
        elif message["op"] == "position":
            self.wishes[message["id"]].position = message["position"]
        elif message["op"] == "event":
            concerned = message.get("for") or [name for name, wish in self.wishes.items() if Pattern(wish.pattern).matches(message["subject"])]
            for name in concerned:
                self.wishes[name].applied.append(int(message["event"]["sequence"]))
                self.wishes[name].position = message["position"]
        else:
            assert (message["op"], message["code"]) == ("error", "unavailable"), message
            return False
        return True


def guests(count: int, seed: int) -> list[Guest]:
    made = []
    for number in range(count):
        chance = random.Random(f"{seed}-{number}")
        wishes = {}
        for name in "ab"[: chance.choice((1, 1, 2))]:
            where, wants = chance.choice(FILTERS)
            wishes[name] = Wish(chance.choice(PATTERNS), where, wants, chance.choice(("now", "now", "start")))
        made.append(Guest(chance, wishes, chance.randint(1, 4)))
    return made


@dataclass(slots=True)
class House:
    """NATS, a stream, and a gateway that is a process."""

    folder: Path
    server: NatsServer
    stream: Stream
    gateway: RunningGateway
    child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.child = await gateway_process(self.gateway, self.server.url, SOURCE, self.folder / "gateway.log", TOCSIN_LIMITS="connections_per_address=20000")

    @property
    def memory_kib(self) -> int:
        assert self.child is not None
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    @property
    def files(self) -> int:
        assert self.child is not None
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    async def load(self, over: asyncio.Event, pause: float) -> None:
        chance = random.Random(4)
        while not over.is_set():
            await self.stream.publish(*(self.stream.subject(chance.choice(TABLES), chance.choice(("insert", "insert", "update"))) for _ in range(3)))
            await asyncio.sleep(pause)

    async def storm(self, crowd: list[Guest], *, seconds: float, pause: float, kill: bool) -> None:
        """Everybody comes at once; the load goes on for so long after that, and then each must have everything."""
        over = asyncio.Event()
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(self.load(over, pause))
            for guest in crowd:
                group.create_task(guest.stay(lambda: self.gateway.socket_url, over, self.stream))
            await asyncio.sleep(seconds / 2)
            if kill:
                assert self.child is not None
                await process.kill(self.child)
                await self.start()
            await asyncio.sleep(seconds / 2)
            await _all_living(crowd)
            over.set()
        for guest in crowd:
            for wish in guest.wishes.values():
                assert wish.applied == wish.expected(self.stream)

    async def quiet(self) -> None:
        """Returns once the gateway counts nobody, and NATS has no consumer any more."""
        await self.gateway.until_metric("tocsin_gateway_clients", 0.0, kind="websocket")
        for name in ("subscriptions", "replays"):
            await self.gateway.until_metric(f"tocsin_gateway_{name}", 0.0)
        await without_consumers(self.stream)


async def without_consumers(stream: Stream) -> None:
    async with asyncio.timeout(60):
        while (await broker.api(stream.client, f"STREAM.INFO.{stream.name}"))["state"]["consumer_count"]:
            await asyncio.sleep(0.1)


async def _all_living(crowd: list[Guest]) -> None:
    """Returns once everybody is in the last life."""
    while not all(guest.life >= guest.lives for guest in crowd):
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[House]:
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = NatsServer(folder / "nats", process.free_port())
        await server.start()
        publisher = Client()
        await publisher.connect(server.url)
        made = House(folder, server, await make_stream(publisher, SOURCE), RunningGateway(process.free_port()))
        try:
            await made.start()
            yield made
        finally:
            if made.child is not None:
                await process.stop(made.child)
            await publisher.close()
            await server.stop()


async def test_through_a_kill_each_client_of_a_storm_has_what_the_stream_has() -> None:
    async with house() as site:
        await site.stream.publish_many(site.stream.subject(table) for table in TABLES * 10)
        crowd = guests(60, 1)
        await site.storm(crowd, seconds=1.0, pause=0.05, kill=True)
        assert sum(guest.returns for guest in crowd) > 60


@pytest.mark.slow
async def test_a_thousand_clients_storm_through_a_kill_and_leave_nothing_behind() -> None:
    """The new process is measured after a whole storm, which fills what a process keeps and what its collector has not looked at, and after one like it."""
    count = 1000
    async with house() as site:
        await site.stream.publish_many(site.stream.subject(table) for table in TABLES * 10)
        crowd = guests(count, 1)
        await site.storm(crowd, seconds=6, pause=0.5, kill=True)
        assert sum(guest.returns for guest in crowd) > count
        await site.storm(guests(count, 3), seconds=1, pause=0.5, kill=False)
        await site.quiet()
        memory, files = site.memory_kib, site.files
        await site.storm(guests(count, 2), seconds=1, pause=0.5, kill=False)
        await site.quiet()
        async with asyncio.timeout(20):
            while site.files > files:
                await asyncio.sleep(0.1)
        print(f"memory {memory} KiB, then {site.memory_kib} KiB; {len(site.stream.sent)} events")
        assert site.memory_kib - memory < count * PER_CLIENT_KIB


async def test_nothing_of_a_storm_stays_in_the_process(nats: Client, nats_server: servers.Server) -> None:
    """A gateway in this process, so that its tasks and objects can be counted."""

    def kept(*kinds: type) -> int:
        return sum(type(thing) in kinds for thing in gc.get_objects())

    stream = await make_stream(nats, "storm")
    publisher = Client()  # of its own: with it, its tasks end
    async with running_gateway(nats_server.url, stream.source) as gateway:
        site = House(Path(), NatsServer(Path(), 0), stream, gateway)
        gc.collect()
        tasks, members, events = len(asyncio.all_tasks()), kept(Session, Subscription, Channel), kept(StreamEvent)
        await publisher.connect(nats_server.url)
        stream.client = publisher
        await stream.publish_many(stream.subject(table) for table in TABLES * 100)
        crowd = guests(60, 3)
        for guest in crowd:
            for wish in guest.wishes.values():
                wish.pattern = wish.pattern.replace(".shop.", f".{stream.source}.")
        # Events are many: they must die by their reference counts, not when the collector gets to them.
        gc.disable()
        try:
            await site.storm(crowd, seconds=0.5, pause=0.05, kill=False)
            await site.quiet()
            assert kept(StreamEvent) - events < 100
        finally:
            gc.enable()
        await publisher.close()
        stream.client = nats
        async with asyncio.timeout(20):
            while gc.collect() >= 0 and (len(asyncio.all_tasks()) > tasks or kept(Session, Subscription, Channel) > members):
                await asyncio.sleep(0.1)
    await stream.delete()
