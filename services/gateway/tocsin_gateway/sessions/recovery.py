"""How a subscription gets from the place that its client asked for to the live events.

`run` is the subscription's task until it is live; what it hands out goes through the session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

from tocsin import broker
from tocsin.errors import Unavailable
from tocsin.position import Position
from tocsin.subject import Pattern
from tocsin_gateway import protocol
from tocsin_gateway.admission.access import Grant
from tocsin_gateway.delivery.channels import Member
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.limits import REPLAY_PAGE, Limits
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.protocol import ProtocolError, Reason
from tocsin_gateway.sessions.hints import Hints
from tocsin_gateway.sessions.subscription import State, Subscription
from tocsin_gateway.sessions.telling import Telling
from tocsin_gateway.source.snapshot import Moment, Snapshots
from tocsin_gateway.stream.hub import Hub
from tocsin_gateway.stream.replay import Hole, Pages, catch_up, present, reach, start_of

FIRST_PAGE_SECONDS: Final = 5.0
TURN_SECONDS: Final = 10.0
BUFFER_OVERHEAD: Final = 256
SNAPSHOT_SECONDS: Final = 300.0
CHANGED: Final = "the stream lost events while the snapshot was read; subscribe again"


class Recovering(Member, Protocol):
    """What a recovery needs of the session that its subscriptions belong to."""

    tell: Telling
    grant: Grant | None

    def attach(self, subscription: Subscription) -> None: ...
    def detach(self, subscription: Subscription) -> None: ...
    def still_member(self, pattern: Pattern) -> bool: ...
    def share(self) -> None: ...
    def end_with(self, subscription: Subscription, problem: ProtocolError) -> None: ...
    async def send_replayed(self, subscription: Subscription, event: StreamEvent) -> None: ...


class Recovery:
    """One session's: its subscriptions take turns at replaying."""

    __slots__ = ("_hints", "_hub", "_limits", "_link", "_metrics", "_session", "_snapshots", "_stream", "_turns")

    def __init__(
        self, session: Recovering, hub: Hub, link: broker.Link, stream: str, limits: Limits, metrics: Metrics, snapshots: Snapshots, hints: Hints
    ) -> None:
        self._session = session
        self._hints = hints
        self._snapshots = snapshots
        self._hub = hub
        self._link = link
        self._stream = stream
        self._limits = limits
        self._metrics = metrics
        self._turns = asyncio.Semaphore(limits.replays)

    async def run(self, subscription: Subscription, since: protocol.Since) -> None:
        try:
            told = since == "snapshot"
            hint = await self._hints.about(subscription.pattern, self._session.grant) if since in ("now", "start") else None
            start = await self._snapshot(subscription) if since == "snapshot" else await start_of(self._link, self._stream, since)
            while isinstance(start, Position):
                try:
                    await self._replay(subscription, start, told=told, hint=hint)
                except Hole as hole:
                    # What `start` means moves on with a stream that drops its oldest events all the time.
                    again = since == "start" and subscription.state is State.JOINING
                    start = await start_of(self._link, self._stream, since) if again else hole.reason
                else:
                    return
            await self._go_live(subscription, start, hint)
        except (Unavailable, broker.JetStreamError) as error:
            self._session.end_with(subscription, ProtocolError("unavailable", str(error), subscription.id))
        except ProtocolError as problem:
            self._session.end_with(subscription, problem)

    async def _snapshot(self, subscription: Subscription) -> Position:
        """Hand out the table's rows, and the changes up to the position that is returned: behind it, each one is after the rows' moment.

        Raises ProtocolError, Unavailable, JetStreamError.
        """
        assert subscription.table is not None
        id_, state = subscription.id, await present(self._link, self._stream)
        try:
            async with asyncio.timeout(SNAPSHOT_SECONDS), self._turn(id_), self._snapshots.connection(id_) as connection:
                before = Position(state.epoch or "", state.last_sequence)
                async with self._snapshots.rows(connection, subscription.table, id_, subscription.selection) as table:
                    subscription.after = before.sequence
                    subscription.enter(State.REPLAYING)
                    self._session.tell.subscribed(subscription, before, None)
                    async for page in table.pages():
                        for row in page:
                            await self._session.tell.row(subscription, row)
                await self._snapshots.until_published(connection, table.moment, id_)
                state = await present(self._link, self._stream)
                end = Position(state.epoch or "", state.last_sequence)
        except TimeoutError:
            raise ProtocolError("limit", f"the snapshot took more than {SNAPSHOT_SECONDS:.0f} s; ask for fewer rows by `where`, or read faster", id_) from None
        if end.epoch != before.epoch:
            raise ProtocolError("unavailable", CHANGED, id_)
        pages = Pages(self._link, self._stream, self._hub.page_turns, subscription.pattern, before.epoch, before.sequence)
        try:
            await reach(pages, _Reader(self._session, subscription, self._metrics, table.moment), end)
        except Hole:
            raise ProtocolError("unavailable", CHANGED, id_) from None
        finally:
            await pages.close()
        subscription.enter(State.REPLAYING)
        self._session.tell.snapshot_end(subscription, end)
        return end

    async def _go_live(self, subscription: Subscription, reason: Reason | None, hint: str | None) -> None:
        def joined(position: Position) -> bool:
            if subscription.state is State.ENDED:
                return self._session.still_member(subscription.pattern)
            subscription.after = position.sequence
            subscription.state = State.LIVE
            self._session.attach(subscription)
            self._session.tell.subscribed(subscription, position, reason, hint)
            self._session.share()
            return True

        await self._hub.join(subscription.pattern, self._session, joined)

    @contextlib.asynccontextmanager
    async def _turn(self, id: str) -> AsyncIterator[None]:  # noqa: A002  # the field's name
        """Raises ProtocolError limit."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            message = f"{self._limits.replays} replays at once are allowed on one socket; try again when one has reached the present"
            raise ProtocolError("limit", message, id) from None
        self._metrics.replays.inc()
        try:
            yield
        finally:
            self._turns.release()
            self._metrics.replays.dec()

    async def _replay(self, subscription: Subscription, start: Position, *, told: bool, hint: str | None) -> None:
        """`told`: the client knows of its subscription. Raises Hole, ProtocolError limit, and before `subscribed` was told Unavailable."""
        async with self._turn(subscription.id):
            await self._replay_pages(subscription, start, told=told, hint=hint)

    async def _replay_pages(self, subscription: Subscription, start: Position, *, told: bool, hint: str | None) -> None:
        subscription.after = start.sequence
        pages = Pages(self._link, self._stream, self._hub.page_turns, subscription.pattern, start.epoch, start.sequence)
        try:
            try:
                async with asyncio.timeout(FIRST_PAGE_SECONDS):
                    page, left = await pages.next()
            except TimeoutError:
                raise Unavailable("the stream can't be read at the moment; try again in a second") from None
            subscription.enter(State.REPLAYING)
            if not told:
                self._session.tell.subscribed(subscription, start, None, hint)
            reader = _Reader(self._session, subscription, self._metrics)
            for event in page:
                await reader.replay(event)
            page.clear()  # or it stays for the whole replay, and after a cancelled one in a circle with the traceback
            while left >= REPLAY_PAGE or not await self._join_buffered(subscription, pages, reader, start.epoch):
                left = await catch_up(pages, reader, until_near=lambda left: left < REPLAY_PAGE)
        finally:
            await pages.close()

    async def _join_buffered(self, subscription: Subscription, pages: Pages, reader: _Reader, epoch: str) -> bool:
        """True once the subscription is live; False where the replay has to go on. Raises Hole."""

        def joined(_position: Position) -> bool:
            if subscription.state is State.ENDED:
                return self._session.still_member(subscription.pattern)
            subscription.state = State.BUFFERING
            subscription.buffer.clear()
            subscription.buffer_bytes, subscription.overflowed, subscription.hole = 0, False, None
            self._session.attach(subscription)
            return True

        try:
            position = await self._hub.join(subscription.pattern, self._session, joined)
        except Unavailable:
            return False  # an outage; the client has been told `subscribed`, so we go on when it is over
        try:
            if position.epoch != epoch:
                raise Hole("epoch")
            await reach(pages, reader, position)
            while subscription.buffer:
                event = subscription.buffer.popleft()
                subscription.buffer_bytes -= len(event.body) + BUFFER_OVERHEAD
                if event.sequence > subscription.after:
                    await reader.replay(event)
            if subscription.hole is not None:
                raise Hole(subscription.hole)
            if not subscription.overflowed:
                subscription.enter(State.LIVE)
                self._session.share()
                return True
        finally:
            if subscription.state is State.BUFFERING:
                self._session.detach(subscription)
                subscription.state = State.REPLAYING
        await pages.rewind(max(subscription.after, position.sequence))
        return False


class _Reader:
    """A replay's hand on its subscription."""

    def __init__(self, session: Recovering, subscription: Subscription, metrics: Metrics, moment: Moment | None = None) -> None:
        self._moment = moment
        self._session = session
        self._subscription = subscription
        self._metrics = metrics

    async def replay(self, event: StreamEvent) -> None:
        if self._moment is not None and self._moment.sees(event):
            return
        self._metrics.replayed.inc()
        await self._session.send_replayed(self._subscription, event)
