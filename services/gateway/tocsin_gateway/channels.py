"""Who wants which pattern, and what waits to be written to them."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from tocsin.position import Position
from tocsin.subject import Pattern
from tocsin_gateway.frames import StreamEvent
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.outbox import SocketOutbox
from tocsin_gateway.protocol import Reason
from tocsin_gateway.routes import Routes

FLUSH_BYTES: Final = 64 << 10


class Member(Protocol):
    """A session that wants single events."""

    def collect(self, event: StreamEvent, pattern: Pattern) -> bool: ...
    def deliver(self, event: StreamEvent) -> None: ...
    def reset(self, pattern: Pattern, position: Position, reason: Reason) -> None: ...


class Channel:
    """One pattern. `shared` clients get the same bytes in one write; `members` are asked event by event."""

    __slots__ = ("members", "pattern", "pending", "pending_bytes", "shared")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.shared: dict[SocketOutbox, Member] = {}
        self.members: dict[Member, None] = {}
        self.pending: list[bytes] = []
        self.pending_bytes = 0

    def flush(self) -> None:
        if self.pending:
            data = b"".join(self.pending)
            self.pending.clear()
            self.pending_bytes = 0
            for outbox in tuple(self.shared):
                outbox.write(data)


class Channels:
    """Every pattern that somebody wants. `changed` is set when one comes or goes; whoever follows it clears it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._routes: Routes[Channel] = Routes()
        self._flush_scheduled = False
        self._dirty: dict[Channel, None] = {}
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
            if not channel.shared and not channel.members:
                self._dirty.pop(channel, None)
                self._routes.remove(pattern)
                self.changed = True

    def share(self, pattern: Pattern, member: Member, outbox: SocketOutbox) -> None:
        """From now on the pattern's events go to the outbox as shared bytes, and no longer to the member."""
        channel = self._routes.get(pattern)
        assert channel is not None, "join first"
        channel.flush()
        channel.members.pop(member, None)
        channel.shared[outbox] = member

    def unshare(self, pattern: Pattern, outbox: SocketOutbox) -> None:
        """The reverse of `share`: the member gets single events again."""
        channel = self._routes.get(pattern)
        assert channel is not None, "share first"
        channel.flush()
        channel.members[channel.shared.pop(outbox)] = None

    def hand_out(self, event: StreamEvent, original: StreamEvent | None) -> None:
        """Give the event to everybody who wants its subject; a copy, which has its `original`, not to those who got that."""
        touched: dict[Member, None] = {}
        for channel in self._routes.match(event.subject):
            if original is not None and channel.pattern.matches(original.subject):
                continue
            if channel.shared:
                self._share_out(channel, event)
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
        for channel in dirty:
            channel.flush()

    def reset(self, position: Position, reason: Reason) -> None:
        """Tell everybody that events before the position are missing."""
        self.flush()
        for channel in self._routes.values():
            for member in (*channel.shared.values(), *channel.members):
                member.reset(channel.pattern, position, reason)

    def _share_out(self, channel: Channel, event: StreamEvent) -> None:
        channel.pending.append(event.framed)
        channel.pending_bytes += len(event.framed)
        self._metrics.frames.inc(len(channel.shared))
        if channel.pending_bytes > FLUSH_BYTES:
            channel.flush()
        else:
            self._dirty[channel] = None
