"""The subprotocol `cloudevents.json`: each message one bare CloudEvent, as the CloudEvents binding for WebSockets asks. Pure but for the outbox.

An event comes as it was published, with the extension attributes `natssubject` and `position` (to resume with) in front. What else the
gateway says is a CloudEvent of the type `tocsin.<op>` with the message as `data`. A client may send either form.
"""

from __future__ import annotations

import secrets
from itertools import count
from typing import Any, Final

import msgspec

from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.delivery.outbox import Outbox

PREFIX: Final = "tocsin."


class _Message(msgspec.Struct):
    """What tells an event from the rest; `event` stays as it is."""

    op: str
    subject: str | None = None
    position: str | None = None
    event: msgspec.Raw = msgspec.Raw()


_decoder: Final = msgspec.json.Decoder(_Message)
_loose: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BareOutbox:
    """In front of a socket's outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._source = f"/tocsin/gateway/{secrets.token_hex(8)}"
        self._numbers = count(1)

    def send(self, payload: bytes) -> None:
        message = _parted(payload)
        if message.op == "event":
            self._outbox.send(bare(message.subject or "", message.position, bytes(message.event)))
        else:
            self._outbox.send(wrapped(message.op, payload, self._source, next(self._numbers)))

    def send_event(self, event: StreamEvent) -> None:
        self._outbox.send(bare(event.subject, f"{event.epoch}-{event.sequence}", event.body))

    def close(self, code: int, reason: str) -> None:
        self._outbox.close(code, reason)

    async def drained(self) -> None:
        await self._outbox.drained()


def _parted(payload: bytes) -> _Message:
    """One of our own messages. A column may be nested more deeply than a parser follows: then the message is cut where we put it together."""
    try:
        return _decoder.decode(payload)
    except RecursionError:
        if payload.startswith(b'{"op":"row"'):
            return _Message("row")
        cut = payload.index(b',"event":', payload.index(b'"op":"event",'))
        message = _decoder.decode(payload[:cut] + b"}")
        message.event = msgspec.Raw(payload[cut + len(b',"event":') : -1])
        return message


def bare(subject: str, position: str | None, event: bytes) -> bytes:
    """The CloudEvent with where it came from."""
    place = b"" if position is None else b'"position":%b,' % msgspec.json.encode(position)
    return b'{"natssubject":%b,%b%b' % (msgspec.json.encode(subject), place, event.lstrip()[1:])


def wrapped(op: str, payload: bytes, source: str, number: int) -> bytes:
    """Another message of the gateway as a CloudEvent."""
    head = {"specversion": "1.0", "id": str(number), "source": source, "type": PREFIX + op, "datacontenttype": "application/json"}
    return msgspec.json.encode({**head, "data": msgspec.Raw(payload)})


def unwrapped(text: str) -> str | bytes:
    """A client's message out of its CloudEvent; as it is where it is none."""
    try:
        outer = _loose.decode(text)
        if "specversion" not in outer:
            return text
        data: dict[str, Any] = dict(msgspec.json.decode(outer["data"], type=dict[str, msgspec.Raw])) if "data" in outer else {}
        op = msgspec.json.decode(outer["type"], type=str).removeprefix(PREFIX)
        return msgspec.json.encode({**data, "op": op})
    except (msgspec.MsgspecError, KeyError, UnicodeError, RecursionError):
        return text
