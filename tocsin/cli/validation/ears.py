"""Who listens: a WebSocket client of the gateway and a NATS subscriber, each with what it heard and when."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tocsin import broker
from tocsin.cli.examine.nats_session import NO_RIGHT_FIX, no_right
from tocsin.cli.https import certificate_fix
from tocsin.cli.validation.report import GATEWAY, Broken
from tocsin.event import COPY
from tocsin.settings import Settings
from tocsin.subscription import socket_url

_LARGEST: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Heard:
    """One event: `at` is time.perf_counter() when it was there."""

    subject: str
    event: dict[str, Any]
    at: float

    @property
    def id(self) -> str:
        return str(self.event["id"])


@dataclass(slots=True)
class Ear:
    """What one end has heard, in order. `lost` says why it hears nothing any more."""

    name: str
    heard: list[Heard] = field(default_factory=list)
    lost: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, subject: str, event: dict[str, Any]) -> None:
        if all(event["id"] != known.id for known in self.heard[-100:]):  # by NATS alone an event may come twice
            self.heard.append(Heard(subject, event, time.perf_counter()))
        self._changed.set()

    def lose(self, reason: str) -> None:
        self.lost = reason
        self._changed.set()

    async def until(self, enough: Callable[[list[Heard]], bool], patience: float) -> bool:
        """Whether `enough` became true of what was heard, within `patience` seconds and before the link was lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not enough(self.heard):
                    if self.lost:
                        return False
                    self._changed.clear()
                    await self._changed.wait()
        return enough(self.heard)


@contextlib.asynccontextmanager
async def socket_ear(url: str, subjects: list[str], token: str | None, patience: float) -> AsyncIterator[Ear]:
    """Subscribed when it is there. Raises Broken for what the gateway refuses, OSError and TimeoutError where it does not answer."""
    ear = Ear("WebSocket")
    try:
        address = socket_url(url)
    except ValueError as error:
        raise Broken(str(error), "tocsin validate --url http://127.0.0.1:8080", part=GATEWAY) from None
    try:
        async with asyncio.timeout(patience):
            socket = await connect(address, proxy=None, compression=None, max_size=_LARGEST, close_timeout=1)
    except InvalidHandshake as error:
        raise Broken(
            f"{address}: {error}; does the URL lead to a Tocsin gateway?", "say where the gateway is with --url; does it want https?", part=GATEWAY
        ) from error
    except ssl.SSLError as error:
        raise Broken(f"{address}: {error}", certificate_fix(error, "validate") or "", part=GATEWAY) from error
    except OSError as error:
        raise Broken(f"nobody answers at {address}: {error}", "tocsin gateway   # or say where it is with --url", part=GATEWAY) from error
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(patience):
            await _subscribe(socket, subjects, token)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_read(socket, ear))
            try:
                yield ear
            finally:
                reading.cancel()
    finally:
        await socket.close()


async def _subscribe(socket: ClientConnection, subjects: list[str], token: str | None) -> None:
    if token is not None:
        await socket.send(msgspec.json.encode({"op": "auth", "token": token}).decode())
    for number, subject in enumerate(subjects):
        await socket.send(msgspec.json.encode({"op": "subscribe", "id": str(number), "subject": subject, "since": "now"}).decode())
    there = 0
    try:
        while there < len(subjects):
            frame = msgspec.json.decode(await socket.recv())
            there += frame["op"] == "subscribed"
            if frame["op"] == "error":
                raise _refusal(str(frame.get("code")), str(frame.get("message")))
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd is not None else 1006
        raise _refusal("unauthenticated" if code in (4401, 4408) else str(code), closed.rcvd.reason if closed.rcvd else "the gateway hung up") from closed


def _refusal(code: str, message: str) -> Broken:
    fixes = {
        "unauthenticated": "tocsin validate --token TOKEN, or let it see the gateway's TOCSIN_JWT_SECRET",
        "forbidden": "let the token's claim `subscribe` allow the source's subjects, such as pg.shop.>; TOCSIN_SOURCE has to be the gateway's",
        "unavailable": "the gateway has no stream to read: is the listener running, and TOCSIN_NATS_URL the same for both?",
    }
    return Broken(f"the gateway refuses: {code}: {message}", fixes.get(code, "the gateway's log says more"), part=GATEWAY)


async def _read(socket: ClientConnection, ear: Ear) -> None:
    try:
        async for text in socket:
            frame = msgspec.json.decode(text)
            if frame["op"] == "event":
                ear.take(frame["subject"], frame["event"])
    except ConnectionClosed as closed:
        ear.lose(f"the gateway closed the connection: {closed}")
    else:
        ear.lose("the gateway closed the connection")


@contextlib.asynccontextmanager
async def nats_ear(settings: Settings, subjects: list[str], patience: float) -> AsyncIterator[tuple[Ear, broker.Link]]:
    """Subscribed when it is there. Raises OperatorError, Broken, TimeoutError where NATS does not answer."""
    ear = Ear("NATS")
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(patience):
            link = await stack.enter_async_context(broker.connect(settings.nats_servers, name="tocsin validate", login=settings.nats_login))
            for subject in subjects:
                await _listen(link.client, subject, ear)
            await link.client.flush(int(max(1, patience)))
        if (refused := no_right(link.client)) is not None:
            raise Broken(refused, NO_RIGHT_FIX)
        yield ear, link


async def _listen(client: Client, subject: str, ear: Ear) -> None:
    async def on_message(message: Msg) -> None:
        if COPY not in (message.headers or {}):
            ear.take(message.subject, msgspec.json.decode(message.data))

    await client.subscribe(subject, cb=on_message)
