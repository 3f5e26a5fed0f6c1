"""An event as it leaves the gateway: JSON spliced from bytes, framed once for all clients. Pure."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

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

    `body` is the CloudEvent as published, never parsed here. `payload` is the JSON message to a client, `framed` the same as
    a WebSocket frame; each is made when it is first wanted.
    """

    __slots__ = ("_framed", "_payload", "body", "copy", "epoch", "message_id", "sequence", "subject")

    def __init__(self, epoch: str, sequence: int, subject: str, body: bytes, message_id: str = "", *, copy: bool = False) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.subject = subject
        self.body = body
        self.message_id = message_id
        self.copy = copy
        self._payload: bytes | None = None
        self._framed: bytes | None = None

    @property
    def payload(self) -> bytes:
        if self._payload is None:
            self._payload = b'{"op":"event","subject":%b,"position":"%b-%d","event":%b}' % (
                msgspec.json.encode(self.subject),
                self.epoch.encode(),
                self.sequence,
                self.body,
            )
        return self._payload

    @property
    def framed(self) -> bytes:
        if self._framed is None:
            self._framed = frame(self.payload)
        return self._framed

    def addressed(self, ids: list[bytes]) -> bytes:
        """The payload with `for` in front: the subscriptions (their ids as JSON strings) that it is for."""
        return b'{"for":{%b},%b' % (b",".join(id_ + b":null" for id_ in ids), self.payload[1:])

    def is_copy_of(self, other: StreamEvent | None) -> bool:
        """Whether this is the copy under the old route of an original that directly precedes it."""
        return self.copy and other is not None and self.message_id == f"{other.message_id}-old"
