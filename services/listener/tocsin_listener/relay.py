"""From the journal into the stream: exactly once, in order, batch after batch.

A batch is what lies between two snapshots. Its end is stored before its first message is sent; every message goes directly
behind the one before it; what went wrong is answered by reading back the stream's end. See docs/guarantees.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import structlog
from nats.aio.msg import Msg

from tocsin.broker import JetStreamError
from tocsin.errors import Unavailable
from tocsin_listener.journal import Difference, Journal, Row
from tocsin_listener.leader import Lead
from tocsin_listener.message import Address, Message, Numbering
from tocsin_listener.meters import Meters
from tocsin_listener.progress import Cursor, Progress
from tocsin_listener.publisher import LARGEST_BATCH, MESSAGE_TOO_LARGE, WRONG_LAST_SEQUENCE, Publisher, Refused
from tocsin_listener.tracing import Tracing

IN_FLIGHT: Final = 8
"""Chunks sent and not yet acknowledged. Each says which sequence it must follow, so that none can overtake."""

CHUNK_BYTES: Final = 4 << 20
LEAVE_PATIENCE: Final = 1.0

log = structlog.get_logger("tocsin.listener.relay")


@dataclass(slots=True)
class _Flight:
    future: asyncio.Future[Msg]
    messages: Sequence[Message]
    last: int


@dataclass(slots=True)
class _Convoy:
    """A batch under way: the sequence of the last message sent, how many are still to be skipped, what is not yet acknowledged."""

    sent: int
    skip: int
    flights: deque[_Flight] = field(default_factory=deque)


class Relay:
    """One leader's relay over one connection to each side; any error ends it, and a new one begins from what is stored."""

    def __init__(
        self,
        *,
        lead: Lead,
        progress: Progress,
        journal: Journal,
        publisher: Publisher,
        address: Address,
        quarantined: set[tuple[int, bool]],
        cursor: Cursor,
        meters: Meters,
        tracing: Tracing | None = None,
    ) -> None:
        self._lead = lead
        self._progress = progress
        self._journal = journal
        self._publisher = publisher
        self._address = address
        self._quarantined = quarantined
        self._meters = meters
        self._tracing = tracing
        self.cursor = cursor

    async def finish(self, published: int) -> None:
        """Complete the stored batch, of which the stream already has the first `published` messages."""
        if self.cursor.intended is None:
            return
        difference = await self._journal.between(self.cursor.reached, self.cursor.intended)
        if difference is not None:
            await self._publish(difference, published)
        self._complete(self.cursor.intended)

    async def step(self) -> int | None:
        """Relay what has become visible since the cursor: how many events, 0 where there was nothing, None where they were too many to count."""
        difference = await self._journal.between(self.cursor.reached)
        if difference is None:
            return 0
        self.cursor = Cursor(self.cursor.reached, difference.intended, self.cursor.stream_sequence)
        self._lead.check()
        await self._progress.store(self.cursor)
        await self._publish(difference, 0)
        self._complete(difference.intended)
        return None if difference.rows is None else len(difference.rows)

    def _complete(self, reached: str) -> None:
        # It is stored with the next batch's intent; until then the stream's own end says that this one is complete.
        self.cursor = Cursor(reached, None, self.cursor.stream_sequence)

    async def settle(self) -> None:
        """Store a cursor that stands behind everything sent, before a sleep."""
        await self._progress.store(self.cursor)

    async def leave(self) -> None:
        """At the end: where everything sent is acknowledged, store that, if it can be done soon; else the next start reads the last batch again."""
        if self.cursor.intended is None:
            with contextlib.suppress(Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                async with asyncio.timeout(LEAVE_PATIENCE):
                    self._lead.check()
                    await self.settle()

    async def _publish(self, difference: Difference, published: int) -> None:
        """Send a batch but its first `published` messages, and wait until all of it is stored; moves the cursor's sequence."""
        numbering = Numbering(self._address, difference.reached, difference.intended, self._quarantined)
        convoy = _Convoy(self.cursor.stream_sequence + published, published)
        if difference.rows is not None:
            await self._send_page(difference.rows, numbering, convoy)
        else:
            await self._publish_pages(difference, numbering, convoy)
        while convoy.flights:
            await self._land(convoy.flights.popleft())
        self.cursor = Cursor(self.cursor.reached, self.cursor.intended, convoy.sent)
        self._meters.batches.inc()

    async def _publish_pages(self, difference: Difference, numbering: Numbering, convoy: _Convoy) -> None:
        """One page is read while the one before it is sent."""
        pages: asyncio.Queue[Sequence[Row] | None] = asyncio.Queue(1)

        async def read() -> None:
            async with contextlib.aclosing(self._journal.pages(difference)) as found:
                async for page in found:
                    await pages.put(page)
            await pages.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while (page := await pages.get()) is not None:
                await self._send_page(page, numbering, convoy)

    async def _send_page(self, rows: Sequence[Row], numbering: Numbering, convoy: _Convoy) -> None:
        messages = list(numbering.messages(rows, time.monotonic()))
        if self._tracing is not None:
            self._tracing.mark(messages)
        skipped = min(convoy.skip, len(messages))
        convoy.skip -= skipped
        for chunk in _chunks(messages[skipped:]):
            self._lead.check()
            convoy.flights.append(_Flight(await self._send(chunk, convoy.sent), chunk, convoy.sent + len(chunk)))
            convoy.sent += len(chunk)
            while len(convoy.flights) >= IN_FLIGHT:
                await self._land(convoy.flights.popleft())

    async def _send(self, chunk: Sequence[Message], last: int) -> asyncio.Future[Msg]:
        try:
            return await self._publisher.send(chunk, last)
        except Refused as refused:
            await self._set_aside(refused.message, refused.reason)
            raise

    async def _land(self, flight: _Flight) -> None:
        try:
            await self._publisher.acknowledged(flight.future, flight.last)
        except JetStreamError as error:
            if error.err_code == MESSAGE_TOO_LARGE:
                largest = max(flight.messages, key=lambda m: len(m.body))
                await self._set_aside(largest, str(error))
                raise Refused(largest, str(error)) from error
            if error.err_code == WRONG_LAST_SEQUENCE:
                log.warning("the stream's end is not where it was expected; reading it back", error=str(error))
            raise
        self._meters.sent(flight.messages)
        if self._tracing is not None:
            self._tracing.acknowledged(flight.messages)

    async def _set_aside(self, message: Message, reason: str) -> None:
        """Committed before anything later is published; the batch is then read again without it."""
        log.error("NATS refuses a message; set aside in tocsin.quarantine", seq=message.seq, subject=message.subject, reason=reason)
        await self._progress.quarantine(message.seq, message.copy, message.subject, reason, message.body)
        self._quarantined.add((message.seq, message.copy))
        self._meters.quarantined.inc()


def _chunks(messages: list[Message]) -> list[list[Message]]:
    """In order, each at most LARGEST_BATCH messages and CHUNK_BYTES, or one message."""
    if sum(len(message.body) for message in messages) <= CHUNK_BYTES:
        return [messages[begin : begin + LARGEST_BATCH] for begin in range(0, len(messages), LARGEST_BATCH)]
    chunks: list[list[Message]] = []
    size = 0
    for message in messages:
        if not chunks or len(chunks[-1]) >= LARGEST_BATCH or size + len(message.body) > CHUNK_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(message)
        size += len(message.body)
    return chunks
