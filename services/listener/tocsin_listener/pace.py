"""Which way of publishing is the faster one with this server, now: measured from its acknowledgements.

A pipelined message costs nats-server some 15 µs where it does not wait for the disk, and as much as the disk takes to flush where it does
(`sync_interval: always`). An atomic batch costs it a millisecond and more to open and close, whatever its size, and one flush. So single
messages win with the default, and batches with fsync; see docs/decisions/0100-single-messages-or-a-batch.md.
"""

from __future__ import annotations

import asyncio
from typing import Final

FEW: Final = 20
"""So many messages are never worth a batch: their flushes cost no more than it does."""

SLOW: Final = 80e-6
"""Seconds a message, above which large chunks go as batches."""

LOOK_AGAIN: Final = 200
"""Batches after which one chunk goes as single messages, to see whether the server has changed."""

WEIGHT: Final = 0.2


class Pace:
    """Learns what a single message costs; `now` is a monotonic clock in seconds."""

    def __init__(self) -> None:
        self._cost: float | None = None
        self._idle_since = 0.0
        self._batches = 0

    def batch(self, count: int) -> bool:
        """Whether a chunk of `count` messages goes as an atomic batch."""
        if count <= FEW or self._cost is None or self._cost <= SLOW:
            return False
        self._batches += 1
        return self._batches % LOOK_AGAIN != 0

    def measure(self, acknowledged: asyncio.Future[object], count: int, now: float) -> None:
        """Learn from a chunk of `count` single messages sent at `now`, once its last is acknowledged."""
        clock = asyncio.get_running_loop().time

        def learn(future: asyncio.Future[object]) -> None:
            if future.cancelled():
                return
            end = clock()
            # What stood before it in the pipe is not its own time.
            own = (end - max(now, self._idle_since)) / count
            self._idle_since = end
            if count > FEW:
                self._cost = own if self._cost is None else self._cost + WEIGHT * (own - self._cost)

        acknowledged.add_done_callback(learn)
