"""What the endpoints share: the hub, the limits, and the connected sessions."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers

from tocsin import broker
from tocsin.service import Readiness
from tocsin_gateway.access import Access, host_allowed, origin_allowed
from tocsin_gateway.hub import Hub
from tocsin_gateway.limits import DRAIN_GROUP, DRAIN_STEP_SECONDS, POSITION_SECONDS, Limits
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.outbox import Outbox
from tocsin_gateway.protocol import Close
from tocsin_gateway.session import Session


class Gateway:
    """One worker's gateway. `run` belongs into the service's TaskGroup.

    `trusts_names`: without a token, answer under every host name, not only under addresses, localhost and the allowed origins' hosts.
    """

    def __init__(self, link: broker.Link, stream: str, access: Access, limits: Limits, origins: tuple[str, ...], *, trusts_names: bool = False) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.hub = Hub(link, stream, self.metrics)
        self.access = access
        self.limits = limits
        self._origins = origins
        self._checks_host = not access.needs_token and not trusts_names
        self._link = link
        self._stream = stream
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
        session = Session(self.hub, self._link, self._stream, self.access, self.limits, self.metrics, outbox, tasks)
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
