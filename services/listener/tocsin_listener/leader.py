"""Who writes the stream: the holder of an advisory lock, on a session that PostgreSQL ends when the process stops beating."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import asyncpg

from tocsin.errors import Unavailable

LOCK: Final = 8390040714906399855
BEAT: Final = 1.0
PATIENCE: Final = 2.5
"""A leader that could not beat for this long no longer writes; PostgreSQL ends its session after IDLE_TIMEOUT."""
IDLE_TIMEOUT: Final = "3s"


class Deposed(Unavailable):
    """The session that held the lead is gone, or no longer answers."""


class Lead:
    """The lead, once `try_acquire` says True. Everything that the leader writes to the database goes through here, one statement
    at a time, so that it needs the very session that holds the lead.
    """

    def __init__(self, session: asyncpg.Connection) -> None:
        self._session = session
        self._turn = asyncio.Lock()
        self._beaten = 0.0

    async def try_acquire(self) -> bool:
        await self.execute(f"SET idle_session_timeout = '{IDLE_TIMEOUT}'; SET synchronous_commit = on")
        begun = time.monotonic()
        held = bool(await self.fetchval("SELECT pg_try_advisory_lock($1)", LOCK))
        if held:
            self._beaten = begun
        return held

    def check(self) -> None:
        """Raises Deposed where the session may have been ended; called before everything that is written to the stream."""
        if self._session.is_closed() or time.monotonic() - self._beaten > PATIENCE:
            raise Deposed("the leading session did not beat in time")

    async def beat(self) -> None:
        """Keep the session alive for ever; raises Deposed when that fails."""
        while True:
            await asyncio.sleep(BEAT)
            begun = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.fetchval("SELECT 1")
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                raise Deposed(f"the leading session is lost: {error}") from error
            self._beaten = begun

    async def execute(self, query: str, *arguments: Any) -> None:
        async with self._turn:
            await self._session.execute(query, *arguments)

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self._turn:
            found: list[asyncpg.Record] = await self._session.fetch(query, *arguments)
            return found

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        rows = await self.fetch(query, *arguments)
        return rows[0][0] if rows else None
