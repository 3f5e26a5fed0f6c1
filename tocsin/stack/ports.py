"""The ports of the parts: found free, or named with the setting that changes them, before anything is started."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from tocsin.errors import OperatorError
from tocsin.stack.process import free_port

PATIENCE: Final = 3.0
DEFAULT_NATS_PORT: Final = 4222


@dataclass(frozen=True, slots=True)
class Listening:
    """A part that will listen on `host`:`port`; `setting` is the variable that says so."""

    what: str
    host: str
    port: int
    setting: str


def port_taken(port: int, setting: str) -> OperatorError:
    """The error of a port that another program has, with a free one to use instead."""
    return OperatorError(
        f"port {port} is taken by another program", f"stop that program, or choose another port with {setting}, such as {setting}={free_port()}"
    )


def check(parts: Iterable[Listening]) -> None:
    """Raises OperatorError that names every port that is taken, or that two parts would share, and its setting."""
    problems: list[tuple[str, Listening]] = []
    seen: dict[int, Listening] = {}
    for part in parts:
        if part.port in seen:
            problems.append((f"port {part.port} is given to both {seen[part.port].what} ({seen[part.port].setting}) and {part.what} ({part.setting})", part))
        elif not _is_free(part.host, part.port):
            problems.append((f"port {part.port}, for {part.what}, is taken by another program", part))
        seen.setdefault(part.port, part)
    if problems:
        settings = " ".join(f"{part.setting}={free_port()}" for _, part in problems)
        raise OperatorError("\n".join(message for message, _ in problems), f"stop that program, or choose another port, for example: {settings} tocsin up")


def _is_free(host: str, port: int) -> bool:
    """False only where somebody has the port; another reason is told by the part itself, when it binds."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


async def answers(nats_url: str) -> bool:
    """Whether somebody listens at one of the servers of a NATS URL, now."""
    for url in nats_url.split(","):
        server = urlsplit(url.strip())
        with contextlib.suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(PATIENCE):
                _, writer = await asyncio.open_connection(server.hostname, server.port or DEFAULT_NATS_PORT)
            writer.close()
            return True
    return False
