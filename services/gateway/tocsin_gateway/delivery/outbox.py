"""One client's way out: what waits is bounded in bytes, and a client that is slower than that is evicted.

`SocketOutbox` writes ready frames to the transport through the extension of our server (see server.py), many frames in one
write for each turn of the event loop. `QueueOutbox` serves any other server, and server-sent events, by a queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from tocsin_gateway.delivery.frames import StreamEvent, frame
from tocsin_gateway.limits import EVICT_SECONDS, read_ahead
from tocsin_gateway.protocol import Close

EXTENSION: Final = "tocsin.frames"
FORGET: Final = "tocsin.forget"
"""The server's extension that frees what only the handshake needed."""


class FrameWriter(Protocol):
    """The server's extension: raw frames straight to the transport."""

    def write(self, data: bytes) -> None: ...
    def buffered(self) -> int: ...
    def close(self, code: int, reason: str) -> None: ...
    def abort(self) -> None: ...
    async def drained(self) -> None: ...


class Outbox(Protocol):
    """`send` takes one JSON message, `send_event` an event; both return at once. `drained` returns once the client has taken most of what was sent."""

    def send(self, payload: bytes) -> None: ...
    def send_event(self, event: StreamEvent) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    async def drained(self) -> None: ...


class SocketOutbox:
    """Frames to a transport. `on_evict` is called once, when the client was found too slow."""

    def __init__(self, writer: FrameWriter, limit: int, on_evict: Callable[[], None]) -> None:
        self._writer = writer
        self._limit = limit
        self._on_evict = on_evict
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.closed = False

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._pending_bytes + self._writer.buffered()

    def send(self, payload: bytes) -> None:
        self._add(frame(payload))

    def send_event(self, event: StreamEvent) -> None:
        self._add(event.framed)

    def write(self, frames: bytes) -> None:
        """Ready frames, now; what was sent before goes first."""
        if self.closed:
            return
        if self._pending:
            self.flush()
        self._writer.write(frames)
        if self._writer.buffered() > self._limit:
            self._evict()

    def flush(self) -> None:
        if self._pending and not self.closed:
            data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            self._writer.write(data)
            if self._writer.buffered() > self._limit:
                self._evict()

    def close(self, code: int, reason: str) -> None:
        if not self.closed:
            self.flush()
            self.closed = True
            self._writer.close(code, reason)
            self._loop.call_later(EVICT_SECONDS, self._writer.abort)

    async def drained(self) -> None:
        if self.waiting > read_ahead(self._limit):
            self.flush()
            await self._writer.drained()

    def _add(self, data: bytes) -> None:
        if self.closed:
            return
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > self._limit:
            self.flush()

    def _evict(self) -> None:
        if not self.closed:
            self.closed = True
            self._pending.clear()
            self._pending_bytes = 0
            self._writer.close(Close.TOO_SLOW, "too slow: come back with your position")
            self._loop.call_later(EVICT_SECONDS, self._writer.abort)
            self._on_evict()


class QueueOutbox:
    """JSON messages in a queue that somebody drains with `take`."""

    def __init__(self, limit: int, on_evict: Callable[[], None]) -> None:
        self._limit = limit
        self._on_evict = on_evict
        self._queue: deque[bytes] = deque()
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()
        self.waiting = 0
        self.closing: tuple[int, str] | None = None
        self.closed = asyncio.Event()

    def send(self, payload: bytes) -> None:
        if self.closing is not None:
            return
        self._queue.append(payload)
        self.waiting += len(payload)
        self._filled.set()
        if self.waiting > self._limit:
            self._queue.clear()
            self.waiting = 0
            self.close(Close.TOO_SLOW, "too slow: come back with your position")
            self._on_evict()

    def send_event(self, event: StreamEvent) -> None:
        self.send(event.payload)

    def close(self, code: int, reason: str) -> None:
        self.closing = self.closing or (code, reason)
        self.closed.set()
        self._filled.set()
        self._taken.set()

    async def drained(self) -> None:
        if self.waiting > read_ahead(self._limit) and self.closing is None:
            self._taken.clear()
            await self._taken.wait()

    async def take(self) -> bytes | None:
        """The next message, or None once the outbox was closed and is empty."""
        while not self._queue:
            if self.closing is not None:
                return None
            self._filled.clear()
            await self._filled.wait()
        payload = self._queue.popleft()
        self._give(len(payload))
        return payload

    async def take_waiting(self, most: int) -> bytes | None:
        """The next message with those that wait behind it, as long as there are fewer than `most` bytes before one."""
        payload = await self.take()
        if payload is None or not self._queue:
            return payload
        together, size = [payload], len(payload)
        while self._queue and size < most:
            together.append(self._queue.popleft())
            size += len(together[-1])
        self._give(size - len(payload))
        return b"".join(together)

    def _give(self, size: int) -> None:
        self.waiting -= size
        if self.waiting <= read_ahead(self._limit) // 4:
            self._taken.set()
