"""uvicorn's protocols, with what a public gateway needs and ASGI has no words for.

* `FrameProtocol` offers the ASGI extension `tocsin.frames`: raw frames straight to the transport, its buffer's size, abort.
  It also bounds what a client can make us keep or do without sending a message: pings, empty fragments, and handshakes that are none.
* `DeadlineProtocol` closes a connection whose request does not arrive in time, whose answer is not taken, and one with too many requests
  behind the one that is answered; uvicorn alone waits for ever, and collects them without end. It offers the ASGI extension
  `tocsin.abort`, for a response that nobody reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame
from websockets.http11 import Request

from tocsin_gateway.delivery.outbox import EXTENSION, FORGET
from tocsin_gateway.limits import Limits, read_ahead
from tocsin_gateway.protocol import Close

ABORT: Final = "tocsin.abort"
_Message = TypeVar("_Message")
PINGS_PER_SECOND: Final = 100
PIPELINED: Final = 100
"""Requests of one connection that may wait behind the one that is answered."""
TAKEN_BYTES: Final = 64 << 10
"""So much of an answer has to be taken in `handshake_seconds`: what is left of it lies in our memory."""
_NO_HANDSHAKE: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Writer:
    """The extension's object for one connection: see outbox.FrameWriter."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: FrameProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        protocol = self._protocol
        if protocol.handshake_complete and not protocol.close_sent and not protocol.disconnected:
            protocol.transport.write(data)

    def buffered(self) -> int:
        return self._protocol.transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        protocol = self._protocol
        if not protocol.close_sent and not protocol.disconnected and not protocol.transport.is_closing():
            protocol.conn.send_close(code, reason)
            protocol.transport.write(b"".join(protocol.conn.data_to_send()))
            protocol.close_sent = True
        protocol.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def abort(self) -> None:
        if not self._protocol.disconnected:
            self._protocol.transport.abort()

    async def drained(self) -> None:
        """Returns once the transport asks for more, or is gone."""
        await self._protocol.writable.wait()


class _Mailbox(Generic[_Message]):
    """What FrameProtocol needs of an asyncio.Queue, for one reader, in a twentieth of its memory."""

    __slots__ = ("_loop", "_messages", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._messages: list[_Message] = []
        self._waiter: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        return not self._messages

    def put_nowait(self, message: _Message) -> None:
        self._messages.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> _Message:
        while not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._messages.pop(0)


class FrameProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with the extension."""

    read_ahead = read_ahead(Limits().outbox_bytes)
    _pings = 0
    _pings_since = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.queue: Any = _Mailbox(self.loop)

    def forget(self) -> None:
        """Nobody reads the handshake's headers any more. uvicorn, websockets and every coroutine above us keep the objects, so they are emptied."""
        scope: Any = self.scope
        scope["headers"].clear()
        scope["extensions"].clear()
        self.request.headers.clear()
        self.response.headers.clear()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:
            # The whole head was there, and websockets takes it for no handshake: it has a body, over 128 fields, or a line over 8 KiB. uvicorn says nothing.
            self.transport.write(b"".join(self.conn.data_to_send()) or _NO_HANDSHAKE)
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.transport.set_write_buffer_limits(high=self.read_ahead)
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = _Writer(self)
            extensions[FORGET] = self.forget

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # uvicorn takes an answer in place of a handshake for one that was forgotten, and logs an error.
            self.handshake_complete = True

    def handle_ping(self) -> None:
        super().handle_ping()
        now = self.loop.time()
        if now - self._pings_since > 1:
            self._pings, self._pings_since = 0, now
        self._pings += 1
        if self._pings > PINGS_PER_SECOND and not self.close_sent:
            self.on_limit("messages_per_second")
            _Writer(self).close(Close.OVER_LIMIT, f"more than {PINGS_PER_SECOND} pings a second")
            # Whoever floods us need not wait for what he does not read.
            self.loop.call_soon(self.transport.abort)

    def handle_cont(self, event: Frame) -> None:
        if event.data or event.fin:
            super().handle_cont(event)

    def on_limit(self, name: str) -> None:
        """What the client was over; see `protocols`."""

    def handle_parser_exception(self) -> None:
        if isinstance(self.conn.parser_exc, PayloadTooBig):
            self.on_limit("message_bytes")
        super().handle_parser_exception()


class DeadlineProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a deadline for the request's head, in seconds."""

    seconds = Limits().handshake_seconds
    header_bytes = Limits().header_bytes
    _deadline: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _head = 0

    def on_limit(self, name: str) -> None:
        """What the client was over; see `protocols`."""

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            # What comes in one read may be the body's already.
            read, self._head = self._head, self._head + len(data)
            if read > self.header_bytes:
                self.on_limit("header_bytes")
                self._end_deadline()
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_deadline()
        scope: Any = self.scope
        scope["extensions"] = {ABORT: self.transport.abort}

    def on_headers_complete(self) -> None:
        self._end_deadline()
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED and not self.transport.is_closing():
            self.on_limit("messages_per_second")
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        if self._reader is not None:
            self._reader.cancel()
        super().connection_lost(exc)

    def _watch_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        left = self.transport.get_write_buffer_size()
        self._reader = self.loop.call_later(self.seconds, self._look_at_reader, left) if left else None

    def _look_at_reader(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left and before - left < TAKEN_BYTES:
            self.on_limit("outbox_bytes")
            self.transport.abort()
        else:
            self._watch_reader()

    def _begin_deadline(self) -> None:
        if self._deadline is None:
            self._head = 0
            self._deadline = self.loop.call_later(self.seconds, self._too_late)

    def _too_late(self) -> None:
        self.on_limit("handshake_seconds")
        self.transport.abort()

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def protocols(limits: Limits, on_limit: Callable[[str], None]) -> tuple[type[DeadlineProtocol], type[FrameProtocol]]:
    """The protocols for HTTP and WebSockets with these limits; `on_limit` is called with the name of one that a client was over."""

    class Http(DeadlineProtocol):
        seconds = limits.handshake_seconds
        header_bytes = limits.header_bytes

        def on_limit(self, name: str) -> None:
            on_limit(name)

    class Socket(FrameProtocol):
        read_ahead = read_ahead(limits.outbox_bytes)

        def on_limit(self, name: str) -> None:
            on_limit(name)

    return Http, Socket
