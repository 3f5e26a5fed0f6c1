"""The lag, measured by a marker every second, so that a long audit does not hide it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import asyncpg

from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.sides import Sides

PULSE: Final = 1.0


class Pulse:
    """`measured` is the last lag in seconds that any fence showed; `waiting_since` when the oldest marker that is still missing was written."""

    def __init__(self) -> None:
        self.measured: float | None = None
        self.waiting_since: float | None = None
        self._beat: float | None = None

    @property
    def lag(self) -> float | None:
        """Seconds: the age of the oldest marker that the replica does not show, else what the last one took."""
        if self.waiting_since is not None:
            return max(time.monotonic() - self.waiting_since, self.measured or 0.0)
        return self.measured

    @property
    def alive(self) -> bool:
        """Whether both servers have answered within the last 10 s."""
        return self._beat is not None and time.monotonic() - self._beat < 10

    def saw(self, lag: float | None) -> None:
        """An audit's own fence came through."""
        if self.waiting_since is None:
            self.measured = lag

    def lost(self) -> None:
        """The servers do not answer."""
        self.waiting_since = None

    async def run(self, sides: Sides) -> None:
        """Without end; the sessions must be nobody else's."""
        while True:
            await self._one(sides)
            await asyncio.sleep(PULSE)

    async def _one(self, sides: Sides) -> None:
        try:
            mark = await sides.fence.mark()
        except asyncpg.UndefinedTableError:
            self._beat = time.monotonic()  # no marker table yet; the report says what to do
            return
        self.waiting_since = self.waiting_since or mark.written
        while True:
            self._beat = time.monotonic()
            try:
                await sides.fence.arrived(mark, mark.age + PULSE)
            except Lagging:
                continue
            self.waiting_since, self.measured = None, sides.fence.lag
            return
