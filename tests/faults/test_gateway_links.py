"""NATS absent, hung, half-open or killed: the gateway says so in time, and nobody who resumes has a hole or a repeat."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nats.errors
import nats.js.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support.gateway import Peer, RunningGateway, numbers, peer, running_gateway
from tests.support.proxy import TcpProxy
from tests.support.stream import EPOCH_TWO, Stream
from tests.support.stream import stream as make_stream
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.process import free_port
from tocsin.subject import Pattern

SOURCE = "shop"


@dataclass(slots=True)
class Site:
    """A NATS server of the test's own, a publisher, and the stream."""

    server: NatsServer
    publisher: Client
    stream: Stream
    copies: dict[int, str] = field(default_factory=dict)

    async def publish(self, subject: str, copy: str | None = None) -> None:
        """One event until JetStream has it, whatever happens; a repeat is known by its id. `copies`: stream sequence -> the original's subject."""
        self.stream.number += 1
        for to, number, body, headers in self.stream._messages(subject, self.stream.number, copy, {}):
            async with asyncio.timeout(30):
                while True:
                    try:
                        ack = await self.publisher.jetstream().publish(to, body, headers=headers, timeout=1)
                        break
                    except (nats.errors.Error, nats.js.errors.Error, TimeoutError):
                        await asyncio.sleep(0.05)
            self.stream.sent.append((to, number, ack.seq))
            if to != subject:
                self.copies[ack.seq] = subject

    def due(self, pattern: str, after: int) -> list[int]:
        """The stream sequences that a client of the pattern must have after that one: a copy only where the original is not for it."""
        wanted = Pattern(pattern)
        return [
            sequence
            for subject, _, sequence in self.stream.sent
            if sequence > after and wanted.matches(subject) and not (sequence in self.copies and wanted.matches(self.copies[sequence]))
        ]


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        server = NatsServer(Path(name) / "nats", free_port())
        await server.start()
        publisher = Client()
        await publisher.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)  # type: ignore[arg-type]
        try:
            yield Site(server, publisher, await make_stream(publisher, SOURCE))
        finally:
            with contextlib.suppress(nats.errors.Error):
                await publisher.close()
            await server.stop()


async def until_unready(gateway: RunningGateway, *, patience: float) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client, asyncio.timeout(patience):
        while True:
            with contextlib.suppress(httpx.ConnectError):
                if (await client.get("/readyz")).status_code == 503:
                    break
            await asyncio.sleep(0.05)
        assert (await client.get("/healthz")).status_code == 200


async def test_a_gateway_that_starts_without_nats_says_so_and_serves_when_it_comes(site: Site) -> None:
    await site.server.kill()
    async with running_gateway(site.server.url, SOURCE, ready=False) as gateway:
        await until_unready(gateway, patience=5)
        async with peer(gateway) as client:
            answer = await client.subscribe("pg.>")
            assert (answer["op"], answer["code"]) == ("error", "unavailable")
            await site.server.start()
            await gateway.until_ready()
            assert (await client.subscribe("pg.>"))["op"] == "subscribed"
            await site.publish(site.stream.subject())
            assert numbers(await client.events(1)) == [1]


async def test_a_gateway_that_waits_for_nats_stops_at_once(site: Site) -> None:
    await site.server.kill()
    async with asyncio.timeout(5):
        async with running_gateway(site.server.url, SOURCE, ready=False) as gateway:
            await until_unready(gateway, patience=5)
    await site.server.start()


async def test_a_hung_nats_is_noticed_and_answered_for_and_nothing_is_missing_afterwards(site: Site) -> None:
    """Stopped, not dead: every connection stays open and nothing answers."""
    async with running_gateway(site.server.url, SOURCE) as gateway, peer(gateway) as client, peer(gateway) as late:
        await client.subscribe(site.stream.subject())
        await site.publish(site.stream.subject())
        assert numbers(await client.events(1)) == [1]
        assert site.server.pid is not None
        os.kill(site.server.pid, signal.SIGSTOP)
        try:
            answer = await late.subscribe("pg.>")
            assert (answer["op"], answer["code"], answer["id"]) == ("error", "unavailable", "a"), "within the ten seconds that `next` waits"
            await until_unready(gateway, patience=20)
        finally:
            os.kill(site.server.pid, signal.SIGCONT)
        await gateway.until_ready()
        await site.publish(site.stream.subject())
        assert numbers(await client.events(1)) == [2]
        assert (await late.subscribe("pg.>", since=site.stream.position(1)))["recovered"] is True
        assert numbers(await late.events(1)) == [2]


async def test_a_half_open_link_is_left_and_what_was_published_meanwhile_follows(site: Site) -> None:
    for _ in range(600):
        await site.publish(site.stream.subject())
    async with (
        TcpProxy(site.server.port) as proxy,
        running_gateway(f"nats://127.0.0.1:{proxy.port}", SOURCE) as gateway,
        peer(gateway) as client,
        peer(gateway, max_queue=1) as slow,
    ):
        await client.subscribe(site.stream.subject(), since=site.stream.position(590))
        assert numbers(await client.events(10)) == list(range(591, 601))
        await slow.subscribe(site.stream.subject(), since="start")
        begun = numbers(await slow.events(50))
        proxy.freeze()
        for _ in range(30):
            await site.publish(site.stream.subject())
        await until_unready(gateway, patience=20)
        proxy.cut()
        proxy.thaw()
        assert numbers(await client.events(30, patience=30)) == list(range(601, 631))
        assert begun + numbers(await slow.events(580, patience=30)) == list(range(1, 631))


async def test_a_stream_that_vanishes_for_a_while_is_unavailable_and_then_another(site: Site) -> None:
    async with running_gateway(site.server.url, SOURCE) as gateway, peer(gateway) as client, peer(gateway) as late:
        await client.subscribe("pg.>")
        await site.publish(site.stream.subject())
        await client.events(1)
        await site.stream.delete()
        await until_unready(gateway, patience=20)
        assert (await late.subscribe("pg.>", since=site.stream.position(0)))["code"] == "unavailable"
        site.stream.epoch, site.stream.sent = EPOCH_TWO, []
        await site.stream.create()
        told, before = await client.until("subscribed", patience=20)
        assert (before, told["recovered"], told["reason"]) == ([], False, "epoch")
        await site.publish(site.stream.subject())
        assert [frame["position"] for frame in await client.events(1)] == [site.stream.position(1)]


async def test_events_dropped_during_an_outage_are_a_gap_that_is_told_also_when_none_of_them_is_pending(site: Site) -> None:
    """What a purge took is not pending either: the consumer alone would look as if it had everything."""
    async with TcpProxy(site.server.port) as proxy, running_gateway(f"nats://127.0.0.1:{proxy.port}", SOURCE) as gateway, peer(gateway) as client:
        await client.subscribe(site.stream.subject())
        await site.publish(site.stream.subject())
        await client.events(1)
        proxy.refuse = True
        proxy.cut()
        for _ in range(50):
            await site.publish(site.stream.subject())
        await site.stream.purge(keep=0)
        proxy.refuse = False
        told, before = await client.until("subscribed", patience=30)
        assert ([frame for frame in before if frame["op"] == "event"], told["recovered"], told["reason"]) == ([], False, "gap")
        assert told["position"] == site.stream.position(51)
        await site.publish(site.stream.subject())
        assert numbers(await client.events(1)) == [52]


async def test_a_nats_user_without_rights_leaves_the_gateway_unready_and_says_why() -> None:
    """NATS refuses asynchronously: nobody may be told `subscribed` meanwhile."""
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        users = '{user: poor, password: p, permissions: {publish: {allow: ["nothing"]}, subscribe: {allow: ["_INBOX.>", "$SRV.>"]}}}, {user: rich, password: p}'
        server = NatsServer(Path(name) / "nats", free_port(), extra=f"authorization {{ users: [{users}] }}")
        await server.start()
        publisher = Client()
        await publisher.connect(server.url.replace("//", "//rich:p@"))
        try:
            await make_stream(publisher, SOURCE)
            async with running_gateway(server.url.replace("//", "//poor:p@"), SOURCE, ready=False) as gateway:
                await until_unready(gateway, patience=5)
                async with peer(gateway) as client:
                    answer = await client.subscribe("pg.>")
                    assert (answer["op"], answer["code"]) == ("error", "unavailable")
        finally:
            await publisher.close()
            await server.stop()


@dataclass(slots=True)
class Wanderer:
    """A client with a pattern that leaves again and again, and comes back with its last position."""

    pattern: str
    chance: random.Random
    since: str
    began: int | None = None
    position: str | None = None
    seen: list[int] = field(default_factory=list)

    def take(self, frame: dict[str, str]) -> None:
        self.position = frame["position"]
        if frame["op"] == "event":
            self.seen.append(int(frame["position"].partition("-")[2]))
        elif self.began is None:
            self.began = int(frame["position"].partition("-")[2])

    async def visit(self, gateway: RunningGateway, over: asyncio.Event, site: Site) -> None:
        """One connection, for a while; once the load is over, until everything is there."""
        async with peer(gateway) as client:
            await client.send(op="subscribe", id="a", subject=self.pattern, since=self.position or self.since)
            stay = self.chance.randrange(5, 200)
            while over.is_set() or stay > 0:
                if over.is_set() and self.began is not None and self.seen[-1:] == site.due(self.pattern, self.began)[-1:]:
                    return
                stay -= 1
                frame = await self._next(client)
                if frame is None:
                    continue
                if frame["op"] == "error":
                    assert frame["code"] == "unavailable", frame
                    await asyncio.sleep(0.1)
                    return
                assert frame.get("recovered", True), frame
                if "position" in frame:
                    self.take(frame)

    async def _next(self, client: Peer) -> dict[str, str] | None:
        try:
            return await client.next(patience=0.5)
        except TimeoutError:
            return None

    async def wander(self, gateway: RunningGateway, over: asyncio.Event, site: Site) -> None:
        while not (over.is_set() and self.began is not None and self.seen == site.due(self.pattern, self.began)):
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                await self.visit(gateway, over, site)
            if over.is_set() and self.began is not None:
                assert self.seen == site.due(self.pattern, self.began)[: len(self.seen)], self.pattern
            await asyncio.sleep(self.chance.random() * 0.02)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
async def test_wanderers_with_any_pattern_have_exactly_theirs_across_every_fault(site: Site, seed: int) -> None:
    """Patterns that overlap, events with copies under an old route, resumes anywhere (between original and copy too), NATS killed
    twice, the gateway restarted; each client must have its pattern's events after its position, in order, once."""
    chance = random.Random(seed)
    subject = site.stream.subject
    patterns = [
        "pg.>",
        subject("orders", "*") + ".*",
        subject("orders", "update", "1"),
        subject("orders", "update", "2"),
        subject("items"),
        "pg.*.change.*.*.insert.>",
    ]
    patterns += [f"pg.{SOURCE}.change.public.*.*", subject("orders", "update") + ".>", f"pg.{SOURCE}.event.>"]

    async def write(count: int) -> None:
        for _ in range(count):
            kind = chance.random()
            if kind < 0.5:
                new, old = chance.sample(["1", "2", "3"], 2)
                await site.publish(subject("orders", "update", new), copy=subject("orders", "update", old))
            else:
                await site.publish(chance.choice([subject("items"), subject("orders", "insert", "1"), f"pg.{SOURCE}.event.a.b", subject("orders")]))

    over = asyncio.Event()
    port = free_port()
    wanderers: list[Wanderer] = []
    await write(200)

    async def load() -> None:
        for _ in range(60):
            await write(20)
            await asyncio.sleep(0.02)

    async with asyncio.timeout(100), asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as first:
        gateway = await first.enter_async_context(running_gateway(site.server.url, SOURCE, port=port))
        for number in range(18):
            since = chance.choice(["start", "now", site.stream.position(chance.randrange(200)), "1h"])
            wanderer = Wanderer(patterns[number % len(patterns)], random.Random(seed * 100 + number), since)
            wanderers.append(wanderer)
            group.create_task(wanderer.wander(gateway, over, site))
        loading = group.create_task(load())
        await asyncio.sleep(0.5)
        await site.server.kill()
        await site.server.start()
        await asyncio.sleep(0.5)
        await first.aclose()
        async with running_gateway(site.server.url, SOURCE, port=port):
            await asyncio.sleep(0.3)
            await site.server.kill()
            await site.server.start()
            await loading
            over.set()
            async with asyncio.timeout(40):
                while not all(one.began is not None and one.seen == site.due(one.pattern, one.began) for one in wanderers):
                    await asyncio.sleep(0.05)
    assert sum(len(one.seen) for one in wanderers) > 2_000
