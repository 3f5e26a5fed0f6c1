"""The proof that events flow: one is committed in the source, and has to arrive at a WebSocket client of our own."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tocsin import postgres
from tocsin.errors import OperatorError, TocsinError
from tocsin.event import Event
from tocsin.subject import encode_token
from tocsin.subscription import socket_url

TYPE: Final = "tocsin.ready"
PATIENCE: Final = 60.0
PAUSE: Final = 0.05
"""Seconds between two attempts, all on this machine."""


class RefusedError(TocsinError):
    """The gateway answered with an error frame."""


async def first_event(source_url: str, gateway: str, prefix: str, source: str, *, patience: float = PATIENCE) -> float:
    """Commit an event and wait until it arrives; the seconds it took. `gateway` is its URL, http or https.

    Raises OperatorError with what is not ready where none has arrived after `patience` seconds.
    """
    url = socket_url(gateway)
    subject = f"{prefix}.{encode_token(source)}.event.{TYPE}"
    last: Exception | None = None
    try:
        async with asyncio.timeout(patience):
            while True:
                try:
                    async with _subscribed(url, subject) as socket:
                        return await _there_and_back(socket, source_url)
                except (OSError, WebSocketException, TocsinError) as error:
                    last = error  # the gateway starts, or waits for the stream that the listener is making
                await asyncio.sleep(PAUSE)
    except TimeoutError:
        raise OperatorError(
            f"no event arrived at a WebSocket client of {url} within {patience:.0f} s: {last or 'the gateway accepts, and is silent'}",
            "tocsin doctor looks at every part and names the fix",
        ) from last


@contextlib.asynccontextmanager
async def _subscribed(url: str, subject: str) -> AsyncIterator[ClientConnection]:
    async with connect(url, proxy=None, compression=None, ssl=_unverified() if url.startswith("wss:") else None) as socket:
        await socket.send(msgspec.json.encode({"op": "subscribe", "id": "up", "subject": subject, "since": "now"}).decode())
        async for frame in _frames(socket):
            if frame["op"] == "subscribed":
                break
        yield socket


async def _there_and_back(socket: ClientConnection, source_url: str) -> float:
    nonce = secrets.token_hex(8)
    async with postgres.connection(source_url, setting="TOCSIN_DATABASE_URL", application="tocsin up") as connection:
        begin = time.perf_counter()
        await connection.execute("SELECT tocsin.emit($1, $2::text::jsonb)", TYPE, msgspec.json.encode({"nonce": nonce}).decode())
        async for frame in _frames(socket):
            if frame["op"] == "event" and nonce in str(msgspec.convert(frame["event"], Event).data):
                return time.perf_counter() - begin
    raise OSError("the gateway closed the connection")


async def _frames(socket: ClientConnection) -> AsyncIterator[dict[str, Any]]:
    async for text in socket:
        frame = msgspec.json.decode(text)
        if frame["op"] == "error":
            raise RefusedError(f"{frame.get('code')}: {frame.get('message')}")
        yield frame


async def until_ready(url: str, *, patience: float = PATIENCE) -> None:
    """Wait until a service's /readyz says 200. Raises OperatorError with its last answer."""
    await _until(url, lambda code: code == 200, patience)


async def until_answers(url: str, *, patience: float = PATIENCE) -> None:
    """Wait until a service answers at all, ready or not. Raises OperatorError."""
    await _until(url, lambda code: code > 0, patience)


async def _until(url: str, enough: Callable[[int], bool], patience: float) -> None:
    last = "no answer"
    try:
        async with asyncio.timeout(patience):
            while True:
                code, last = await asyncio.to_thread(readiness, url)
                if enough(code):
                    return
                await asyncio.sleep(PAUSE)
    except TimeoutError:
        raise OperatorError(f"{url}/readyz: {last}", "tocsin doctor looks at every part and names the fix") from None


def readiness(address: str, *, patience: float = 3.0) -> tuple[int, str]:
    """The code and the body of the /readyz of a service at host:port or a URL; code 0 where nobody answers. Blocking."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_unverified()))
    try:
        with opener.open(f"{address if '://' in address else f'http://{address}'}/readyz", timeout=patience) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(getattr(error, "reason", error))


def _unverified() -> ssl.SSLContext:
    """The certificate is not looked at: it has another name than this machine's loopback, and nothing is said that somebody else might not hear."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
