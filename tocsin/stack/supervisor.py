"""Keeps the parts running: starts again what died, with growing jittered pauses, and stops all of them in order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from tocsin.errors import OperatorError, TocsinError
from tocsin.stack import process

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
SETTLED: Final = 30.0
"""Seconds of life after which a part's next death counts as its first."""
BAD_SETTING: Final = 2
"""The exit code of a service that a person has to change something for; starting it again would not help."""

Say = Callable[[str], None]


class Part(Protocol):
    """A child process, or a server made of several: the embedded servers and ServiceProcess."""

    @property
    def log(self) -> Path: ...
    async def start(self) -> None: ...
    async def wait(self) -> int: ...
    async def stop(self) -> None: ...


class Supervisor:
    """Parts by name, each with a rank: `stop` goes from the highest rank to the lowest, those of one rank together.

    `group` owns the tasks that watch; `say` gets one line for each thing that a person should know.
    """

    def __init__(self, group: asyncio.TaskGroup, say: Say) -> None:
        self._group = group
        self._say = say
        self._parts: dict[str, tuple[int, Part]] = {}
        self._watches: list[asyncio.Task[None]] = []

    async def start(self, name: str, part: Part, *, rank: int) -> None:
        """Start a part for the first time, and keep it running from then on. Raises what its start raises."""
        self._parts[name] = (rank, part)
        await part.start()
        self._watches.append(self._group.create_task(self._keep(name, part), name=f"keep {name}"))

    async def stop(self) -> None:
        """Stop every part in order. Cancelled, it still tells every part to go."""
        for task in self._watches:
            task.cancel()
        for rank in sorted({rank for rank, _ in self._parts.values()}, reverse=True):
            async with asyncio.TaskGroup() as stopping:
                for name, (own, part) in self._parts.items():
                    if own == rank:
                        stopping.create_task(part.stop(), name=f"stop {name}")

    async def _keep(self, name: str, part: Part) -> None:
        deaths = 0
        while True:
            begin = time.monotonic()
            code = await part.wait()
            if code == BAD_SETTING:
                raise OperatorError(f"{name} can't run as it is set up:\n{_last_words(part.log)}", f"correct that and start again; its log is {part.log}")
            deaths = 1 if time.monotonic() - begin > SETTLED else deaths + 1
            await self._start_again(name, part, f"ended with {_told(code)}{_why(part.log) if code > 0 else ''}", deaths)

    async def _start_again(self, name: str, part: Part, reason: str, deaths: int) -> None:
        while True:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (deaths - 1)) * random.uniform(0.75, 1.25)  # noqa: S311  # jitter, not a secret
            self._say(f"{name} {reason}; starting it again in {pause:.1f} s (log: {part.log})")
            await asyncio.sleep(pause)
            try:
                await part.start()
            except (TocsinError, OSError) as error:
                deaths += 1
                reason = f"did not start: {str(error).splitlines()[0]}"
            else:
                return


def _last_words(log: Path) -> str:
    """What a command of ours says before it ends: `error: …`, and its fix. The log has those of earlier runs too."""
    before, error, last = f"\n{process.tail(log)}".rpartition("\nerror: ")
    return f"error: {last}" if error else before.strip()


def _why(log: Path) -> str:
    said = _last_words(log)
    return f", {said.splitlines()[0]}" if said.startswith("error: ") else ""


def _told(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
