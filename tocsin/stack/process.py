"""A child process that ends with us, what an earlier run left behind, and the ports they listen on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
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
    *command: str,
    log: Path,
    user: str | None = None,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
    die_with_parent: int | None = signal.SIGTERM,
    pid_file: Path | None = None,
) -> asyncio.subprocess.Process:
    """Start a child in a session of its own, its output appended to `log`; on Linux it gets a signal if we are killed.

    `pid_file` remembers it for `end_leftover`.
    """
    parent = os.getpid()

    def before_exec() -> None:
        if _libc is not None and die_with_parent is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, die_with_parent)
            if os.getppid() != parent:  # killed before the line above: nobody would tell this child
                os.kill(os.getpid(), signal.SIGKILL)

    extra: dict[str, object] = {"user": user, "group": user, "extra_groups": []} if user else {}
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
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
    if pid_file is not None:
        pid_file.write_text(f"{child.pid} {_birth(child.pid)}\n")
    return child


async def stop(child: asyncio.subprocess.Process, number: int = signal.SIGTERM, *, patience: float = 10.0) -> None:
    """Ask the child to end, and kill it after `patience` seconds, or when cancelled; returns when it is gone."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)
    try:
        async with asyncio.timeout(patience):
            await child.wait()
    except TimeoutError:
        await kill(child)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        raise


async def kill(child: asyncio.subprocess.Process) -> None:
    """kill -9; returns when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    await child.wait()


async def end_leftover(pid_file: Path, number: int = signal.SIGTERM, *, patience: float = 10.0) -> bool:
    """End the process that `start` noted in `pid_file`, if it is still that one; whether there was one.

    The file has the pid and the moment of its birth, so a stranger who got the same pid later is left alone.
    """
    try:
        pid_text, _, birth = pid_file.read_text().strip().partition(" ")
        pid = int(pid_text)
    except (OSError, ValueError):
        return False
    found = await end_pid(pid, number, patience=patience) if birth and _birth(pid) == birth else False
    pid_file.unlink(missing_ok=True)
    return found


async def end_pid(pid: int, number: int = signal.SIGTERM, *, patience: float = 10.0) -> bool:
    """End a process that is not a child of ours: a signal, then kill -9 after `patience` seconds; False where it was gone."""
    if not alive(pid):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    try:
        async with asyncio.timeout(patience):
            while alive(pid):
                await asyncio.sleep(0.02)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while alive(pid):
            await asyncio.sleep(0.02)
    return True


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def alive(pid: int) -> bool:
    """Whether a process with this pid runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) != "Z"


def command_of(pid: int) -> str:
    """The command that a process was started with; empty where there is none."""
    if _libc is None:
        return _ps(pid, "command")
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def working_in(folder: Path) -> list[int]:
    """The processes whose working folder this is, as far as we may see; on Linux alone, elsewhere none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == folder.resolve():
                found.append(int(entry.name))
    return found


def _state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return _stat(pid)[0]
    return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name, which may hold blanks and brackets: state, ppid, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _birth(pid: int) -> str:
    """When a process began: ticks since boot on Linux, a date elsewhere; empty where there is none."""
    if _libc is None:
        return _ps(pid, "lstart")
    with contextlib.suppress(OSError, IndexError):
        return _stat(pid)[19]
    return ""


def _ps(pid: int, column: str) -> str:
    return subprocess.run(["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
