"""Clients' own messages and presence, on `pg.<source>.live.…`: core NATS, at most once, not in the stream, without a position.

A gateway listens only once one of its clients wants any of it. `live.presence.<subject as one token>` tells who comes and goes, for NATS
consumers; `_tocsin.<source>.presence` is the gateways' own talk of the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec
import nats.errors
from nats.aio.msg import Msg

from tocsin import broker
from tocsin.errors import Unavailable
from tocsin.subject import Pattern, encode_token
from tocsin_gateway.delivery.routes import Routes
from tocsin_gateway.presence.roster import BEAT_SECONDS, MAX_MEMBERS, Member, Roster, Said
from tocsin_gateway.protocol import ProtocolError

FLUSH_SECONDS: Final = 5

_said: Final = msgspec.json.Decoder(Said)


class Listener(Protocol):
    """One client's side."""

    def hear(self, patterns: list[Pattern], subject: str, event: bytes) -> None: ...
    def see(self, member: Member, *, here: bool) -> None: ...


class _Room:
    """Who listens to a pattern."""

    __slots__ = ("listeners", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.listeners: dict[Listener, None] = {}


class Live:
    """Of one gateway. `run` belongs into the service's TaskGroup."""

    def __init__(self, link: broker.Link, root: Pattern, source: str) -> None:
        self._link = link
        self._root = root
        self._stem = root.text.removesuffix(">")
        self._source = source
        self._talk = f"_tocsin.{encode_token(source)}.presence"
        self._id = secrets.token_hex(8)
        self._listens = False
        self._starting = asyncio.Lock()
        self._routes: Routes[_Room] = Routes()
        self._outgoing: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._watching: dict[str, dict[Listener, None]] = {}
        self._roster = Roster()

    def concerns(self, pattern: Pattern) -> bool:
        """Whether everything that the pattern asks for is live. A pattern that is wider asks for the stream's events only."""
        return self._root.contains(pattern)

    def checked(self, pattern: Pattern, id: str | None) -> None:  # noqa: A002  # the field's name
        """Raises ProtocolError bad-subject for what is the gateways' own."""
        if Pattern(f"{self._stem}presence.>").overlaps(pattern) and (pattern.is_literal or pattern.text.startswith(f"{self._stem}presence.")):
            raise ProtocolError("bad-subject", 'who is present comes by {"op": "subscribe", …, "presence": true} for the subject itself', id)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_all())
            group.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if self._listens and self._link.connected.is_set():
                if mine := self._roster.members(self._id):
                    self._say(Said(self._id, mine))
                self._show(self._roster.forget(time.monotonic(), but=self._id))

    async def _send_all(self) -> None:
        """What is lost in an outage, the next beat repeats."""
        while True:
            subject, body = await self._outgoing.get()
            with contextlib.suppress(nats.errors.Error):
                await self._link.client.publish(subject, body)

    async def listen(self) -> None:
        """Returns once messages come. Raises Unavailable."""
        async with self._starting:
            if self._listens:
                return
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._link.connected.wait()
                    await self._link.client.subscribe(self._root.text, cb=self._on_message)
                    await self._link.client.subscribe(self._talk, cb=self._on_talk)
                    await self._link.client.flush(FLUSH_SECONDS)
                    self._listens = True
                    self._say(Said(self._id, self._roster.members(self._id), ask=True))
            except (nats.errors.Error, TimeoutError) as error:
                raise Unavailable("NATS can't be reached at the moment; try again in a second") from error

    def join(self, pattern: Pattern, listener: Listener) -> None:
        room = self._routes.get(pattern)
        if room is None:
            room = _Room(pattern)
            self._routes.add(pattern, room)
        room.listeners[listener] = None

    def leave(self, pattern: Pattern, listener: Listener) -> None:
        room = self._routes.get(pattern)
        if room is not None:
            room.listeners.pop(listener, None)
            if not room.listeners:
                self._routes.remove(pattern)

    async def publish(self, subject: str, data: msgspec.Raw, user: str | None) -> str:
        """The new event's id. Raises ProtocolError unavailable."""
        event = self._event("live.message", data, user)
        try:
            if not self._link.connected.is_set():
                raise nats.errors.ConnectionClosedError
            await self._link.client.publish(subject, msgspec.json.encode(event))
        except nats.errors.Error as error:
            raise ProtocolError("unavailable", f"the message can't be sent at the moment: {error}") from None
        return str(event["id"])

    def present(self, subject: str) -> list[Member]:
        return self._roster.at(subject)

    def watch(self, subject: str, listener: Listener) -> None:
        self._watching.setdefault(subject, {})[listener] = None

    def unwatch(self, subject: str, listener: Listener) -> None:
        if here := self._watching.get(subject):
            here.pop(listener, None)
            if not here:
                del self._watching[subject]

    def appear(self, member: Member) -> None:
        """Raises ProtocolError limit."""
        if len(self._roster.members(self._id)) >= MAX_MEMBERS:
            raise ProtocolError("limit", f"{MAX_MEMBERS} members present on one gateway are allowed")
        self._tell(Said(self._id, joined=member), "live.join", member)

    def vanish(self, member: Member) -> None:
        self._tell(Said(self._id, left=member), "live.leave", member)

    def _tell(self, said: Said, kind: str, member: Member) -> None:
        self._show(self._roster.hear(said, time.monotonic()))
        self._say(said)
        event = self._event(kind, {"subject": member.subject, "client": member.client, "user": member.user}, member.user)
        self._outgoing.put_nowait((f"{self._stem}presence.{encode_token(member.subject)}", msgspec.json.encode(event)))

    def _say(self, said: Said) -> None:
        self._outgoing.put_nowait((self._talk, msgspec.json.encode(said)))

    async def _on_talk(self, message: Msg) -> None:
        try:
            said = _said.decode(message.data)
        except msgspec.MsgspecError:
            return
        if said.gateway == self._id:
            return
        self._show(self._roster.hear(said, time.monotonic()))
        if said.ask:
            self._say(Said(self._id, self._roster.members(self._id)))

    def _show(self, changes: list[tuple[Member, bool]]) -> None:
        for member, here in changes:
            for listener in tuple(self._watching.get(member.subject, ())):
                listener.see(member, here=here)

    async def _on_message(self, message: Msg) -> None:
        if message.subject.startswith(f"{self._stem}presence."):
            return
        rooms = self._routes.match(message.subject)
        event = self._readable(message.data) if rooms else None
        if event is None:
            return
        heard: dict[Listener, list[Pattern]] = {}
        for room in rooms:
            for listener in room.listeners:
                heard.setdefault(listener, []).append(room.pattern)
        for listener, patterns in heard.items():
            listener.hear(patterns, message.subject, event)

    def _readable(self, body: bytes) -> bytes | None:
        """A CloudEvent; what is another JSON text is made one, and what is none is left out: it would break the frame that it is put into."""
        try:
            content = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
        if isinstance(content, dict) and "specversion" in content:
            return msgspec.json.encode(content)
        return msgspec.json.encode(self._event("live.message", content, None))

    def _event(self, kind: str, data: Any, user: str | None) -> dict[str, Any]:
        head = {
            "specversion": "1.0",
            "id": secrets.token_hex(12),
            "source": f"/pg/{self._source}",
            "type": kind,
            "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "datacontenttype": "application/json",
        }
        return {**head, **({"user": user} if user is not None else {}), "data": data}
