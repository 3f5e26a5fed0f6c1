"""A child process that ends with us, and the free port it listens on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def free_port() -> int:
    """A port that was free a moment ago on 127.0.0.1."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def port_is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex((host, port)) == 0


async def start(
    *command: str, log: Path, user: str | None = None, env: dict[str, str] | None = None, cwd: str | None = None, die_with_parent: int | None = signal.SIGTERM
) -> asyncio.subprocess.Process:
    """Start a child in a session of its own, its output appended to `log`; on Linux it gets a signal if we are killed."""

    def before_exec() -> None:
        if _libc is not None and die_with_parent is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, die_with_parent)

    extra: dict[str, object] = {"user": user, "group": user, "extra_groups": []} if user else {}
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=before_exec,
            **extra,  # type: ignore[arg-type]
        )


async def stop(child: asyncio.subprocess.Process, number: int = signal.SIGTERM, *, patience: float = 10.0) -> None:
    """Ask the child to end, and kill it after `patience` seconds; returns when it is gone."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)
    try:
        async with asyncio.timeout(patience):
            await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def alive(pid: int) -> bool:
    """Whether a process with this pid exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
