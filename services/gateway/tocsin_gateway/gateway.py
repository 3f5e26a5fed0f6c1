"""What the endpoints share: the hub, the limits, and the connected sessions."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers

from tocsin import broker
from tocsin.access import TokenRefused
from tocsin.errors import Unavailable
from tocsin.revocation import Revocations
from tocsin.service import Readiness
from tocsin_gateway.admission.access import Access, Grant, Verified, host_allowed, origin_allowed, seconds_left
from tocsin_gateway.admission.census import Census
from tocsin_gateway.admission.credentials import Credentials
from tocsin_gateway.admission.headcount import Headcount
from tocsin_gateway.admission.tickets import Tickets
from tocsin_gateway.delivery.outbox import Outbox
from tocsin_gateway.limits import DRAIN_GROUP, DRAIN_STEP_SECONDS, POSITION_SECONDS, Limits
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.presence.live import Live
from tocsin_gateway.protocol import Close, ProtocolError
from tocsin_gateway.sessions.hints import Hints
from tocsin_gateway.sessions.session import Session
from tocsin_gateway.source.snapshot import Snapshots
from tocsin_gateway.source.watched import Watched
from tocsin_gateway.stream.history import History
from tocsin_gateway.stream.hub import Hub


class Gateway:
    """One worker's gateway. `run` belongs into the service's TaskGroup.

    `trusts_names`: without a token, answer under every host name, not only under addresses, localhost and the allowed origins' hosts.
    """

    def __init__(
        self,
        link: broker.Link,
        stream: str,
        source: str,
        access: Access,
        limits: Limits,
        origins: tuple[str, ...],
        *,
        trusts_names: bool = False,
        replicas: int = 1,
        database_url: str | None = None,
        headcount: Headcount | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.hub = Hub(link, stream, self.metrics)
        self.access = access
        self.tickets = Tickets(link, stream, source, replicas=replicas)
        self.revocations = Revocations(link, stream, source, self._end_revoked, replicas=replicas)
        self.limits = limits
        self.live = Live(link, access.live, source)
        self.census = Census(limits, self.over_limit, headcount)
        self._origins = origins
        self._checks_host = not access.needs_token and not trusts_names
        self._link = link
        self._stream = stream
        self.history = History(link, stream, self.hub.page_turns)
        self.watched = Watched(database_url, source)
        self._hints = Hints(link, stream, self.watched)
        self._snapshots = Snapshots(database_url, stream, source)
        self._sessions: dict[Session, str] = {}
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether new clients are sent elsewhere."""
        return self._stopping

    def welcomes(self, headers: Headers) -> bool:
        """Whether the page that a request comes from, if any, may connect."""
        host = headers.get("host")
        return origin_allowed(headers.get("origin"), host, self._origins) and (not self._checks_host or host_allowed(host, self._origins))

    def check_page(self, headers: Headers) -> None:
        """Raises ProtocolError forbidden where the page that a request comes from may not connect."""
        if not self.welcomes(headers):
            origin = headers.get("origin") or f"http://{headers.get('host', 'no host')}"
            page = f"pages of {origin[:200]}" if origin != "null" else "pages without an origin, such as a file that a browser opens,"
            raise ProtocolError("forbidden", f"{page} may not connect; the gateway's setting TOCSIN_ALLOWED_ORIGINS lists the origins that may")

    def cross_origin(self, headers: Headers) -> dict[str, str]:
        """What a response says so that the browser lets a page of an allowed origin read it."""
        origin = headers.get("origin")
        return {"access-control-allow-origin": origin, "vary": "origin"} if origin is not None and self.welcomes(headers) else {}

    async def grant(self, credentials: Credentials) -> Grant | None:
        """What credentials give; without any, what anybody may, which is None where a token is needed. Raises ProtocolError."""
        if not self.access.needs_token or credentials == Credentials():
            return self.access.anonymous()
        verified = await self.verified(credentials)
        return verified.grant

    async def authenticate(self, token: str) -> Verified:
        """A token from a message, where none may be needed. Raises ProtocolError."""
        return await (self.verified(Credentials(token)) if self.access.needs_token else self.access.authenticate(token))

    async def verified(self, credentials: Credentials) -> Verified:
        """A token or a ticket that holds and was not revoked. Raises ProtocolError."""
        if credentials.token is not None:
            verified = await self.access.authenticate(credentials.token)
        elif credentials.ticket is not None:
            verified = self.access.granted(await self.tickets.redeem(credentials.ticket))
        else:
            raise ProtocolError("unauthenticated", "a token is needed: Authorization: Bearer …")
        await self.still_holds(verified.grant)
        return verified

    async def still_holds(self, grant: Grant) -> None:
        """Raises ProtocolError where what was granted has expired, or was revoked."""
        if seconds_left(grant) == 0:
            raise ProtocolError("unauthenticated", "the token has expired")
        if self.access.needs_token:
            try:
                await self.revocations.check(grant)
            except TokenRefused as refused:
                raise ProtocolError("unauthenticated", str(refused)) from None
            except Unavailable as error:
                raise ProtocolError("unavailable", str(error)) from None

    def over_limit(self, name: str) -> None:
        self.metrics.refused.labels(name).inc()

    def _end_revoked(self) -> None:
        for session in tuple(self._sessions):
            if session.grant is not None and self.revocations.holds(session.grant):
                session.close(Close.UNAUTHENTICATED, "the token was revoked")

    async def drain(self, seconds: float) -> None:
        """The process stops: close every client with 1012, in groups over at most `seconds`, so that they don't all come back elsewhere at once.

        New ones are refused meanwhile. Few clients are one group.
        """
        self._stopping = True
        sessions = tuple(self._sessions)
        step = max(DRAIN_GROUP, math.ceil(len(sessions) * DRAIN_STEP_SECONDS / seconds) if seconds else len(sessions))
        for first in range(0, len(sessions), step):
            if first:
                await asyncio.sleep(DRAIN_STEP_SECONDS)
            for session in sessions[first : first + step]:
                if session in self._sessions:
                    session.close(Close.RESTARTING, "restarting: come back with your position")

    def open(self, kind: str, outbox: Outbox, tasks: asyncio.TaskGroup) -> Session:
        """A session of a connection; `kind` is websocket or sse."""
        session = Session(
            self.hub,
            self._link,
            self._stream,
            self.access,
            self.limits,
            self.metrics,
            outbox,
            tasks,
            snapshots=self._snapshots,
            hints=self._hints,
            live=self.live,
        )
        self._sessions[session] = kind
        self.metrics.clients.labels(kind).inc()
        return session

    def close(self, session: Session) -> None:
        session.end()
        self.metrics.clients.labels(self._sessions.pop(session)).dec()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.hub.run())
            group.create_task(self._tell_positions())
            group.create_task(self.live.run())
            if self.access.needs_token:
                group.create_task(self.revocations.run())

    def readiness(self) -> Readiness:
        return Readiness(self.hub.ready and not self._stopping, self.describe())

    def describe(self) -> dict[str, Any]:
        state = self.hub.state
        return {
            "nats": self._link.connected.is_set(),
            "stream": self._stream,
            "epoch": self.hub.epoch or None,
            "head": self.hub.head,
            "last_sequence": None if state is None else state.last_sequence,
            "clients": len(self._sessions),
            **({"stopping": True} if self._stopping else {}),
            "subscriptions": sum(session.subscriptions for session in self._sessions),
        }

    async def status(self) -> bytes:
        """For NATS's service protocol."""
        return msgspec.json.encode({"ready": self.hub.ready, **self.describe()})

    async def _tell_positions(self) -> None:
        while True:
            await asyncio.sleep(POSITION_SECONDS)
            for number, session in enumerate(tuple(self._sessions)):
                session.send_positions()
                if number % 200 == 199:
                    await asyncio.sleep(0)
