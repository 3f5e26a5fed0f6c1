"""What one client is told: answers, events in the form that each subscription wants, and a snapshot's rows."""

from __future__ import annotations

import asyncio

from tocsin.position import Position
from tocsin_gateway import protocol
from tocsin_gateway.delivery.frames import StreamEvent, addressed
from tocsin_gateway.delivery.outbox import Outbox
from tocsin_gateway.delivery.selection import Shown, Unseen
from tocsin_gateway.limits import REPLAY_TURN
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.protocol import ProtocolError, Reason
from tocsin_gateway.sessions.subscription import Subscription
from tocsin_gateway.source.snapshot import Row, shown_row


class Telling:
    """The way to one client's outbox; what is told is counted."""

    __slots__ = ("_metrics", "_outbox", "_paced")

    def __init__(self, outbox: Outbox, metrics: Metrics) -> None:
        self._outbox = outbox
        self._metrics = metrics
        self._paced = 0

    def subscribed(self, subscription: Subscription, position: Position, reason: Reason | None, hint: str | None = None) -> None:
        if reason is not None:
            self._metrics.unrecovered.labels(reason).inc()
        self._outbox.send(protocol.subscribed(subscription.id, subscription.pattern.text, position, reason, hint))

    def error(self, problem: ProtocolError) -> None:
        self._metrics.errors.labels(problem.code).inc()
        self._outbox.send(protocol.error(problem))

    def event(self, event: StreamEvent, recipients: list[Subscription], *, live: bool) -> list[tuple[Subscription, str]]:
        """One frame for each form of the event; the subscriptions that may go on no longer, with the reason."""
        frames: dict[bytes, list[tuple[bytes, bytes]]] = {}
        forbidden: list[tuple[Subscription, str]] = []
        for subscription in recipients:
            shown = Shown(event.payload) if subscription.selection is None else subscription.selection.judge(event)
            if isinstance(shown, Shown):
                frames.setdefault(shown.payload, []).append((subscription.json_id, shown.mark))
            elif isinstance(shown, Unseen) and shown.forbidden is not None:
                forbidden.append((subscription, shown.forbidden))
            elif isinstance(shown, Unseen):
                self.subscribed(subscription, Position(event.epoch, event.sequence), "gap")
        for payload, marks in frames.items():
            if live:
                self._metrics.frames.inc()
            self._outbox.send(addressed(payload, marks))
        return forbidden

    async def drained(self) -> None:
        """Returns once the client has taken most of what was sent, and now and then others had their turn."""
        self._paced += 1
        if self._paced % REPLAY_TURN == 0:
            await asyncio.sleep(0)
        await self._outbox.drained()

    async def row(self, subscription: Subscription, row: Row) -> None:
        """One row of a snapshot, once the client has taken most of what was sent before. Raises ProtocolError where its rule can't be judged."""
        await self.drained()
        subscription.enter(subscription.state)
        assert subscription.table is not None
        shown = shown_row(subscription.selection, subscription.table, row)
        if isinstance(shown, Unseen):
            raise ProtocolError("forbidden", shown.forbidden or "", subscription.id)
        if shown is not None:
            key, values = shown
            json_id = subscription.json_id
            self._outbox.send(protocol.large_row(json_id, key) if values is None else protocol.row(json_id, key, values))

    def snapshot_end(self, subscription: Subscription, position: Position) -> None:
        self._outbox.send(protocol.snapshot_end(subscription.id, position))
