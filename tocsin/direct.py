"""nats-py's client, with four things mended.

Subscriptions whose messages are handed over as they are parsed: nats-py wakes a task for each message and parses its headers with a parser of
e-mail, which costs more than all else that a reader of a stream does. And cancellations that are heeded: it waits with asyncio.wait_for, which
before Python 3.12 forgets one that comes together with the answer, so that a service could not be stopped. And a flush that was given up no
longer ends the connection when its answer comes. And a flush returns once the server has what was sent before it, a subscription among it.

Only this module, and `tocsin_listener.wire` for the way out, knows of nats-py's inside.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from nats.aio.client import PING_PROTO, Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with subject, reply subject, body, and the headers' bytes as they came (empty: none). It must not raise, nor keep the loop long."""

_HEADED: Final = re.compile(rb"HMSG (\S+) (\d+) (?:(\S+) )?(\d+) (\d+)\r\n")
_FIELD: Final = re.compile(rb"\r\n([^:\r\n]+): *([^\r\n]*)")
_STATUS: Final = re.compile(rb"NATS/1\.0 +(\d{3}) *([^\r\n]*)")


def fields(headers: bytes) -> dict[bytes, bytes]:
    """The headers by name; of one that comes twice the last."""
    return dict(_FIELD.findall(headers))


def status(headers: bytes) -> tuple[str, str]:
    """(status, description) of a message of the server's own, such as `409` and `Consumer Deleted`; empty where there is none."""
    found = _STATUS.match(headers)
    return (found[1].decode(), found[2].decode()) if found else ("", "")


_T = TypeVar("_T")


async def heeding(waiting: Awaitable[_T]) -> _T:
    """What `waiting` gives or raises, but CancelledError where the task was cancelled meanwhile."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await waiting
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


class DirectClient(Client):
    """`listen` beside all that nats-py's client has; `request` and `flush` heed cancellations."""

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {}
        self._ps = _Parser(self, self._handlers)

    async def listen(self, subject: str, handler: Handler) -> Subscription:
        """Hand every message of `subject` over to `handler`, in the order of the wire; it survives a reconnect. End it with `forget`.

        Nothing is kept for a handler that is slow, since the loop does not go on before it: bound what is asked for.
        """

        async def early(message: Msg) -> None:
            # It came before its number was known here: whoever counts sees that it is missing.
            del message

        subscription = await self.subscribe(subject, cb=early)
        self._handlers[subscription._id] = handler  # noqa: SLF001
        return subscription

    async def forget(self, subscription: Subscription) -> None:
        """Raises what nats-py raises where there is no connection; the handler is not called again in any case."""
        self._handlers.pop(subscription._id, None)  # noqa: SLF001
        await subscription.unsubscribe()

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 0.5, old_style: bool = False, headers: dict[str, Any] | None = None) -> Msg:
        return await heeding(super().request(subject, payload, timeout, old_style, headers))

    async def flush(self, timeout: int = 10) -> None:
        await heeding(super().flush(timeout))

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Behind what is pending. nats-py writes it in front, so that a flush is answered before the server has read what was to be flushed."""
        if not self.is_connected:
            await super()._send_ping(future)
            return
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # Who waited has given up; nats-py would end its reading of the connection over that.
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            handler(subject, reply, data, headers or b"")


class _Parser(Parser):
    """nats-py's, with a short way for whole messages with headers whose subscription has a handler."""

    def __init__(self, client: Client, handlers: dict[int, Handler]) -> None:
        super().__init__(client)
        self._handlers = handlers

    async def parse(self, data: bytes = b"") -> Any:
        if self._handlers and self.state == AWAITING_CONTROL_LINE:
            if self.buf:
                data = bytes(self.buf) + data
                self.buf.clear()
            data, whole = self._hand_over(data)
            if not whole:
                self.buf.extend(data)
                return
        await super().parse(data)

    def _hand_over(self, data: bytes) -> tuple[bytes, bool]:
        """What is left behind the messages handed over; False where it begins with one that has not come whole."""
        at, size = 0, len(data)
        while found := _HEADED.match(data, at):
            handler = self._handlers.get(int(found[2]))
            if handler is None:
                break
            begin = found.end()
            body, end = begin + int(found[4]), begin + int(found[5])
            if end + 2 > size:
                return data[at:], False
            at = end + 2
            handler(found[1], found[3] or b"", data[body:end], data[begin:body])
        return data[at:], True
