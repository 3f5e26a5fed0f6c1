"""`GET /why`: why a client did not get an event, as far as stream and token can say; the steps in the order in which an event takes them.

What lies before the stream (trigger, journal, cursor) only the source database knows: `tocsin why TABLE KEY` asks it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import nats.errors
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from tocsin import broker
from tocsin.errors import Unavailable
from tocsin.position import Position, PositionError
from tocsin.subject import Pattern, SubjectError
from tocsin_gateway.endpoints.visitor import REFUSALS, refusal, visitor
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.protocol import ProtocolError
from tocsin_gateway.rows.visibility import Visibility
from tocsin_gateway.stream.replay import Hole, Pages, present

LOOKED_AT: Final = 2000
"""The newest messages of a subject that are searched for a key."""

SEARCHES: Final = 2
PATIENCE: Final = 5.0
"""So many searches at once, each for so long, its turn included: what they read comes by the connection on which the live events come."""


class Why:
    """Answers from one gateway's view. A step is (name, ok true, false or null for not known, what was found)."""

    def __init__(self, gateway: Gateway, link: broker.Link, stream: str, root: str) -> None:
        self._gateway = gateway
        self._link = link
        self._stream = stream
        self._root = root
        self._turns = asyncio.Semaphore(SEARCHES)

    async def explain(self, request: Request, subject: str, key: str | None, since: str | None) -> dict[str, Any]:
        """Raises ProtocolError where the question itself is refused."""
        grant = await visitor(self._gateway, request)
        steps: list[dict[str, Any]] = []
        answer: dict[str, Any] = {"steps": steps, "event": None}
        try:
            pattern = Pattern(subject)
        except SubjectError as error:
            steps.append(_step("subject", False, str(error)))
            return answer
        steps.append(_step("subject", True, f"{subject} is a well formed pattern"))
        try:
            grant.check(pattern, None)
        except ProtocolError as problem:
            steps.append(_step("token", False, str(problem)))
            return answer
        if getattr(grant, "visibility", Visibility.all()) != Visibility.all():
            # Else the answer would tell of rows that the client may not see.
            steps.append(_step("token", None, "your token shows only some rows or columns, so the stream is not searched for you; ask whoever issued it"))
            return answer
        steps.append(_step("token", True, "you may subscribe to all of it"))
        if not Pattern(f"{self._root}.>").overlaps(pattern):
            steps.append(_step("stream", False, f"this gateway's stream carries {self._root}.>, and nothing of it belongs to {subject}"))
            return answer
        if pattern.tokens[2:3] == ("live",):
            steps.append(_step("stream", None, "live subjects are ephemeral: who was not connected in that moment does not get them"))
            return answer
        try:
            found = await self._in_stream(pattern, key, steps)
            answer["event"] = None if found is None else found.told(self._gateway.hub.epoch)
            if since:
                self._against(since, found, steps)
        except (Unavailable, broker.JetStreamError, nats.errors.Error) as error:
            steps.append(_step("stream", False, f"the stream can't be asked at the moment: {error}"))
        return answer

    async def _in_stream(self, pattern: Pattern, key: str | None, steps: list[dict[str, Any]]) -> _Found | None:
        last = await self._last(pattern)
        if last is None:
            fix = "it never got so far, or the stream's limits took it; on the source, ask: tocsin why TABLE KEY"
            steps.append(_step("stream", False, f"the stream holds no event of {pattern.text}: {fix}"))
            return None
        told = f"the last event of {pattern.text} in the stream is {last.position(self._gateway.hub.epoch)} ({last.title})"
        if key is None:
            steps.append(_step("stream", True, told))
            return last
        try:
            found = last if last.key == key else await self._newest(pattern, key, last.sequence)
        except (TimeoutError, Hole):
            steps.append(_step("stream", None, f"{told}; whether one before it has the key {key} was not found out within {PATIENCE:.0f} s: ask again"))
            return None
        if found is None:
            fix = f"on the source, ask: tocsin why TABLE {key}"
            steps.append(_step("stream", False, f"{told}; none of the {LOOKED_AT} messages up to it has the key {key}; {fix}"))
        else:
            place = found.position(self._gateway.hub.epoch)
            steps.append(_step("stream", True, f"the last event with the key {key} in the stream is {place} ({found.title})"))
        return found

    async def _last(self, pattern: Pattern) -> _Found | None:
        message = await broker.stored_message(self._link.client, self._stream, last_by_subj=pattern.text)
        return None if message is None else _Found(message.sequence, message.subject, message.data)

    async def _newest(self, pattern: Pattern, key: str, last: int) -> _Found | None:
        """The newest event with the key among the LOOKED_AT messages that end with `last`. Raises TimeoutError, Hole, Unavailable, JetStreamError."""
        found = None
        async with asyncio.timeout(PATIENCE), self._turns:
            state = await present(self._link, self._stream)
            after = max(state.first_sequence - 1, last - LOOKED_AT, 0)
            pages = Pages(self._link, self._stream, self._gateway.hub.page_turns, pattern, state.epoch or "", after)
            try:
                left = 1
                while left and pages.after < last:
                    events, left = await pages.next()
                    each = (_Found(event.sequence, event.subject, event.body) for event in reversed(events))
                    found = next((newer for newer in each if newer.key == key), found)
            finally:
                await pages.close()
        return found

    def _against(self, since: str, event: _Found | None, steps: list[dict[str, Any]]) -> None:
        try:
            asked = Position.parse(since)
        except PositionError as error:
            steps.append(_step("position", False, str(error)))
            return
        if asked.epoch != self._gateway.hub.epoch:
            steps.append(_step("position", False, f"{since} is of another epoch: the stream was made anew, and a resume is answered with recovered: false"))
        elif event is None:
            steps.append(_step("position", None, "there is no event to compare it with"))
        elif asked.sequence >= event.sequence:
            steps.append(_step("position", False, f"{since} is not before it: who resumes there has had it, and it is not sent again"))
        else:
            steps.append(_step("position", True, f"{since} is before it: who resumes there gets it"))


class _Found(msgspec.Struct, frozen=True):
    """A message of the stream, as far as the answer needs it."""

    sequence: int
    subject: str
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        try:
            decoded = msgspec.json.decode(self.body)
        except msgspec.MsgspecError:
            return {}
        return decoded if isinstance(decoded, dict) else {}

    @property
    def key(self) -> str | None:
        return self.event.get("subject")

    @property
    def title(self) -> str:
        return f"{self.event.get('type')}, {self.event.get('time')}"

    def position(self, epoch: str) -> str:
        return f"{epoch}-{self.sequence}"

    def told(self, epoch: str) -> dict[str, Any]:
        """What the answer says of it: no values."""
        return {"subject": self.subject, "position": self.position(epoch), **{name: self.event.get(name) for name in ("id", "type", "time")}}


def _step(name: str, ok: bool | None, text: str) -> dict[str, Any]:
    return {"step": name, "ok": ok, "text": text}


def why_route(why: Why) -> APIRouter:
    router = APIRouter(tags=["events"])

    @router.get("/why", summary="Why did I not get it? Subject, token, stream and position, step by step", response_class=Response, responses=REFUSALS)
    async def explain(
        request: Request,
        subject: str = Query(description="Subject pattern", examples=["pg.shop.change.public.orders.*"]),
        key: str | None = Query(None, description="A row's key, as the event's `subject` has it", examples=["42"]),
        since: str | None = Query(None, description="The position that the client had"),
    ) -> Response:
        try:
            return JSONResponse(await why.explain(request, subject, key, since), headers={"cache-control": "no-store"})
        except ProtocolError as problem:
            return refusal(problem)

    return router
