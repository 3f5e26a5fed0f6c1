"""The doorbell: writers NOTIFY only while the listener sleeps.

The listener holds an exclusive advisory lock while it sleeps, and only then. A writer takes the same lock shared, without
waiting, to the end of its transaction, and rings where it can't. So whoever gets the exclusive lock sees in the next read
all that was written without a ring, and every later writer rings. See docs/guarantees.md.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

LOCK: Final = 8390040714906399854
"""Also in sql/capture.sql: the trigger takes it shared."""

CHANNEL: Final = "tocsin"
FALLBACK: Final = 1.0
STEADY: Final = 0.02
"""Seconds between reads where writers may not ring, since a transaction that rang can't be PREPAREd."""


@dataclass(slots=True)
class Counts:
    """What the bell did: `spared` counts the reads that found events no bell was needed for; `fallback_finds` must stay 0."""

    naps: int = 0
    bells: int = 0
    spared: int = 0
    fallback_finds: int = 0


class Doorbell:
    """One listener's bell on one connection, which does nothing else but read the journal.

    After a read that found nothing: `doze`; if it says True read once more, and if that found nothing too `wait`.
    Before reading after `wait`, and whenever something was found: `rise`. `allowed` is False where nobody may ring.
    """

    def __init__(self, connection: asyncpg.Connection, *, allowed: bool = True, counts: Counts | None = None, fallback: float = FALLBACK) -> None:
        self._connection = connection
        self._allowed = allowed
        self._fallback = fallback
        self._rung = asyncio.Event()
        self._asleep = False
        self._pause = 0.0
        self.counts = counts or Counts()

    async def listen(self) -> None:
        """LISTEN; read only after this, at every connect."""
        await self._connection.add_listener(CHANNEL, self._on_bell)
        self._connection.add_termination_listener(self._on_end)

    async def doze(self) -> bool:
        """Try to lie down: True with the lock held. False, after a pause, where a writer that did not ring is still open."""
        if self._asleep:
            return True
        if self._allowed:
            # Cleared before the lock is asked for: whoever rings from then on is heard.
            self._rung.clear()
            self._asleep = bool(await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK))
            if self._asleep:
                return True
            self._pause = min(0.05, self._pause * 1.5 or 0.001)
        else:
            self._pause = STEADY
        await asyncio.sleep(self._pause)
        return False

    async def wait(self) -> bool:
        """Sleep until the bell rings; False where it did not within the fallback's second."""
        self.counts.naps += 1
        try:
            async with asyncio.timeout(self._fallback):
                await self._rung.wait()
        except TimeoutError:
            return False
        self.counts.bells += 1
        return True

    async def rise(self) -> None:
        """Give the lock back, so that writers stop ringing."""
        self._pause = 0.0
        self._rung.clear()
        if self._asleep:
            self._asleep = False
            await self._connection.execute(f"SELECT pg_advisory_unlock({LOCK})")

    async def found_by_fallback(self) -> None:
        """Called for rows that a read after a silent `wait` found: counts them, unless their bell was only on its way."""
        try:
            async with asyncio.timeout(0.1):
                await self._rung.wait()
        except TimeoutError:
            self.counts.fallback_finds += 1

    def _on_bell(self, *_: Any) -> None:
        self._rung.set()

    def _on_end(self, _: Any) -> None:
        self._rung.set()
