"""Which way of publishing is the faster one with this server, now: measured from its acknowledgements.

A pipelined message costs nats-server some 15 µs where it does not wait for the disk, and as much as the disk takes to flush where it does
(`sync_interval: always`). An atomic batch costs it a millisecond and more to open and close, whatever its size, and one flush. So single
messages win with the default, and batches with fsync; see docs/decisions/0100-single-messages-or-a-batch.md.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

FEW: Final = 8
"""So many messages are never worth a batch, and teach nothing: the way there and back is most of their time."""

LOOK_AGAIN: Final = 50
"""Batches after which one chunk goes as single messages, to see whether the server has changed."""

WEIGHT: Final = 0.2


class Pace:
    """Learns what a single message and what a batch cost, both on the same machine under the same load. In seconds."""

    def __init__(self) -> None:
        self._message: float | None = None
        self._batch: float | None = None
        self._idle_since = 0.0
        self._batches = 0

    def batch(self, count: int) -> bool:
        """Whether a chunk of `count` messages goes as an atomic batch."""
        if count <= FEW or self._message is None or count * self._message <= (self._batch or 0.002):
            return False
        self._batches += 1
        return self._batches % LOOK_AGAIN != 0

    def measure(self, acknowledged: asyncio.Future[Any], count: int, *, batch: bool) -> None:
        """Learn from a chunk of `count` messages that is being sent, once it is acknowledged."""
        clock = asyncio.get_running_loop().time
        sent = clock()

        def learn(future: asyncio.Future[Any]) -> None:
            if future.cancelled() or count <= FEW:
                return
            end = clock()
            # What stood before it in the pipe is not its own time.
            own = end - max(sent, self._idle_since)
            self._idle_since = end
            if batch:
                self._batch = _smooth(self._batch, own)
            else:
                self._message = _smooth(self._message, own / count)

        acknowledged.add_done_callback(learn)


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + WEIGHT * (now - before)
