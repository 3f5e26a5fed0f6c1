"""Live events from a Tocsin gateway.

    async for event in subscribe("http://127.0.0.1:8080", "pg.shop.change.public.orders.*"):
        print(event.op, event.key, event.new, event.position)

The subscription outlives its connections: a lost one is made anew, and resumes after the last position without a hole and
without a repeat. Keep `event.position` with what you computed from it, and hand it in as `since` after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, overload

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tocsin.position import Position
from tocsin.presence import Joined, Left, Member, Members, Presence
from tocsin.publisher import Publisher
from tocsin.retry import Pauses
from tocsin.subscription import (
    PERMANENT_CLOSES,
    Delivery,
    Gap,
    GapError,
    Item,
    Row,
    SnapshotEnd,
    SnapshotStart,
    SubscribeError,
    Subscription,
    Unready,
    decode_frame,
    socket_url,
)

__all__ = [
    "Delivery",
    "Gap",
    "GapError",
    "Item",
    "Joined",
    "Left",
    "Live",
    "Member",
    "Members",
    "Presence",
    "Publisher",
    "Row",
    "SnapshotEnd",
    "SnapshotStart",
    "SubscribeError",
    "subscribe",
]

QUIET: Final = 10.0
"""Seconds without a frame after which the link is asked whether it lives."""

PATIENCE: Final = 5.0
"""Seconds that it has to answer."""

LASTED: Final = 5.0
"""A connection that lived so many seconds was a success: the next outage begins with short pauses again."""

SOONEST_RENEWAL: Final = 0.5
"""Seconds between two tokens at least, however short they live and whatever the clocks say."""

LARGEST: Final = 64 << 20

State = Literal["connecting", "live", "retrying"]
Token = str | Callable[[], str | Awaitable[str]]
OnState = Callable[[State, BaseException | None], None]
Where = Mapping[str, Mapping[str, Any]]
T = TypeVar("T", bound=Item | Gap | Presence)


@overload
def subscribe(
    url: str,
    subject: str,
    *,
    presence: Literal[True],
    since: str | Position = ...,
    token: Token | None = ...,
    where: Where | None = ...,
    select: Sequence[str] | None = ...,
    tolerate_gaps: bool = ...,
    on_state: OnState | None = ...,
    **options: Any,
) -> Live[Item | Gap | Presence]: ...


@overload
def subscribe(
    url: str,
    subject: str,
    *,
    since: Literal["snapshot"],
    token: Token | None = ...,
    where: Where | None = ...,
    select: Sequence[str] | None = ...,
    tolerate_gaps: bool = ...,
    on_state: OnState | None = ...,
    **options: Any,
) -> Live[Item]: ...


@overload
def subscribe(
    url: str,
    subject: str,
    *,
    since: str | Position = ...,
    token: Token | None = ...,
    where: Where | None = ...,
    select: Sequence[str] | None = ...,
    tolerate_gaps: Literal[False] = ...,
    on_state: OnState | None = ...,
    **options: Any,
) -> Live[Delivery]: ...


@overload
def subscribe(
    url: str,
    subject: str,
    *,
    since: str | Position = ...,
    token: Token | None = ...,
    where: Where | None = ...,
    select: Sequence[str] | None = ...,
    tolerate_gaps: bool,
    on_state: OnState | None = ...,
    **options: Any,
) -> Live[Delivery | Gap]: ...


def subscribe(
    url: str,
    subject: str,
    *,
    since: str | Position = "now",
    token: Token | None = None,
    where: Where | None = None,
    select: Sequence[str] | None = None,
    tolerate_gaps: bool = False,
    presence: bool = False,
    on_state: OnState | None = None,
    **options: Any,
) -> Live[Any]:
    """Subscribe to a subject, `*` and a last `>` being wildcards; to be used with `async for`, or `async with … as events`.

    `url` is the gateway's (http, https, ws or wss). `since` is now, start, an age such as 5m, or a position; the event at a
    position is not sent again. `token` is a JWT, or a function (or coroutine function) that gives a fresh one: it is called for each
    connection, and again before the token ends, on the living connection. `where` has conditions on columns, such as
    {"customer_id": {"eq": 42}, "total": {"gte": Decimal("0.1")}}; a delivery's `effect` says then what it does to the rows that hold.
    `select` names the columns that are sent. `on_state` is told of connecting, live and retrying, with the error that is the reason of the last.
    `options` go to websockets' `connect`, such as ssl or additional_headers.

    With `since="snapshot"` come, before the deliveries, SnapshotStart, a Row for each of the table's present rows, and SnapshotEnd; a link
    that is lost in between, and later a gap, begin again with a SnapshotStart, at which what was there is to be forgotten.

    With `presence=True` we are announced to everybody who asks the same of the same subject, and come, between the other items, Members (all who
    are there, at each connection), Joined and Left.

    Yields Delivery in stream order. Raises SubscribeError where the gateway refuses, and GapError where it can't serve
    everything since the asked or the last position; with `tolerate_gaps` a Gap is yielded instead. An unreachable gateway is
    no error: it is tried again, with jittered pauses of up to 5 s. ValueError: the URL is not one.
    """
    subscription = Subscription(subject, str(since), where=where, select=select, tolerate_gaps=tolerate_gaps, presence=presence)
    return Live(subscription, _Link(socket_url(url), subscription, token, on_state, options))


class Live(Generic[T]):
    """A subscription's events. Leaving `async with`, or `aclose()`, closes the connection at once."""

    def __init__(self, subscription: Subscription, link: _Link) -> None:
        self._subscription = subscription
        self._deliveries: AsyncGenerator[T, None] = link.deliveries()

    @property
    def position(self) -> str | None:
        """Where to resume, once the gateway has said it: also moves while nothing matches."""
        return self._subscription.position

    @property
    def hint(self) -> str | None:
        """For people: why nothing of the subject may ever come, where the gateway knows of nothing that ever did."""
        return self._subscription.hint

    # The generator itself is handed out: so the loop closes it, and the socket, when an `async for` is left by break.
    def __aiter__(self) -> AsyncIterator[T]:
        return self._deliveries

    async def __anext__(self) -> T:
        return await anext(self._deliveries)

    async def aclose(self) -> None:
        await self._deliveries.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


class _Link:
    """The connections of one subscription, one after the other."""

    def __init__(self, url: str, subscription: Subscription, token: Token | None, on_state: OnState | None, options: dict[str, Any]) -> None:
        self._url = url
        self._subscription = subscription
        self._token = token
        self._on_state = on_state
        self._options = {"compression": None, "proxy": None, "ping_interval": None, "close_timeout": 1, "max_size": LARGEST, **options}
        self._pauses = Pauses()
        self._renew_at = inf
        """When to ask for a fresh token, in seconds of the loop's clock."""

    async def deliveries(self) -> AsyncGenerator[Any, None]:
        loop = asyncio.get_running_loop()
        while True:
            live_since: float | None = None
            self._tell("connecting")
            try:
                async with connect(self._url, **self._options) as socket:
                    await self._ask(socket)
                    while True:
                        frame = decode_frame(await self._receive(socket))
                        if frame.op == "authenticated":
                            self._renew_before(frame.expires)
                        item = self._subscription.take(frame)
                        if frame.op == "subscribed" and live_since is None:
                            live_since = loop.time()
                            self._tell("live")
                        if item is not None:
                            yield item
            except (OSError, ConnectionClosed, InvalidHandshake, Unready) as error:
                self._raise_permanent(error)
                self._tell("retrying", error)
            if live_since is not None and loop.time() - live_since >= LASTED:
                self._pauses.reset()
            await asyncio.sleep(self._pauses.next())

    async def _ask(self, socket: ClientConnection) -> None:
        self._renew_at = inf
        if self._token is not None:
            await self._authenticate(socket, self._token)
        await socket.send(self._subscription.request())

    async def _authenticate(self, socket: ClientConnection, given: Token) -> None:
        token = given() if callable(given) else given
        text = await token if inspect.isawaitable(token) else token
        await socket.send(msgspec.json.encode({"op": "auth", "token": text}).decode())

    def _renew_before(self, expires: str | None) -> None:
        """A function gives a fresh token for the living connection, while a fifth of the present one's time is left."""
        if expires is not None and callable(self._token):
            left = (datetime.fromisoformat(expires) - datetime.now(UTC)).total_seconds()
            self._renew_at = asyncio.get_running_loop().time() + max(SOONEST_RENEWAL, left * 0.8)

    async def _receive(self, socket: ClientConnection) -> str | bytes:
        """The next frame. Raises TimeoutError where the link is silent, and does not answer when asked."""
        loop = asyncio.get_running_loop()
        silent_at = loop.time() + QUIET
        while loop.time() < silent_at:
            if self._token is not None and loop.time() >= self._renew_at:
                self._renew_at = inf
                await self._authenticate(socket, self._token)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(silent_at, self._renew_at)):
                    return await socket.recv()
        await socket.send('{"op":"ping"}')
        async with asyncio.timeout(PATIENCE):
            return await socket.recv()

    def _raise_permanent(self, error: BaseException) -> None:
        if isinstance(error, InvalidStatus) and 400 <= error.response.status_code < 500 and error.response.status_code not in (408, 425, 429):
            status = error.response.status_code
            code = {401: "unauthenticated", 403: "forbidden"}.get(status, "unavailable")
            raise SubscribeError(code, f"{self._url} answers with HTTP {status}; does the URL lead to a Tocsin gateway?") from error
        if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in PERMANENT_CLOSES:
            code = PERMANENT_CLOSES[error.rcvd.code]
            if code == "unauthenticated" and callable(self._token):
                return  # it has expired, and the next connection brings a fresh one
            raise SubscribeError(code, error.rcvd.reason or f"the gateway closed the connection with {error.rcvd.code}") from error

    def _tell(self, state: State, error: BaseException | None = None) -> None:
        if self._on_state is not None:
            self._on_state(state, error)
