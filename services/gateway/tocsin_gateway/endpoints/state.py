"""`GET /state`: the state of the stream, this gateway, and every listener, gateway and checker of the source.

The others are found by NATS's service protocol: each instance answers `$SRV.STATS` with its source and what it measured. Without the right
to ask, or while NATS is away, they are not known, and the answer says so. Asked at most every two seconds, however many pages are open.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tocsin import broker
from tocsin.errors import Unavailable
from tocsin.instances import instances
from tocsin.subject import Pattern, SubjectError, encode_token
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.endpoints.visitor import REFUSALS, refusal, visitor
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.protocol import ProtocolError

FRESH_SECONDS: Final = 2.0
KINDS: Final = {"tocsin-listener": "listener", "tocsin-gateway": "gateway", "tocsin-check": "checker"}


class State:
    """What `/state` answers; `read` shares one look among all who ask within FRESH_SECONDS."""

    def __init__(self, gateway: Gateway, link: broker.Link, stream: str, prefix: str, source: str) -> None:
        self._gateway = gateway
        self._link = link
        self._stream = stream
        self._root = f"{prefix}.{encode_token(source)}"
        self._source = source
        self._looking = asyncio.Lock()
        self._seen: dict[str, Any] = {}
        self._seen_at = float("-inf")

    async def read(self) -> dict[str, Any]:
        """All of it, for somebody who may see everything. Raises nothing: what can't be asked is null or empty."""
        async with self._looking:
            if time.monotonic() - self._seen_at >= FRESH_SECONDS:
                parts, stream = await self._parts(), await self._of_stream()
                self._seen = {"source": self._source, "prefix": self._root, "stream": stream, "parts": parts}
                self._seen_at = time.monotonic()
        return {**self._seen, "gateway": {"ready": self._gateway.readiness().ready, **self._gateway.describe()}}

    def visible(self, state: dict[str, Any], grant: Grant) -> dict[str, Any]:
        """Without the tables whose drift the client may not hear of, and then without the findings, which name tables and slots too."""
        parts = []
        for part in state["parts"]:
            told = dict(part["measured"])
            if part["kind"] == "checker" and not self._sees(grant, f"{self._root}.drift.>"):
                told["tables"] = [table for table in told.get("tables", ()) if self._sees_table(grant, table["table"])]
                told.pop("findings", None)
            parts.append({**part, "measured": told})
        return {**state, "parts": parts}

    def _sees_table(self, grant: Grant, table: str) -> bool:
        """`table` is schema.table, unquoted: one with more dots is seen where it may be seen whichever of them ends the schema's name."""
        ends = [place for place, letter in enumerate(table) if letter == "."]
        subjects = [f"{self._root}.drift.{encode_token(table[:end])}.{encode_token(table[end + 1 :])}" for end in ends]
        return bool(subjects) and all(self._sees(grant, subject) for subject in subjects)

    @staticmethod
    def _sees(grant: Grant, subject: str) -> bool:
        try:
            grant.check(Pattern(subject), None)
        except (ProtocolError, SubjectError):
            return False
        return True

    async def _of_stream(self) -> dict[str, Any] | None:
        if not self._link.connected.is_set():
            return None
        try:
            found = await broker.stream_state(self._link.client, self._stream)
        except (Unavailable, broker.JetStreamError):
            return None
        if found is None:
            return None
        limits = {name: found.config.get(name) for name in ("max_age", "max_bytes", "num_replicas")}
        return {
            "name": found.name,
            "epoch": found.epoch,
            "first_sequence": found.first_sequence,
            "last_sequence": found.last_sequence,
            "messages": found.messages,
            "bytes": found.bytes,
            **limits,
        }

    async def _parts(self) -> list[dict[str, Any]]:
        if not self._link.connected.is_set():
            return []
        parts = [
            {"kind": KINDS[each.name], "id": each.id, "version": each.version, "started": each.started, "measured": each.measured}
            for each in await instances(self._link.client)
            if each.name in KINDS and each.source == self._source
        ]
        return sorted(parts, key=lambda part: (part["kind"], part["started"], part["id"]))


def state_route(gateway: Gateway, state: State) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get(
        "/state", summary="The state of stream, listeners, gateways and checker, as far as the token lets see it", response_class=Response, responses=REFUSALS
    )
    async def read(request: Request) -> Response:
        try:
            grant = await visitor(gateway, request)
        except ProtocolError as problem:
            return refusal(problem)
        return JSONResponse(state.visible(await state.read(), grant), headers={"cache-control": "no-store"})

    return router
