"""`/sse`: the same subscriptions as named server-sent events, resumed by `Last-Event-ID`."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tocsin_gateway import protocol
from tocsin_gateway.admission.access import seconds_left
from tocsin_gateway.admission.census import Visit
from tocsin_gateway.admission.credentials import Credentials, client_address, presented
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.delivery.outbox import QueueOutbox
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import EVICT_SECONDS
from tocsin_gateway.protocol import Close, ProtocolError
from tocsin_gateway.server import ABORT
from tocsin_gateway.sessions.session import Session

WRITE_BYTES: Final = 64 << 10
KEEP_ALIVE_SECONDS: Final = 15.0
_HEADERS: Final = {b"content-type": b"text/event-stream; charset=utf-8", b"cache-control": b"no-store", b"x-accel-buffering": b"no"}
_STATUS: Final = {"unauthenticated": 401, "forbidden": 403, "limit": 429, "unavailable": 503}
_OP: Final = re.compile(rb'"op":"([a-z-]+)"')
_POSITION: Final = re.compile(rb'"position":"([^"]+)"')


class EventOutbox:
    """Named events in a queue. While several subscriptions replay, events carry no id: a resume from one would skip the other's.

    Before a snapshot's end neither: a resume would skip the rest of its rows. `resumes_behind_rows`: from then on they do.
    """

    def __init__(self, limit: int, gateway: Gateway) -> None:
        self.queue = QueueOutbox(limit, gateway.metrics.evictions.inc)
        self.may_resume = False
        self.resumes_behind_rows = False

    def send(self, payload: bytes) -> None:
        # What stands in the event itself is its writer's: another client's, on `live` subjects. It must not become the id that a browser comes back with.
        own = payload.find(b',"event":')
        name, place = _OP.search(payload), _POSITION.search(payload, 0, own if own >= 0 else len(payload))
        if b"\n" in payload or b"\r" in payload:
            # White space between JSON's tokens, as a column of type json may hold it; here it would end the line.
            payload = payload.replace(b"\r", b" ").replace(b"\n", b" ")
        if name is not None and name[1] == b"snapshot-end" and self.resumes_behind_rows:
            self.may_resume = True
        lines = [b"event: " + (name[1] if name else b"message")]
        if place is not None and self.may_resume and name is not None and name[1] != b"row":
            lines.append(b"id: " + place[1])
        self.queue.send(b"\n".join((*lines, b"data: " + payload, b"", b"")))
        if name is not None and name[1] == b"error":
            # An event stream can't ask again; its client comes back by itself.
            self.queue.close(Close.RESTARTING, "a subscription failed")

    def send_event(self, event: StreamEvent) -> None:
        self.send(event.payload)

    def close(self, code: int, reason: str) -> None:
        self.queue.close(code, reason)

    async def drained(self) -> None:
        await self.queue.drained()


class EventStream(Response):
    """The response of one client; lasts until it goes away, its token expires, or it is too slow."""

    def __init__(self, gateway: Gateway, request: Request) -> None:
        super().__init__(media_type="text/event-stream")
        self._gateway = gateway
        self._request = request
        self._cross_origin = gateway.cross_origin(request.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._gateway.stopping:
            await Response("this gateway stops: come again", 503, {"retry-after": "1", **self._cross_origin})(scope, receive, send)
            return
        try:
            visit = self._gateway.census.enter(client_address(self._request))
        except ProtocolError as problem:
            await self._refuse(problem)(scope, receive, send)
            return
        try:
            await self._stream(visit, scope, receive, send)
        finally:
            visit.leave()

    async def _stream(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        outbox = EventOutbox(self._gateway.limits.outbox_bytes, self._gateway)
        async with asyncio.TaskGroup() as tasks:
            session = self._gateway.open("sse", outbox, tasks)
            watching = tasks.create_task(self._until_gone(receive, outbox))
            try:
                try:
                    expires = await self._subscribe(session, visit, outbox)
                except ProtocolError as problem:
                    await self._refuse(problem)(scope, receive, send)
                    return
                sending = tasks.create_task(self._send(session, outbox, expires, send))
                await outbox.queue.closed.wait()
                await asyncio.wait((sending,), timeout=EVICT_SECONDS)
                if not sending.done() and (abort := (scope.get("extensions") or {}).get(ABORT)) is not None:
                    abort()
                sending.cancel()
            finally:
                watching.cancel()
                self._gateway.close(session)

    def _refuse(self, problem: ProtocolError) -> JSONResponse:
        self._gateway.metrics.errors.labels(problem.code).inc()
        # A page that may not connect may read that, and what would let it in: to be told nothing is what costs its author an hour.
        headers = {"access-control-allow-origin": "*", **self._cross_origin, **({"retry-after": "1"} if problem.code in ("unavailable", "limit") else {})}
        return JSONResponse({"code": problem.code, "message": str(problem)}, _STATUS.get(problem.code, 400), headers)

    async def _subscribe(self, session: Session, visit: Visit, outbox: EventOutbox) -> float | None:
        request = self._request
        self._gateway.check_page(request.headers)
        credentials = presented(request)
        if credentials != Credentials() and self._gateway.access.needs_token:
            grant = (await self._gateway.verified(credentials)).grant
            visit.belongs_to(grant.user)
            session.grant = grant
        subjects = request.query_params.getlist("subject")
        if not subjects:
            raise ProtocolError("bad-subject", "the query has no subject; for example /sse?subject=pg.shop.change.>")
        query = request.query_params
        since = request.headers.get("last-event-id") or query.get("since", "now")
        outbox.may_resume = len(subjects) == 1 and since != "snapshot"
        outbox.resumes_behind_rows = len(subjects) == 1
        for number, subject in enumerate(subjects):
            asked = protocol.from_query(str(number), subject, since, query.get("where"), query.getlist("select"), query.get("presence"))
            await self._gateway.watched.check(asked, session.grant)
            session.handle(asked)
        return None if session.grant is None else seconds_left(session.grant)

    async def _send(self, session: Session, outbox: EventOutbox, expires: float | None, send: Send) -> None:
        cross_origin = [(name.encode(), value.encode()) for name, value in self._cross_origin.items()]
        await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS.items(), *cross_origin]})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(expires):
                while True:
                    try:
                        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                            payload = await outbox.queue.take_waiting(WRITE_BYTES)
                    except TimeoutError:
                        payload = b": keep-alive\n\n"
                    if payload is None:
                        break
                    outbox.may_resume = outbox.may_resume or session.all_live
                    await send({"type": "http.response.body", "body": payload, "more_body": True})
        outbox.close(1000, "the token has expired")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_gone(self, receive: Receive, outbox: EventOutbox) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        outbox.close(1000, "gone")
