"""The oracle for the whole: what was committed == what is in the stream == what a client applied."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from nats.aio.client import Client
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tocsin.event import COPY, MSG_ID


@dataclass(slots=True)
class Seen:
    """Events in the order in which they were seen."""

    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.events]

    def values(self, column: str, op: str = "insert") -> list[Any]:
        return [event["data"]["new"][column] for event in self.events if event["data"]["op"] == op]

    def per_key(self) -> dict[tuple[str, str], list[int]]:
        """The journal sequences of each table's each key in the order of arrival."""
        sequences: dict[tuple[str, str], list[int]] = defaultdict(list)
        for event in self.events:
            sequences[event["data"]["table"], event.get("subject", "")].append(int(event["sequence"]))
        return dict(sequences)


async def stream_events(client: Client, stream: str) -> Seen:
    """Every event that the stream holds (its copies under old routes left out), by a consumer of its own."""
    seen = Seen()
    context = client.jetstream()
    info = await context.stream_info(stream)
    if info.state.messages == 0:
        return seen
    subscription = await context.pull_subscribe("", stream=stream)
    last = 0
    while last < info.state.last_seq:
        for message in await subscription.fetch(500, timeout=5):
            last = message.metadata.sequence.stream
            headers = message.headers or {}
            if COPY not in headers and MSG_ID in headers:
                event = msgspec.json.decode(message.data)
                if event["type"] != "canary" and not message.subject.startswith("_tocsin."):
                    seen.events.append(event)
            await message.ack()
    await subscription.unsubscribe()
    return seen


@contextlib.asynccontextmanager
async def socket_client(url: str, subject: str, since: str = "now") -> AsyncIterator[tuple[Seen, asyncio.Event]]:
    """A plain WebSocket client that collects in the background; the event is set whenever something has arrived.

    It comes back with its position when it is closed, as every client should: on a busy machine it may be found too slow. It also tries
    again where NATS is away at the moment.
    """
    seen, arrived, live = Seen(), asyncio.Event(), asyncio.Event()
    position = since

    async def collect() -> None:
        nonlocal position
        async for socket in connect(url, compression=None, max_size=None, open_timeout=10):
            with contextlib.suppress(ConnectionClosed):
                await socket.send(msgspec.json.encode({"op": "subscribe", "id": "a", "subject": subject, "since": position}).decode())
                async for text in socket:
                    frame = msgspec.json.decode(text)
                    if frame.get("code") == "unavailable":
                        await asyncio.sleep(0.2)
                        break
                    assert frame["op"] != "error", frame
                    if frame["op"] == "subscribed":
                        assert frame["recovered"], frame
                        live.set()
                    if frame["op"] == "event":
                        seen.events.append(frame["event"])
                        arrived.set()
                    position = frame.get("position", position)

    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(collect())
        async with asyncio.timeout(20):
            await live.wait()
        try:
            yield seen, arrived
        finally:
            collecting.cancel()


async def until_count(seen: Seen, arrived: asyncio.Event, count: int, *, patience: float = 30) -> None:
    """Returns once `count` events have arrived; fails when they stop coming."""
    while len(seen.events) < count:
        arrived.clear()
        try:
            async with asyncio.timeout(patience):
                await arrived.wait()
        except TimeoutError:
            raise AssertionError(f"{len(seen.events)} of {count} events arrived, then none for {patience} s") from None


def assert_same(expected: Iterable[Any], actual: Sequence[Any], what: str) -> None:
    """Nothing lost, nothing repeated, nothing invented; the message has numbers and samples, not thousands of lines."""
    wanted, got = set(expected), set(actual)
    lost, invented, repeated = wanted - got, got - wanted, len(actual) - len(got)
    faults = len(lost) + len(invented) + repeated
    assert faults == 0, f"{what}: {len(lost)} lost {sorted(lost)[:5]}, {repeated} repeated, {len(invented)} invented {sorted(invented)[:5]}"


def assert_ordered_per_key(seen: Seen, what: str) -> None:
    for key, sequences in seen.per_key().items():
        assert sequences == sorted(sequences), f"{what}: key {key} arrived as {sequences[:10]}"
