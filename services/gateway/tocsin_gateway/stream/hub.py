"""The worker's one reader of the stream, and who gets what it reads.

Clients join with a pattern. The hub's consumer is filtered by a non-overlapping cover of all the patterns; `head` is the
stream sequence up to which everything that matches was handed out. A change of the cover opens a new consumer at `head`, so
nothing is missed or repeated. With no client there is no consumer, and the stream costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from tocsin import broker, retry
from tocsin.errors import Unavailable
from tocsin.position import Position
from tocsin.subject import Pattern
from tocsin_gateway.delivery.channels import Channels, Member
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.limits import PAGES_AT_ONCE
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.stream.consumer import Consumer, ConsumerLost, OnTraced
from tocsin_gateway.stream.filters import filters_of

log = structlog.get_logger("tocsin.gateway")

BATCH: Final = 1000
PULL_SECONDS: Final = 30.0
HEARTBEAT_SECONDS: Final = 2.0
SILENCE_SECONDS: Final = 5.0
REFRESH_SECONDS: Final = 5.0
VERIFY_SECONDS: Final = 1.0
JOIN_SECONDS: Final = 5.0
NARROW_SECONDS: Final = 5.0
JOINS_AT_ONCE: Final = 200


@dataclass(slots=True)
class _Join:
    pattern: Pattern
    member: Member
    on_joined: Callable[[Position], bool]
    done: asyncio.Future[Position]


class Hub:
    """`run` belongs into the service's TaskGroup. `state` is the stream's as last seen, None while it can't be reached."""

    def __init__(self, link: broker.Link, stream: str, metrics: Metrics) -> None:
        self._link = link
        self._stream = stream
        self._metrics = metrics
        self._joins: list[_Join] = []
        self._wake = asyncio.Event()
        self._consumer: Consumer | None = None
        self._cover: tuple[Pattern, ...] = ()
        self._previous: StreamEvent | None = None
        self._whole_to = 0  # nothing up to here was dropped before it was read
        self._confirmed_to = 0  # the stream's end when it last confirmed `epoch`
        self.channels = Channels(metrics)
        self.state: broker.StreamState | None = None
        self.answers = False
        self.head = 0
        self.epoch = ""
        self.on_traced: OnTraced | None = None
        # Who reads pages of the past shares the connection with the live events, which wait behind every page that was asked for.
        self.page_turns = asyncio.Semaphore(PAGES_AT_ONCE)

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.head)

    @property
    def ready(self) -> bool:
        return self._link.connected.is_set() and self.answers and self.state is not None

    async def join(self, pattern: Pattern, member: Member, on_joined: Callable[[Position], bool]) -> Position:
        """Every event of the pattern after the returned position goes to `member`.

        `on_joined` is called with the position before the first of them; False from it means that the member has gone.
        Raises Unavailable, at the latest after JOIN_SECONDS.
        """
        join = _Join(pattern, member, on_joined, asyncio.get_running_loop().create_future())
        self._joins.append(join)
        self._wake.set()
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                return await join.done
        except TimeoutError:
            if join.done.done() and not join.done.cancelled():
                return join.done.result()
            raise Unavailable(f"the stream {self._stream} can't be reached; is the listener running, and NATS?") from None
        finally:
            # Once `on_joined` was called, it is the member's to leave.
            if join in self._joins:
                self._joins.remove(join)

    async def run(self) -> None:
        """Follow the stream for ever, across every outage of NATS."""
        pauses = retry.Pauses(longest=1.0)
        while True:
            async for attempt in retry.forever(Unavailable, broker.JetStreamError, longest=1.0):
                with attempt:
                    await self._link.connected.wait()
                    await self._refresh()
            began = time.monotonic()
            try:
                await self._follow()
            except (ConsumerLost, Unavailable, broker.JetStreamError) as error:
                log.info("reading the stream again", after=self.head, reason=str(error))
                self._metrics.consumer_resets.inc()
            finally:
                await self._close_consumer()
            if time.monotonic() - began > VERIFY_SECONDS:
                pauses.reset()
            else:
                # Something refuses the consumer itself, and the stream's state does not show it.
                await asyncio.sleep(pauses.next())

    async def _follow(self) -> None:
        """Returns by an exception only: ConsumerLost, Unavailable or JetStreamError."""
        reconnects = self._link.reconnects
        loop = asyncio.get_running_loop()
        refreshed = loop.time()
        narrow_at: float | None = None
        await self._change_cover()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await self._wake.wait()
            self._wake.clear()
            self._check_consumer(reconnects)
            if self._consumer is not None and self._consumer.outstanding <= BATCH // 2:
                await self._pull()
            if self._joins:
                await self._admit()
            elif loop.time() - refreshed > (VERIFY_SECONDS if self.head > self._whole_to else REFRESH_SECONDS):
                await self._refresh()
                refreshed = loop.time()
            if self.channels.changed:
                self.channels.changed = False
                narrow_at = loop.time() + NARROW_SECONDS
            elif narrow_at is not None and loop.time() >= narrow_at:
                narrow_at = None
                # In a thread, since of thousands it takes a while.
                wanted = await asyncio.to_thread(filters_of, self.channels.patterns())
                if wanted != self._cover and not self.channels.changed:
                    await self._change_cover(wanted)

    def _check_consumer(self, reconnects: int) -> None:
        """Raises ConsumerLost where the connection was interrupted, or JetStream is not heard any more."""
        if self._link.reconnects != reconnects or not self._link.connected.is_set():
            raise ConsumerLost("the connection to NATS was lost")
        consumer = self._consumer
        if consumer is not None and consumer.lost is not None:
            raise ConsumerLost(str(consumer.lost))
        if consumer is not None and consumer.silence() > SILENCE_SECONDS:
            raise ConsumerLost(f"nothing was heard of JetStream for {SILENCE_SECONDS:.0f} s")

    async def _admit(self) -> None:
        joins, self._joins = self._joins[:JOINS_AT_ONCE], self._joins[JOINS_AT_ONCE:]
        if self._joins:
            self._wake.set()
        try:
            await self._refresh()
            new = [join.pattern for join in joins if not any(have.contains(join.pattern) for have in self._cover)]
            if new:
                self.channels.changed = True
                await self._change_cover(filters_of((*self._cover, *new)))
        except (Unavailable, broker.JetStreamError, ConsumerLost):
            # They are admitted once the stream is back; whoever waits may give up before.
            self._joins = joins + self._joins
            raise
        self.channels.flush()
        for join in joins:
            if join.done.cancelled():
                continue
            self.channels.add(join.pattern, join.member)
            join.done.set_result(self.position)
            if not join.on_joined(self.position):
                self.channels.remove(join.pattern, join.member)

    async def _refresh(self) -> None:
        """Learn the stream's state, and move `head` past what does not match, if nothing that matches is on its way.

        Raises Unavailable, JetStreamError, ConsumerLost.
        """
        head, end = await self._learn()
        consumer = self._consumer
        if consumer is not None and consumer.lost is None:
            pending, delivered = await consumer.pending()
            read = pending == 0 and delivered <= consumer.consumer_sequence
            if read or self.head > self._whole_to:
                # Again, and after that: what was purged is not pending either.
                head, _ = await self._learn()
            self._check_whole(head)
            if read and consumer.lost is None:
                self.head = max(self.head, end)
                self._whole_to = max(self._whole_to, end)
        elif self.channels.patterns():
            self._check_whole(head)
        else:
            self.head = self._whole_to = end

    async def _learn(self) -> tuple[int, int]:
        """Ask for the stream's state, and begin a new epoch where it says so; (the head before it, the stream's last sequence)."""
        head = self.head
        try:
            state = await broker.stream_state(self._link.client, self._stream)
        except (Unavailable, broker.JetStreamError):
            self.answers = False
            raise
        if state is None or state.epoch is None:
            self.state = None
            raise Unavailable(f"there is no stream {self._stream} yet; the listener makes it")
        known, self.state, self.answers = self.state, state, True
        recreated = (known is not None and known.created != state.created) or state.last_sequence < head
        if self.epoch != state.epoch or recreated:
            self._begin_epoch(state)
        self._confirmed_to = state.last_sequence
        return min(head, state.last_sequence), state.last_sequence

    def _check_whole(self, head: int) -> None:
        """Tell everybody of a gap where the stream may have dropped events up to `head` before they were read."""
        assert self.state is not None
        if self.state.first_sequence <= self._whole_to + 1:
            self._whole_to = max(self._whole_to, head)
            return
        self.head = self._whole_to = max(self.head, self.state.last_sequence)
        self._previous = None
        self.channels.reset(self.position, "gap")
        if self._consumer is not None:
            raise ConsumerLost("the stream dropped events, perhaps before they were read")

    def _begin_epoch(self, state: broker.StreamState) -> None:
        first, self.epoch = not self.epoch, state.epoch or ""
        self._previous = None
        self.head = self._whole_to = state.last_sequence
        if not first:
            log.warning("the stream began a new epoch", epoch=self.epoch, head=self.head)
            if self._consumer is not None:
                self._consumer.lost = ConsumerLost("the stream began a new epoch")
            self.channels.reset(self.position, "epoch")

    async def _change_cover(self, wanted: tuple[Pattern, ...] | None = None) -> None:
        """Read with other filters from `head` on. Opened at `head` itself, to know the original that a copy may follow."""
        wanted = filters_of(self.channels.patterns()) if wanted is None else wanted
        old, self._consumer = self._consumer, None
        if old is not None:
            await old.close()
        self._cover = wanted
        if wanted:
            consumer = Consumer(self._link.client, self._stream, wanted, self._deliver)
            await consumer.open(self.head)
            consumer.on_status = self._on_consumer
            consumer.on_traced = self.on_traced
            self._consumer = consumer
            await self._pull()

    async def _close_consumer(self) -> None:
        consumer, self._consumer, self._cover = self._consumer, None, ()
        if consumer is not None:
            await consumer.close()

    async def _pull(self) -> None:
        assert self._consumer is not None
        largest = max(4 << 20, 2 * self._link.client.max_payload)
        await self._consumer.pull(BATCH, largest, wait=PULL_SECONDS, heartbeat=HEARTBEAT_SECONDS)

    def _on_consumer(self, what: str) -> None:
        if what != "event" or (self._consumer is not None and self._consumer.outstanding <= BATCH // 2):
            self._wake.set()

    def _deliver(self, event: StreamEvent, _pending: int) -> None:
        previous, self._previous = self._previous, event
        if event.sequence <= self.head:
            return
        if event.epoch != self.epoch:
            self._adopt(event)
        self.head = event.sequence
        self._metrics.events.inc()
        original = previous if event.is_copy_of(previous) else None
        self.channels.hand_out(event, original)

    def _adopt(self, event: StreamEvent) -> None:
        """A message of another epoch than the one we know. Raises ConsumerLost where the stream may have changed since we asked."""
        if event.sequence > self._confirmed_to:
            raise ConsumerLost(f"a message of epoch {event.epoch} came while {self.epoch} was known")
        # The stream has confirmed the epoch since. A position is a place in the stream as it is now, also behind a leftover of before.
        event.epoch = self.epoch
