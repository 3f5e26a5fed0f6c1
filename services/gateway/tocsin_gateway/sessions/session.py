"""One client: its subscriptions, and which frames go to it.

A socket with exactly one live subscription shares its bytes with every other client that asks the same. Any other socket is
asked event by event; while one of its subscriptions replays, or filters, its frames say in `for` whom they are for.
"""

from __future__ import annotations

import asyncio

from tocsin import broker
from tocsin.position import Position
from tocsin.subject import Pattern
from tocsin_gateway import protocol
from tocsin_gateway.admission.access import Access, Grant
from tocsin_gateway.delivery.channels import Member
from tocsin_gateway.delivery.frames import StreamEvent, addressed
from tocsin_gateway.delivery.groups import Group
from tocsin_gateway.delivery.outbox import Outbox, SocketOutbox
from tocsin_gateway.delivery.selection import NO_MARK
from tocsin_gateway.limits import JOIN_BUFFER_BYTES, Limits
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.presence.live import Live
from tocsin_gateway.presence.lounge import Lounge
from tocsin_gateway.protocol import ProtocolError, Reason
from tocsin_gateway.sessions.hints import Hints
from tocsin_gateway.sessions.recovery import BUFFER_OVERHEAD, Recovery
from tocsin_gateway.sessions.subscription import State, Subscription
from tocsin_gateway.sessions.telling import Telling
from tocsin_gateway.source.snapshot import Snapshots
from tocsin_gateway.stream.hub import Hub


class Session:
    """Belongs to one connection; `tasks` is that connection's TaskGroup. `shared` is the outbox where it can take raw frames."""

    def __init__(
        self,
        hub: Hub,
        link: broker.Link,
        stream: str,
        access: Access,
        limits: Limits,
        metrics: Metrics,
        outbox: Outbox,
        tasks: asyncio.TaskGroup,
        *,
        snapshots: Snapshots,
        hints: Hints,
        live: Live,
    ) -> None:
        self._hub = hub
        self._limits = limits
        self._metrics = metrics
        self._outbox = outbox
        self._tasks = tasks
        self._subscriptions: dict[str, Subscription] = {}
        self._attached: dict[Pattern, list[Subscription]] = {}
        self._gathered: list[Subscription] = []
        self._sharing: tuple[Pattern, Group[Member]] | None = None
        self._last: StreamEvent | None = None
        self._recovery = Recovery(self, hub, link, stream, limits, metrics, snapshots, hints)
        self._snapshots = snapshots
        self._all_plain = True
        self._all_live: bool | None = None
        self.tell = Telling(outbox, metrics)
        self._lounge = Lounge(live, limits, metrics, outbox, tasks)
        self.grant: Grant | None = access.anonymous()

    @property
    def all_live(self) -> bool:
        """Whether no subscription replays, so that the last event's position holds for all of them."""
        if self._all_live is None:
            self._all_live = all(subscription.state is State.LIVE for subscription in self._subscriptions.values())
        return self._all_live

    @property
    def subscriptions(self) -> int:
        return len(self._subscriptions) + len(self._lounge)

    def _forget_all_live(self) -> None:
        """Found again when it is wanted: an event must not cost a look at every subscription."""
        self._all_live = None

    def admit(self, grant: Grant) -> None:
        """From now on this grant holds. Subscriptions that it does not allow end with an error and `unsubscribed`; the others go on."""
        self.grant = grant
        self._outbox.send(protocol.authenticated(grant.expires_text))
        self.unshare()
        for subscription in tuple(self._subscriptions.values()):
            try:
                grant.check(subscription.pattern, subscription.id)
                before = subscription.selection
                subscription.select_under(grant.visibility)
                self._note_plain()
                if subscription.table is not None and subscription.state is State.REPLAYING and subscription.selection != before:
                    raise ProtocolError("forbidden", "the token's rules changed while rows were sent; subscribe again", subscription.id)
            except ProtocolError as problem:
                self.end_with(subscription, problem)
                self._outbox.send(protocol.unsubscribed(subscription.id))
        self._lounge.admit(grant)
        self.share()

    def _note_plain(self) -> None:
        """Whether every subscription wants every event of its pattern as it is."""
        self._all_plain = all(subscription.selection is None for subscription in self._subscriptions.values())

    def handle(self, message: protocol.ClientMessage) -> None:
        """One client message but auth. Raises ProtocolError."""
        if isinstance(message, protocol.Subscribe):
            self.subscribe(message)
        elif isinstance(message, protocol.Unsubscribe):
            self.unsubscribe(message.id)
        elif isinstance(message, protocol.Ping):
            self.send_positions()
            self._outbox.send(protocol.PONG)

    async def publish(self, message: protocol.Publish) -> None:
        """A client's own message. Raises ProtocolError."""
        if self.grant is None:
            raise ProtocolError("unauthenticated", 'send {"op": "auth", "token": "…"} first', message.id)
        await self._lounge.publish(message, self.grant)

    def subscribe(self, request: protocol.Subscribe) -> None:
        """Begin a subscription; `subscribed` follows when delivery is certain. Raises ProtocolError."""
        pattern, since = protocol.checked_pattern(request), protocol.checked_since(request)
        where, select = protocol.checked_where(request), protocol.checked_select(request)
        table = self._snapshots.table_of(pattern, request.id) if since == "snapshot" else None
        if self.grant is None:
            raise ProtocolError("unauthenticated", 'send {"op": "auth", "token": "…"} first', request.id)
        self.grant.check(pattern, request.id)
        self._lounge.check(request, pattern, self.grant)
        if request.id in self._subscriptions or request.id in self._lounge:
            raise ProtocolError("duplicate-id", f"a subscription with the id {request.id!r} is there already", request.id)
        if self.subscriptions >= self._limits.subscriptions:
            self._metrics.refused.labels("subscriptions").inc()
            raise ProtocolError("limit", f"{self._limits.subscriptions} subscriptions are allowed on one socket", request.id)
        if self._lounge.concerns(pattern):
            self._lounge.sit(request, pattern, self.grant)
            return
        if not self._hub.ready:
            raise ProtocolError("unavailable", "the stream can't be reached at the moment; try again in a second", request.id)
        self.unshare()
        subscription = Subscription(request.id, pattern, self._forget_all_live)
        subscription.where, subscription.select = where, select
        subscription.select_under(self.grant.visibility)
        subscription.table = table
        self._subscriptions[request.id] = subscription
        self._all_live = False
        self._note_plain()
        self._metrics.subscriptions.inc()
        subscription.task = self._tasks.create_task(self._recovery.run(subscription, since))
        self._lounge.sit(request, pattern, self.grant)

    def unsubscribe(self, id: str) -> None:  # noqa: A002  # the field's name
        """Raises ProtocolError unknown-id."""
        subscription = self._subscriptions.get(id)
        if subscription is None and id in self._lounge:
            self._lounge.stand_up(id)
            self._outbox.send(protocol.unsubscribed(id))
            return
        if subscription is None:
            raise ProtocolError("unknown-id", f"there is no subscription {id!r}", id)
        self.unshare()
        self._drop(subscription)
        self._outbox.send(protocol.unsubscribed(id))
        self.share()

    def end_with(self, subscription: Subscription, problem: ProtocolError) -> None:
        self.unshare()
        self._drop(subscription)
        self.tell.error(problem)
        self.share()

    def close(self, code: int, reason: str) -> None:
        """End the connection from our side."""
        self._outbox.close(code, reason)

    def end(self) -> None:
        """The connection is over."""
        self.unshare()
        self._lounge.end()
        for subscription in list(self._subscriptions.values()):
            self._drop(subscription)

    def send_positions(self) -> None:
        """Tell each subscription how far it is, so that a quiet one's position does not age."""
        self._hub.channels.flush()
        for subscription in self._subscriptions.values():
            if subscription.state is State.LIVE:
                subscription.after = max(subscription.after, self._hub.head)
                self._outbox.send(protocol.position(subscription.id, Position(self._hub.epoch, subscription.after)))

    # What the hub calls.

    def collect(self, event: StreamEvent, pattern: Pattern) -> bool:
        found = self._attached.get(pattern)
        if found is None:
            return False
        self._gathered += [subscription for subscription in found if event.sequence > subscription.after]
        return bool(self._gathered)

    def deliver(self, event: StreamEvent) -> None:
        gathered, self._gathered = self._gathered, []
        live = []
        for subscription in gathered:
            if subscription.state is State.LIVE:
                subscription.after = event.sequence
                live.append(subscription)
            elif subscription.state is State.BUFFERING and not subscription.overflowed:
                subscription.buffer.append(event)
                subscription.buffer_bytes += len(event.body) + BUFFER_OVERHEAD
                subscription.overflowed = subscription.buffer_bytes > JOIN_BUFFER_BYTES
        if live and not self._all_plain:
            # The copy under an old route is told too: who got the original is not among `live`.
            self._tell(event, live, live=True)
        elif live and not event.is_copy_of(self._last):
            self._last = event
            self._metrics.frames.inc()
            # A copy may be for some only of those whose pattern it matches: the others had the original before they resumed.
            if self.all_live and not (event.copy and len(self._subscriptions) > 1):
                self._outbox.send_event(event)
            else:
                self._outbox.send(addressed(event.payload, [(subscription.json_id, NO_MARK) for subscription in live]))

    def withheld(self, event: StreamEvent) -> None:
        """An event that can't be judged, for the subscription that shares."""
        self._tell(event, list(self._subscriptions.values()), live=True)

    def _tell(self, event: StreamEvent, recipients: list[Subscription], *, live: bool) -> None:
        for subscription, reason in self.tell.event(event, recipients, live=live):
            self.end_with(subscription, ProtocolError("forbidden", reason, subscription.id))

    def reset(self, pattern: Pattern, position: Position, reason: Reason) -> None:
        for subscription in self._attached.get(pattern, ()):
            if subscription.state is State.LIVE:
                subscription.after = position.sequence
                self.tell.subscribed(subscription, position, reason)
            else:
                subscription.hole = reason

    def still_member(self, pattern: Pattern) -> bool:
        """Whether the hub must still ask us for the pattern's events, though the subscription that joined has ended."""
        return pattern in self._attached and (self._sharing is None or self._sharing[0] != pattern)

    def attach(self, subscription: Subscription) -> None:
        self._attached.setdefault(subscription.pattern, []).append(subscription)

    def detach(self, subscription: Subscription) -> None:
        attached = self._attached.get(subscription.pattern)
        if attached is not None and subscription in attached:
            attached.remove(subscription)
            if not attached:
                del self._attached[subscription.pattern]
                self._hub.channels.remove(subscription.pattern, self)

    def _drop(self, subscription: Subscription) -> None:
        if subscription.state is State.ENDED:
            return
        subscription.state = State.ENDED
        self._lounge.stand_up(subscription.id)
        del self._subscriptions[subscription.id]
        self._all_live = None
        self._note_plain()
        self._metrics.subscriptions.dec()
        if subscription.task is not None and subscription.task is not asyncio.current_task():
            subscription.task.cancel()
        # The task's frames hold the subscription and a page of events: in a circle with it, they would outlive the client by far.
        subscription.task = None
        subscription.buffer.clear()
        self.detach(subscription)

    def share(self) -> None:
        """Share bytes where exactly one live subscription is on a socket that can take frames."""
        if self._sharing is None and isinstance(self._outbox, SocketOutbox) and len(self._subscriptions) == 1:
            only = next(iter(self._subscriptions.values()))
            if only.state is State.LIVE and only.after <= self._hub.head and self._attached.get(only.pattern) == [only]:
                self._outbox.flush()
                self._sharing = only.pattern, self._hub.channels.share(only.pattern, self, self._outbox, only.selection, only.json_id)

    def unshare(self) -> None:
        if self._sharing is not None and isinstance(self._outbox, SocketOutbox):
            (pattern, group), self._sharing = self._sharing, None
            self._hub.channels.unshare(pattern, self, self._outbox, group)
            for subscription in self._attached.get(pattern, ()):
                subscription.after = max(subscription.after, self._hub.head)

    async def send_replayed(self, subscription: Subscription, event: StreamEvent) -> None:
        """One event of a replay, once the client has taken most of what was sent before."""
        await self.tell.drained()
        subscription.enter(subscription.state)
        subscription.after = event.sequence
        self._tell(event, [subscription], live=False)
