"""Several processes on one port: who starts them, starts them again, and ends them.

Each worker binds the port with SO_REUSEPORT and reads the stream by itself; the kernel shares the connections out. The
first process serves nothing: it holds the port, so that no other program of the user slips in, and supervises.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog

from tocsin.errors import OperatorError

log = structlog.get_logger("tocsin.gateway")

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
STEADY_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 10.0
CONFIGURATION: Final = 2


async def supervise(
    arguments: tuple[str, ...], given: bytes, count: int, stop: asyncio.Event, drain_seconds: float, on_end: Callable[[int], None] = lambda _number: None
) -> None:
    """Run `count` workers until `stop`; then all of them drain at once.

    A worker is `python <arguments> <number>`, reads `given` on its standard input, and ends when that is closed: so it does
    not outlive us, however we end. One that dies is started again, after `on_end` was called with its number and a pause
    that doubles. Raises OperatorError where a worker ends because its settings can't be served.
    """
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(_keep(arguments, given, number, stop, drain_seconds + GRACE_SECONDS, on_end))


async def _keep(arguments: tuple[str, ...], given: bytes, number: int, stop: asyncio.Event, patience: float, on_end: Callable[[int], None]) -> None:
    pause = FIRST_PAUSE
    while not stop.is_set():
        began = time.monotonic()
        code = await _run(arguments, given, number, stop, patience)
        on_end(number)
        if stop.is_set():
            return
        if code == CONFIGURATION:
            raise OperatorError("a worker of the gateway could not start", "its message is above", exit_code=CONFIGURATION)
        pause = FIRST_PAUSE if time.monotonic() - began > STEADY_SECONDS else min(2 * pause, LONGEST_PAUSE)
        log.warning("a worker ended and is started again", worker=number, code=code, seconds=pause)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await stop.wait()


async def _run(arguments: tuple[str, ...], given: bytes, number: int, stop: asyncio.Event, patience: float) -> int:
    """The exit code of one worker, which is asked to end at `stop`."""
    # In a session of its own: a Ctrl-C in the terminal is for us, and we tell the workers, once.
    child = await asyncio.create_subprocess_exec(sys.executable, *arguments, str(number), stdin=asyncio.subprocess.PIPE, start_new_session=True)
    try:
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(_end(child, stop, patience))
            with contextlib.suppress(ConnectionError):
                assert child.stdin is not None
                child.stdin.write(given)
                await child.stdin.drain()
            code = await child.wait()
            ending.cancel()
        return code
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _end(child: asyncio.subprocess.Process, stop: asyncio.Event, patience: float) -> None:
    await stop.wait()
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    await asyncio.sleep(patience)
    with contextlib.suppress(ProcessLookupError):
        child.kill()
