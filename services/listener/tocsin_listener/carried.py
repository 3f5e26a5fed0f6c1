"""NOTIFYs of existing channels, on their way into the journal: at most once until they are there, and told where they were dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, NamedTuple

from tocsin_listener.leader import Lead
from tocsin_listener.meters import Meters

AT_ONCE: Final = 1000
MOST: Final = 100_000
MOST_BYTES: Final = 64 << 20

_WRITE: Final = "SELECT count(tocsin.carry(channel, payload, pid)) FROM unnest($1::text[], $2::text[], $3::int[]) AS n (channel, payload, pid)"


class Notified(NamedTuple):
    """One NOTIFY as it was received."""

    channel: str
    payload: str
    pid: int


class Carried:
    """Bounded: where they come faster than the journal takes them, the oldest are dropped, and counted in the meters."""

    def __init__(self, meters: Meters, *, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._meters = meters
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: deque[Notified] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()

    def on_notify(self, _: Any, pid: int, channel: str, payload: object) -> None:
        """asyncpg's callback."""
        notified = Notified(channel, str(payload), pid)
        self._waiting.append(notified)
        self._bytes += len(notified.payload)
        while len(self._waiting) > self._most or self._bytes > self._most_bytes:
            self._bytes -= len(self._waiting.popleft().payload)
            self._meters.carried_dropped.inc()
        self._meters.carried_waiting.set(len(self._waiting))
        self._arrived.set()

    async def write(self, lead: Lead) -> None:
        """Into the journal, as they come, for ever."""
        while await self._arrived.wait():
            self._arrived.clear()
            while self._waiting:
                # Taken before they are written: where the session breaks they may be lost, and are never told twice.
                some = [self._waiting.popleft() for _ in range(min(len(self._waiting), AT_ONCE))]
                self._bytes -= sum(len(notified.payload) for notified in some)
                await lead.fetch(_WRITE, *map(list, zip(*some, strict=True)))
                self._meters.carried.inc(len(some))
                self._meters.carried_waiting.set(len(self._waiting))
