"""Messages as NATS's protocol writes them: a whole chunk in one piece of bytes, handed to nats-py's buffer at once.

nats-py builds and queues one HPUB at a time, which costs more than all the rest of the relay. Only `write` knows of its inside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from nats.aio.client import Client

from tocsin_listener.message import Message

LONGEST_CONTROL_LINE: Final = 4096
"""nats-server's max_control_line: it drops the connection of a client that writes a longer one."""

_SUBJECT: Final = re.compile(r"[^\s.*>\x00-\x20\x7f]+(\.[^\s.*>\x00-\x20\x7f]+)*")


def unfit(subject: str) -> str | None:
    """Why a message can't be published under this subject, or None. Space for the reply subject and the sizes is left."""
    if not _SUBJECT.fullmatch(subject):
        return "the subject has an empty token, a wildcard, a space or a control character"
    if len(subject.encode()) > LONGEST_CONTROL_LINE - 200:
        return f"the subject is longer than a server takes ({len(subject)} characters)"
    return None


def size(message: Message) -> int:
    """What the server compares with its max_payload: the body and all headers, those of an attempt counted generously."""
    return len(message.body) + len(message.headers) + 200


def frame(message: Message, extra: str = "", reply: str = "") -> bytes:
    """One HPUB. `extra` is header lines, each ended by CR LF, that belong to this attempt alone."""
    head = f"NATS/1.0\r\n{message.headers}{extra}\r\n"
    body = message.body
    # Header names and values are ASCII, so that characters are bytes.
    length = len(head)
    return b"%b%b\r\n" % (f"HPUB {message.subject} {reply}{' ' if reply else ''}{length} {length + len(body)}\r\n{head}".encode(), body)


async def write(client: Client, frames: Sequence[bytes]) -> None:
    """Put `frames` into the client's buffer in one piece and wake its flusher; waits where the buffer is over its bound."""
    await client._send_command(b"".join(frames))  # noqa: SLF001  # there is no public way to hand over more than one message
    await client._flush_pending()  # noqa: SLF001
