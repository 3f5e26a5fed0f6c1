"""The feed over a real stream: what it notes, and what ends a session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from nats.aio.client import Client

from tests.support import servers
from tests.support.stream import EPOCH_TWO, Stream, stream
from tocsin import broker
from tocsin.nats_login import NatsLogin
from tocsin_check.watch.changes import Changes
from tocsin_check.watch.feed import Feed, follow

TABLE = "public.orders"


class Running:
    """A feed that follows a stream, and the test's own copy of what it is told."""

    def __init__(self, made: Stream) -> None:
        self.stream = made
        self.changes = Changes()
        self.changes.watched({TABLE: "1"})
        self.feed = Feed(self.changes, stream=made.name, prefix="pg", source=made.source)

    async def read_wholly(self) -> None:
        """The full audit that makes the table followed."""
        await self.until(lambda: self.feed._client is not None)
        self.changes.whole_begins(TABLE)
        assert self.changes.obstacle(TABLE) is None

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

    async def spoilt(self) -> str:
        await self.until(lambda: self.changes.obstacle(TABLE) is not None)
        return self.changes.obstacle(TABLE) or ""


async def _with(made: Stream, server: servers.Server, body: Callable[[Running], Awaitable[None]]) -> None:
    running = Running(made)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow(running.feed, [server.url], NatsLogin()))
        try:
            await body(running)
        finally:
            following.cancel()


async def test_keys_are_noted_and_everything_that_is_there_has_arrived(nats: Client, nats_server: servers.Server) -> None:
    async def body(running: Running) -> None:
        await running.read_wholly()
        await running.stream.publish(*[running.stream.subject()] * 700)
        assert await running.feed.arrived()
        assert len(running.changes.take(TABLE)) == 700

    await _with(await stream(nats, "feed1", max_bytes=8 << 20), nats_server, body)


async def test_a_hole_in_the_stream_is_seen(nats: Client, nats_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await stream(nats, "feed2", max_bytes=8 << 20)
    await made.publish(*[made.subject()] * 6)
    await broker.api(nats, f"STREAM.MSG.DELETE.{made.name}", {"seq": 4})
    real, asked = broker.stream_state, 0

    async def joined_earlier(client: Client, name: str) -> broker.StreamState | None:
        nonlocal asked
        asked += 1
        state = await real(client, name)
        return msgspec.structs.replace(state, last_sequence=2) if state is not None and asked == 1 else state

    monkeypatch.setattr(broker, "stream_state", joined_earlier)
    reasons: list[str] = []
    monkeypatch.setattr(Changes, "lost", lambda self, reason: reasons.append(reason))

    async def body(running: Running) -> None:
        await running.until(lambda: bool(reasons))
        assert "a gap before 5" in reasons[0]

    await _with(made, nats_server, body)


async def test_another_epoch_a_purge_and_a_stream_made_anew_end_what_it_knew(nats: Client, nats_server: servers.Server) -> None:
    async def body(running: Running) -> None:
        await running.read_wholly()
        await running.stream.begin_epoch(EPOCH_TWO)
        await running.stream.publish(running.stream.subject())
        await running.spoilt()
        await running.until(lambda: running.feed._client is not None and running.changes._reading)
        await running.read_wholly()
        await running.stream.recreate("cccc333333")
        await running.spoilt()
        await running.read_wholly()
        await running.stream.publish(running.stream.subject())
        assert await running.feed.arrived()
        assert len(running.changes.take(TABLE)) == 1

    await _with(await stream(nats, "feed3", max_bytes=8 << 20), nats_server, body)
