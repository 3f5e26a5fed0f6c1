"""Who wants which pattern, and what waits to be written to them."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tocsin.position import Position
from tocsin.subject import Pattern
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.delivery.groups import Group, Groups
from tocsin_gateway.delivery.outbox import SocketOutbox
from tocsin_gateway.delivery.routes import Routes
from tocsin_gateway.delivery.selection import Selection
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.protocol import Reason


class Member(Protocol):
    """A session that wants single events."""

    def collect(self, event: StreamEvent, pattern: Pattern) -> bool: ...
    def deliver(self, event: StreamEvent) -> None: ...
    def withheld(self, event: StreamEvent) -> None: ...
    def reset(self, pattern: Pattern, position: Position, reason: Reason) -> None: ...


class Channel:
    """One pattern. The clients of a group get the same bytes in one write; `members` are asked event by event."""

    __slots__ = ("groups", "members", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.groups = Groups[Member](pattern)
        self.members: dict[Member, None] = {}

    def flush(self) -> None:
        for group in self.groups.all():
            group.flush()

    def everybody(self) -> list[Member]:
        return [*(member for group in self.groups.all() for member in group.outboxes.values()), *self.members]


class Channels:
    """Every pattern that somebody wants. `changed` is set when one comes or goes; whoever follows it clears it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._routes: Routes[Channel] = Routes()
        self._flush_scheduled = False
        self._dirty: dict[Group[Member], None] = {}
        self.changed = False

    def patterns(self) -> tuple[Pattern, ...]:
        return self._routes.patterns()

    def add(self, pattern: Pattern, member: Member) -> None:
        """From now on the member is asked for the pattern's events."""
        channel = self._routes.get(pattern)
        if channel is None:
            channel = Channel(pattern)
            self._routes.add(pattern, channel)
            self.changed = True
        channel.members[member] = None

    def remove(self, pattern: Pattern, member: Member) -> None:
        channel = self._routes.get(pattern)
        if channel is not None:
            channel.flush()
            channel.members.pop(member, None)
            if not channel.groups and not channel.members:
                self._routes.remove(pattern)
                self.changed = True

    def share(self, pattern: Pattern, member: Member, outbox: SocketOutbox, selection: Selection | None, json_id: bytes) -> Group[Member]:
        """From now on the pattern's events go to the outbox as the bytes of its group, and no longer to the member."""
        channel = self._routes.get(pattern)
        assert channel is not None, "join first"
        group = channel.groups.join(selection, json_id)
        group.flush()
        channel.members.pop(member, None)
        group.outboxes[outbox] = member
        return group

    def unshare(self, pattern: Pattern, member: Member, outbox: SocketOutbox, group: Group[Member]) -> None:
        """The reverse of `share`: the member gets single events again."""
        channel = self._routes.get(pattern)
        assert channel is not None, "share first"
        group.flush()
        del group.outboxes[outbox]
        if not group.outboxes:
            channel.groups.leave(group)
        channel.members[member] = None

    def hand_out(self, event: StreamEvent, original: StreamEvent | None) -> None:
        """Give the event to everybody who wants its subject; a copy, which has its `original`, not to those who got that."""
        touched: dict[Member, None] = {}
        for channel in self._routes.match(event.subject):
            if original is not None and channel.pattern.matches(original.subject):
                continue
            for group in channel.groups.wanting(event):
                self._share_out(group, event)
            for member in channel.members:
                if member.collect(event, channel.pattern):
                    touched[member] = None
        for member in touched:
            member.deliver(event)
        if self._dirty and not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Hand out what waits for the end of this turn of the loop."""
        self._flush_scheduled = False
        dirty, self._dirty = self._dirty, {}
        for group in dirty:
            group.flush()

    def reset(self, position: Position, reason: Reason) -> None:
        """Tell everybody that events before the position are missing."""
        self.flush()
        for channel in self._routes.values():
            for member in channel.everybody():
                member.reset(channel.pattern, position, reason)

    def _share_out(self, group: Group[Member], event: StreamEvent) -> None:
        framed = group.frame(event)
        if isinstance(framed, bytes):
            self._metrics.frames.inc(len(group.outboxes))
            if group.add(framed):
                self._dirty[group] = None
        elif framed is not None:
            group.flush()
            for sharer in tuple(group.outboxes.values()):
                sharer.withheld(event)
