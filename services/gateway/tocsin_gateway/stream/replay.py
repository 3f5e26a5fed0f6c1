"""From a place in the past to the present: pages at the client's pace, then the join with the live events.

Near the end the subscription joins the hub, which gives the position A after which the live events wait in a bounded buffer;
the replay goes on up to A, then the buffer follows, then the subscription is live. A buffer that overflows is thrown away,
and the replay pages on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from tocsin import broker, retry
from tocsin.errors import Unavailable
from tocsin.position import Position
from tocsin.subject import Pattern
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.limits import REPLAY_PAGE, REPLAY_PAGE_BYTES
from tocsin_gateway.protocol import Reason, Since
from tocsin_gateway.stream.consumer import Consumer, ConsumerLost

PAGE_SECONDS: Final = 10.0
OLDEST: Final = timedelta(days=3650)


class Hole(Exception):  # noqa: N818  # what the stream is found to have, not a fault of ours
    """The stream dropped events that were still to be replayed, or began a new epoch."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Reader(Protocol):
    """What a replay needs of its subscription: `replay` returns once the client has room for more."""

    async def replay(self, event: StreamEvent) -> None: ...


class Pages:
    """Pages of events after `after`, in stream order; copies whose original was in reach are left out. `turns` are shared by all who read pages."""

    def __init__(self, link: broker.Link, stream: str, turns: asyncio.Semaphore, pattern: Pattern, epoch: str, after: int) -> None:
        self._link = link
        self._stream = stream
        self._turns = turns
        self._pattern = pattern
        self._epoch = epoch
        self._consumer: Consumer | None = None
        self._page: list[StreamEvent] = []
        self._changed = asyncio.Event()
        self._previous: StreamEvent | None = None
        self._pending = 1
        self.after = after

    async def rewind(self, after: int) -> None:
        """Read again from there: what was read behind it was not handed out."""
        await self.close()
        self.after = after
        self._previous = None

    async def close(self) -> None:
        # The page that was handed out too: a cancelled replay's frames hold it in a circle, until the collector looks at the oldest objects, which is rare.
        self._page.clear()
        self._previous = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.on_status = None
            await consumer.close()

    async def next(self) -> tuple[list[StreamEvent], int]:
        """(the next page, how many messages of the pattern are left behind it). Raises Unavailable, Hole."""
        async for attempt in retry.forever(Unavailable, ConsumerLost, broker.JetStreamError, longest=2.0):
            with attempt:
                await self._link.connected.wait()
                try:
                    async with self._turns:
                        return await self._fetch()
                except BaseException:
                    await self.close()
                    raise
        raise AssertionError("the policy never ends")

    async def _fetch(self) -> tuple[list[StreamEvent], int]:
        if self._consumer is None:
            consumer = Consumer(self._link.client, self._stream, (self._pattern,), self._collect)
            # At `after` itself, to know the original that a copy may follow.
            await consumer.open(self.after)
            consumer.on_status = self._on_consumer
            self._consumer = consumer
        self._page, self._pending = [], 0
        begin = self.after
        await self._consumer.pull(REPLAY_PAGE, max(REPLAY_PAGE_BYTES, self._link.client.max_payload + 4096))
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                while self._consumer.outstanding > 0 and self._consumer.lost is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConsumerLost("no page came in time") from None
        if self._consumer.lost is not None:
            raise ConsumerLost(str(self._consumer.lost))
        state = await broker.stream_state(self._link.client, self._stream)
        if state is None or state.epoch != self._epoch or state.last_sequence < begin:
            raise Hole("epoch")
        if state.first_sequence > begin + 1:
            raise Hole("gap")
        self.after = max(self.after, self._consumer.sequence)
        return self._page, self._pending

    def _collect(self, event: StreamEvent, pending: int) -> None:
        previous, self._previous = self._previous, event
        self._pending = pending
        # A position is a place in the stream as it is now, also for an event that was published before a failover.
        event.epoch = self._epoch
        if event.sequence <= self.after or event.is_copy_of(previous):
            return
        self._page.append(event)

    def _on_consumer(self, _what: str) -> None:
        self._changed.set()


async def catch_up(pages: Pages, reader: Reader, *, until_near: Callable[[int], bool]) -> int:
    """Hand out pages until `until_near(left)` says that the end is near; how many events are left."""
    while True:
        page, left = await pages.next()
        for event in page:
            await reader.replay(event)
        if until_near(left):
            return left


async def reach(pages: Pages, reader: Reader, position: Position) -> None:
    """Hand out everything up to and including `position`, and nothing behind it."""
    while True:
        page, left = await pages.next()
        for event in page:
            if event.sequence > position.sequence:
                return
            await reader.replay(event)
        if left == 0:
            return


async def present(link: broker.Link, stream: str) -> broker.StreamState:
    """The stream as it is now, its epoch known. Raises Unavailable, JetStreamError."""
    state = await broker.stream_state(link.client, stream)
    if state is None or state.epoch is None:
        raise Unavailable(f"there is no stream {stream}")
    return state


async def start_of(link: broker.Link, stream: str, since: Since) -> Position | Reason | None:
    """The position to replay after; or None, to begin now; or why the asked place can't be served. Raises Unavailable, JetStreamError."""
    if since in ("now", "snapshot"):
        return None
    state = await present(link, stream)
    epoch = state.epoch or ""
    if isinstance(since, timedelta):
        before, whole = await start_of_age(link, stream, datetime.now(UTC) - min(since, OLDEST))
        return Position(epoch, before) if whole else "expired"
    first = max(state.first_sequence, 1)
    if since == "start":
        return Position(epoch, first - 1)
    assert isinstance(since, Position)
    if since.epoch != epoch or since.sequence > state.last_sequence:
        return "epoch"
    return "expired" if since.sequence + 1 < first else since


async def start_of_age(link: broker.Link, stream: str, since: datetime) -> tuple[int, bool]:
    """(the sequence before the first event since then, whether the stream still has all of them). Raises Unavailable."""
    answer = await broker.api(link.client, f"STREAM.INFO.{stream}")
    state = answer["state"]
    everything = Consumer(link.client, stream, (), lambda _event, _pending: None)
    await everything.open(since)
    before = everything.sequence
    await everything.close()
    first, last = datetime.fromisoformat(state["first_ts"]), datetime.fromisoformat(state["last_ts"])
    # The time of the last one stays known when it is dropped.
    return before, state["first_seq"] <= 1 or last < since or (state["messages"] > 0 and first <= since)
