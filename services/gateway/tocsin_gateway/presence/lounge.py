"""A session's live side: subscriptions to `live` subjects, its own messages, and whom it sees present."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import msgspec

from tocsin.errors import Unavailable
from tocsin.subject import Pattern, SubjectError
from tocsin_gateway import protocol
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.delivery.outbox import Outbox
from tocsin_gateway.limits import Limits
from tocsin_gateway.metrics import Metrics
from tocsin_gateway.presence.live import Live
from tocsin_gateway.presence.roster import Member
from tocsin_gateway.protocol import ProtocolError


@dataclass(slots=True)
class _Seat:
    """A live subscription, or the presence of one of the stream's. `member` is us, once we are present."""

    id: str
    pattern: Pattern
    messages: bool
    presence: bool
    user: str | None
    member: Member | None = None
    task: asyncio.Task[None] | None = None


class Lounge:
    """Belongs to one session; `tasks` is its connection's TaskGroup."""

    def __init__(self, live: Live, limits: Limits, metrics: Metrics, outbox: Outbox, tasks: asyncio.TaskGroup) -> None:
        self._live = live
        self._limits = limits
        self._metrics = metrics
        self._outbox = outbox
        self._tasks = tasks
        self._seats: dict[str, _Seat] = {}

    def __len__(self) -> int:
        return sum(seat.messages for seat in self._seats.values())

    def __contains__(self, id: object) -> bool:  # noqa: A002  # the field's name
        return id in self._seats

    def concerns(self, pattern: Pattern) -> bool:
        return self._live.concerns(pattern)

    def check(self, request: protocol.Subscribe, pattern: Pattern, grant: Grant) -> None:
        """Raises ProtocolError for what live subjects do not have, and for presence that is not allowed."""
        if self._live.concerns(pattern):
            self._live.checked(pattern, request.id)
            if request.since != "now":
                raise ProtocolError("bad-since", "what is live is not kept: since is `now` here", request.id)
            if request.where is not None or request.select is not None:
                raise ProtocolError("bad-where", "messages of `live` have no columns to filter by", request.id)
        if request.presence and (not grant.may_see_presence(pattern) or grant.visibility.touches(pattern)):
            # Who is there for rows that a rule may hide can't be judged.
            raise ProtocolError("forbidden", f"presence at {pattern.text!r} is not allowed here; the token's claim `presence` lists where", request.id)

    def sit(self, request: protocol.Subscribe, pattern: Pattern, grant: Grant) -> None:
        """Begin; a live subscription is told `subscribed` once messages come."""
        messages = self._live.concerns(pattern)
        if not messages and not request.presence:
            return
        seat = self._seats[request.id] = _Seat(request.id, pattern, messages, request.presence, grant.user)
        if messages:
            self._metrics.subscriptions.inc()
        seat.task = self._tasks.create_task(self._begin(seat))

    def stand_up(self, id: str) -> None:  # noqa: A002  # the field's name
        seat = self._seats.pop(id, None)
        if seat is None:
            return
        if seat.task is not None and seat.task is not asyncio.current_task():
            seat.task.cancel()
        if seat.messages:
            self._metrics.subscriptions.dec()
            if not any(other.messages and other.pattern == seat.pattern for other in self._seats.values()):
                self._live.leave(seat.pattern, self)
        if seat.presence and not any(other.presence and other.pattern == seat.pattern for other in self._seats.values()):
            self._live.unwatch(seat.pattern.text, self)
        if seat.member is not None:
            self._live.vanish(seat.member)

    def admit(self, grant: Grant) -> None:
        """A new token: what it does not allow ends."""
        for seat in tuple(self._seats.values()):
            problem = None
            try:
                grant.check(seat.pattern, seat.id)
            except ProtocolError as refused:
                problem = refused
            if problem is None and seat.presence and (not grant.may_see_presence(seat.pattern) or grant.visibility.touches(seat.pattern)):
                problem = ProtocolError("forbidden", f"presence at {seat.pattern.text!r} is not allowed any more", seat.id)
            seat.user = grant.user
            if problem is None and seat.member is not None and seat.member.user != seat.user:
                # Nobody is shown under the name of a token that he has laid down.
                former, seat.member = seat.member, None
                self._live.vanish(former)
                self._appear(seat)
            if problem is not None:
                self.stand_up(seat.id)
                if seat.presence and seat.member is not None:
                    self._outbox.send(msgspec.json.encode({"op": "presence", "id": seat.id, "client": None, "members": []}))
                if seat.messages:
                    self._tell(problem)
                    self._outbox.send(protocol.unsubscribed(seat.id))

    def end(self) -> None:
        for id_ in tuple(self._seats):
            self.stand_up(id_)

    async def publish(self, message: protocol.Publish, grant: Grant) -> None:
        """Raises ProtocolError."""
        size = len(bytes(message.data))
        if size > self._limits.publish_bytes:
            self._metrics.refused.labels("publish_bytes").inc()
            raise ProtocolError("limit", f"the data has {size} bytes; {self._limits.publish_bytes} are allowed", message.id)
        try:
            subject = Pattern(message.subject)
        except SubjectError as error:
            raise ProtocolError("bad-subject", str(error), message.id) from None
        if not subject.is_literal:
            raise ProtocolError("bad-subject", f"{message.subject!r} is a pattern; a message goes to one subject", message.id)
        grant.check_publish(subject, message.id)
        self._live.checked(subject, message.id)
        event = await self._live.publish(message.subject, message.data, grant.user)
        if message.id is not None:
            self._outbox.send(msgspec.json.encode({"op": "published", "id": message.id, "event": event}))

    # What Live calls.

    def hear(self, patterns: list[Pattern], subject: str, event: bytes) -> None:
        ids = {seat.id: None for seat in self._seats.values() if seat.messages and seat.pattern in patterns}
        if ids:
            self._metrics.frames.inc()
            self._outbox.send(msgspec.json.encode({"for": ids, "op": "event", "subject": subject, "event": msgspec.Raw(event)}))

    def see(self, member: Member, *, here: bool) -> None:
        for seat in self._seats.values():
            if seat.presence and seat.pattern.text == member.subject and seat.member is not None:
                self._outbox.send(msgspec.json.encode({"op": "joined" if here else "left", "id": seat.id, **_shown(member)}))

    async def _begin(self, seat: _Seat) -> None:
        try:
            await self._live.listen()
            if seat.messages:
                self._live.join(seat.pattern, self)
                self._outbox.send(msgspec.json.encode({"op": "subscribed", "id": seat.id, "subject": seat.pattern.text, "position": None, "recovered": True}))
            if seat.presence:
                self._appear(seat)
        except (Unavailable, ProtocolError) as error:
            self.stand_up(seat.id)
            self._tell(error if isinstance(error, ProtocolError) else ProtocolError("unavailable", str(error), seat.id))

    def _appear(self, seat: _Seat) -> None:
        """Raises ProtocolError limit."""
        member = Member(seat.pattern.text, secrets.token_hex(8), seat.user)
        self._live.appear(member)
        self._live.watch(seat.pattern.text, self)
        seat.member = member
        members = [_shown(other) for other in self._live.present(seat.pattern.text)]
        self._outbox.send(msgspec.json.encode({"op": "presence", "id": seat.id, "client": member.client, "members": members}))

    def _tell(self, problem: ProtocolError) -> None:
        self._metrics.errors.labels(problem.code).inc()
        self._outbox.send(protocol.error(problem))


def _shown(member: Member) -> dict[str, Any]:
    return {"client": member.client, "user": member.user}
