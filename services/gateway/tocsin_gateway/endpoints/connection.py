"""`/ws`: one WebSocket, from the handshake to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from fastapi import WebSocket
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from tocsin_gateway import protocol
from tocsin_gateway.admission.access import Grant, seconds_left
from tocsin_gateway.admission.census import Visit
from tocsin_gateway.admission.credentials import CLOUDEVENTS, Credentials, chosen_protocol, client_address, presented
from tocsin_gateway.delivery.cloudevents import BareOutbox, unwrapped
from tocsin_gateway.delivery.outbox import EXTENSION, FORGET, Outbox, QueueOutbox, SocketOutbox
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import EVICT_SECONDS
from tocsin_gateway.protocol import Close, ProtocolError
from tocsin_gateway.sessions.session import Session

log = structlog.get_logger("tocsin.gateway")

_CLOSES: Final = {"unavailable": Close.RESTARTING, "limit": Close.OVER_LIMIT}


class Connection:
    """One client's socket; `serve` lasts as long as it does."""

    def __init__(self, gateway: Gateway, socket: WebSocket) -> None:
        self._gateway = gateway
        self._socket = socket
        self._timer: asyncio.TimerHandle | None = None
        self._allowance = float(gateway.limits.messages_per_second)
        self._refilled = time.monotonic()
        self._decode: Callable[[str], protocol.ClientMessage] = protocol.decode

    async def serve(self) -> None:
        headers = self._socket.headers
        if not self._gateway.welcomes(headers):
            log.info("a page may not connect; TOCSIN_ALLOWED_ORIGINS lists those that may", origin=headers.get("origin"), host=headers.get("host"))
            # Before accept, so that the handshake is answered with 403.
            await self._socket.close()
            return
        if self._gateway.stopping:
            await self._socket.send_denial_response(Response("this gateway stops: come again", 503, {"retry-after": "1"}))
            return
        try:
            visit = self._gateway.census.enter(client_address(self._socket))
        except ProtocolError as problem:
            await self._socket.send_denial_response(Response(str(problem), 503 if problem.code == "unavailable" else 429, {"retry-after": "5"}))
            return
        try:
            await self._welcomed(visit)
        finally:
            visit.leave()

    async def _welcomed(self, visit: Visit) -> None:
        spoken = chosen_protocol(self._socket)
        await self._socket.accept(spoken)
        async with asyncio.TaskGroup() as tasks:
            way_out, sending = self._outbox(tasks)
            outbox: Outbox = way_out
            if spoken == CLOUDEVENTS:
                outbox, self._decode = BareOutbox(way_out), lambda text: protocol.decode(unwrapped(text))
            session = self._gateway.open("websocket", outbox, tasks)
            try:
                outbox.send(protocol.welcome(self._gateway.limits, auth=self._gateway.access.needs_token))
                await self._begin(session, visit, outbox)
                self._forget()
                await self._receive(session, visit, outbox)
            except WebSocketDisconnect:
                pass
            finally:
                self._set_timer(None)
                self._gateway.close(session)
                if sending is not None:
                    await self._finish(sending, way_out)

    def _outbox(self, tasks: asyncio.TaskGroup) -> tuple[SocketOutbox | QueueOutbox, asyncio.Task[None] | None]:
        writer: Any = (self._socket.scope.get("extensions") or {}).get(EXTENSION)
        limit = self._gateway.limits.outbox_bytes
        if writer is not None:
            return SocketOutbox(writer, limit, self._gateway.metrics.evictions.inc), None
        outbox = QueueOutbox(limit, self._gateway.metrics.evictions.inc)
        return outbox, tasks.create_task(self._send_all(outbox))

    def _forget(self) -> None:
        """The handshake is over; an idle client should not cost its headers."""
        forget = (self._socket.scope.get("extensions") or {}).get(FORGET)
        if forget is not None:
            forget()

    async def _send_all(self, outbox: QueueOutbox) -> None:
        # Starlette raises RuntimeError for what is sent after the other end has closed.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while (payload := await outbox.take()) is not None:
                await self._socket.send_text(payload.decode())
            code, reason = outbox.closing or (1000, "")
            await self._socket.close(code, reason)

    async def _finish(self, sending: asyncio.Task[None], outbox: SocketOutbox | QueueOutbox) -> None:
        """Let the queue and the close frame out, if it was we who closed."""
        if isinstance(outbox, QueueOutbox) and outbox.closing is not None:
            await asyncio.wait((sending,), timeout=EVICT_SECONDS)
        sending.cancel()

    async def _begin(self, session: Session, visit: Visit, outbox: Outbox) -> None:
        """What the handshake already says: a token in its headers or a ticket, subjects in its query."""
        try:
            credentials = presented(self._socket)
            if credentials != Credentials() and self._gateway.access.needs_token:
                self._granted((await self._gateway.verified(credentials)).grant, session, visit, outbox)
            elif session.grant is None:
                self._set_timer(self._gateway.limits.auth_seconds, outbox, Close.AUTH_TIMEOUT, "no token came in time")
        except ProtocolError as problem:
            self._refuse(problem, outbox)
            return
        query = self._socket.query_params
        for number, subject in enumerate(query.getlist("subject")):
            try:
                request = protocol.from_query(
                    str(number), subject, query.get("since", "now"), query.get("where"), query.getlist("select"), query.get("presence")
                )
                await self._gateway.watched.check(request, session.grant)
                session.handle(request)
            except ProtocolError as problem:
                self._tell(problem, outbox)
                if problem.code == "unauthenticated":
                    outbox.close(Close.UNAUTHENTICATED, _close_reason(problem))
                    return

    async def _receive(self, session: Session, visit: Visit, outbox: Outbox) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                outbox.close(Close.BAD_MESSAGE, "messages are text frames with a JSON object")
                return
            if not self._within_rate():
                self._gateway.over_limit("messages_per_second")
                outbox.close(Close.OVER_LIMIT, f"more than {self._gateway.limits.messages_per_second} messages a second")
                return
            try:
                await self._handle(self._decode(text), session, visit, outbox)
            except ProtocolError as problem:
                self._tell(problem, outbox)

    async def _handle(self, message: protocol.ClientMessage, session: Session, visit: Visit, outbox: Outbox) -> None:
        if isinstance(message, protocol.Publish):
            await session.publish(message)
            return
        if isinstance(message, protocol.Subscribe):
            await self._gateway.watched.check(message, session.grant)
        if not isinstance(message, protocol.Auth):
            session.handle(message)
            return
        try:
            self._granted((await self._gateway.authenticate(message.token)).grant, session, visit, outbox)
        except ProtocolError as problem:
            self._refuse(problem, outbox)

    def _refuse(self, problem: ProtocolError, outbox: Outbox) -> None:
        self._tell(problem, outbox)
        outbox.close(_CLOSES.get(problem.code, Close.UNAUTHENTICATED), _close_reason(problem))

    def _granted(self, grant: Grant, session: Session, visit: Visit, outbox: Outbox) -> None:
        visit.belongs_to(grant.user)
        session.admit(grant)
        left = seconds_left(grant)
        self._set_timer(left, outbox, Close.UNAUTHENTICATED, "the token has expired")

    def _set_timer(self, seconds: float | None, outbox: Outbox | None = None, code: int = 0, reason: str = "") -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and outbox is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._time_is_up, outbox, code, reason)

    def _time_is_up(self, outbox: Outbox, code: int, reason: str) -> None:
        if code == Close.AUTH_TIMEOUT:
            self._gateway.over_limit("auth_seconds")
        outbox.close(code, reason)

    def _tell(self, problem: ProtocolError, outbox: Outbox) -> None:
        self._gateway.metrics.errors.labels(problem.code).inc()
        outbox.send(protocol.error(problem))

    def _within_rate(self) -> bool:
        rate = self._gateway.limits.messages_per_second
        now = time.monotonic()
        self._allowance = min(2.0 * rate, self._allowance + (now - self._refilled) * rate)
        self._refilled = now
        self._allowance -= 1
        return self._allowance >= 0


def _close_reason(problem: ProtocolError) -> str:
    """A close frame has room for 123 bytes."""
    return str(problem).encode()[:120].decode(errors="ignore")
