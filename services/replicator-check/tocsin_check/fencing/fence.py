"""The fence: a row written on the source and awaited on the replica, and the wait until older transactions have ended."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.sql import load_queries

_SQL: Final = load_queries("tocsin_check", "sql/marker.sql")
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


class Lagging(Exception):  # noqa: N818  # a state of the replica, not a fault
    """The replica does not show the marker yet, `seconds` after it was written."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the replica has not applied what the source committed {seconds:.0f} s ago")
        self.seconds = seconds


class Unsettled(Exception):  # noqa: N818
    """Older transactions are still open; the message names them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A marker: its number, its transaction's id, and when it was written (time.monotonic)."""

    number: int
    xid: int
    written: float

    @property
    def age(self) -> float:
        return time.monotonic() - self.written


class Fence:
    """Markers under a key of this object's own, so that nothing but its own writes can ever satisfy it.

    `lag` is the time in seconds from an applied marker's commit until the replica showed it, at most: one that was there at the first look, some time
    after it was written, raises it no more. Markers may be written while others are awaited.
    """

    def __init__(self, marker: asyncpg.Connection, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
        self._marker = marker
        self._source = source
        self._replica = replica
        self._key = secrets.token_hex(8)
        self._writing = asyncio.Lock()
        self.lag: float | None = None

    async def mark(self) -> Mark:
        """Write the next marker; it is committed and flushed when this returns."""
        async with self._writing:
            row = await self._marker.fetchrow(_SQL["write"], self._key)
        assert row is not None
        return Mark(row["n"], row["xid"], time.monotonic())

    async def arrived(self, mark: Mark, patience: float) -> None:
        """Returns once the replica shows the marker. Raises Lagging after `patience` seconds."""
        pause = _FIRST_PAUSE
        while True:
            seen = await self._replica.fetchval(_SQL["read"], self._key)
            if seen is not None and seen >= mark.number:
                self.lag = mark.age if pause > _FIRST_PAUSE or self.lag is None else min(mark.age, self.lag)
                return
            if mark.age > patience:
                raise Lagging(mark.age)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    async def settled(self, mark: Mark, patience: float) -> None:
        """Returns once no transaction older than the marker's runs on the source. Raises Unsettled after `patience` seconds."""
        pause = _FIRST_PAUSE
        while await self._source.fetchval(_SQL["oldest_running"]) <= mark.xid:
            if mark.age > patience:
                blockers = [row["who"] for row in await self._source.fetch(_SQL["blockers"], mark.xid)]
                raise Unsettled("it can't be proven while a transaction on the source stays open: " + ("; ".join(blockers) or "of another user"))
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    async def position(self) -> str:
        """The end of the source's WAL: everything visible by now lies before it."""
        return str(await self._source.fetchval(_SQL["position"]))

    async def report(self, schema: str, table: str, data: str) -> bool:
        """Hand a finding (JSON text) to Tocsin's journal on the source; False where Tocsin is not installed there."""
        async with self._writing:
            if await self._marker.fetchval(_SQL["can_report"]) is None:
                return False
            await self._marker.execute(_SQL["report"], schema, table, data)
        return True

    async def forget(self) -> None:
        """Remove the row, and rows that dead checkers left behind."""
        with contextlib.suppress(asyncpg.PostgresError, *postgres.TRANSIENT):
            async with asyncio.timeout(2):
                await self._marker.execute(_SQL["forget"], self._key)
