"""An event as it leaves the gateway: JSON spliced from bytes, framed once for all clients. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from tocsin_gateway.rows.change import Change

_TEXT: Final = 0x81  # FIN and the text opcode; servers do not mask


def frame(payload: bytes) -> bytes:
    """One unmasked WebSocket text frame."""
    length = len(payload)
    if length < 126:
        return bytes((_TEXT, length)) + payload
    if length < 65_536:
        return struct.pack("!BBH", _TEXT, 126, length) + payload
    return struct.pack("!BBQ", _TEXT, 127, length) + payload


class StreamEvent:
    """One message of the stream, read once and shared by every client.

    `body` is the CloudEvent as published; `change` parses it, once, and only for who filters. `judged` is the selections' own: what
    each of them made of the event. `payload` is the JSON message to a client, `framed` the same as
    a WebSocket frame; each is made when it is first wanted.
    """

    __slots__ = ("_change", "_framed", "_payload", "body", "copy", "epoch", "judged", "message_id", "sequence", "subject")

    def __init__(self, epoch: str, sequence: int, subject: str, body: bytes, message_id: str = "", *, copy: bool = False) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.subject = subject
        self.body = body
        self.message_id = message_id
        self.copy = copy
        self._payload: bytes | None = None
        self._framed: bytes | None = None
        self._change: Change | Literal[False] | None = None
        self.judged: dict[Any, Any] | None = None

    @property
    def payload(self) -> bytes:
        if self._payload is None:
            self._payload = self.message(self.subject, self.body)
        return self._payload

    @property
    def framed(self) -> bytes:
        if self._framed is None:
            self._framed = frame(self.payload)
        return self._framed

    def message(self, subject: str, body: bytes) -> bytes:
        """The JSON message to a client, of this place in the stream."""
        return b'{"op":"event","subject":%b,"position":"%b-%d","event":%b}' % (msgspec.json.encode(subject), self.epoch.encode(), self.sequence, body)

    @property
    def change(self) -> Change | None:
        """The content, parsed when it is first wanted; None where it can't be read."""
        if self._change is None:
            try:
                self._change = Change(self.body)
            except ValueError:
                self._change = False
        return self._change or None

    def is_copy_of(self, other: StreamEvent | None) -> bool:
        """Whether this is the copy under the old route of an original that directly precedes it."""
        return self.copy and other is not None and self.message_id == f"{other.message_id}-old"


def addressed(payload: bytes, recipients: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The message with `for` in front: each subscription that it is for (its id as JSON) and what the event does to its rows."""
    return b'{"for":{%b},%b' % (b",".join(id_ + b":" + mark for id_, mark in recipients), payload[1:])
