"""Messages of one's own through a Tocsin gateway, on `pg.<source>.live.…`: at most once, not kept, without a position."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tocsin.errors import Unavailable
from tocsin.subscription import PERMANENT_CLOSES, SubscribeError, socket_url

PATIENCE: Final = 10.0
"""Seconds for a connection and the gateway's answer together."""

_ID: Final = "m"


class Publisher:
    """One connection to a gateway, made when it is first needed and again after it was lost.

    `url` and `token` are as for `tocsin.client.subscribe`; a function is asked for a token at each connection. ValueError: the URL is not one.
    """

    def __init__(self, url: str, *, token: str | Callable[[], str | Awaitable[str]] | None = None) -> None:
        self._url: Final = socket_url(url)
        self._token = token
        self._turn = asyncio.Lock()
        self._socket: ClientConnection | None = None

    async def publish(self, subject: str, data: Any) -> str:
        """The id of the event that was made of the data (what JSON can hold), once NATS has it; not that anybody heard it.

        Raises SubscribeError where the gateway refuses, and Unavailable where it can't be reached or the link broke: whether the message came
        out is not known then, and it is not sent again.
        """
        text = msgspec.json.encode({"op": "publish", "id": _ID, "subject": subject, "data": data}).decode()
        async with self._turn:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._published(text)
            except BaseException as error:
                # An answer that is still on its way must not be taken for the next message's.
                if not isinstance(error, SubscribeError):
                    await self._leave()
                if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in PERMANENT_CLOSES:
                    raise SubscribeError(PERMANENT_CLOSES[error.rcvd.code], error.rcvd.reason) from error
                if isinstance(error, (OSError, ConnectionClosed, InvalidHandshake)):
                    raise Unavailable(f"{self._url}: {error or 'no answer in time'}") from error
                raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._leave()

    async def _published(self, text: str) -> str:
        if self._socket is not None and self._socket.close_code is not None:
            await self._leave()  # ended by the gateway meanwhile, such as with its token: nothing was sent on it
        if self._socket is None:
            self._socket = await connect(self._url, compression=None, proxy=None, close_timeout=1)
            if self._token is not None:
                token = self._token() if callable(self._token) else self._token
                shown = await token if inspect.isawaitable(token) else token
                await self._socket.send(msgspec.json.encode({"op": "auth", "token": shown}).decode())
        await self._socket.send(text)
        while True:
            frame = msgspec.json.decode(await self._socket.recv())
            if frame["op"] == "published":
                return str(frame["event"])
            if frame["op"] == "error":
                if frame.get("id") != _ID:
                    await self._leave()
                raise SubscribeError(frame["code"], frame["message"])

    async def _leave(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()
