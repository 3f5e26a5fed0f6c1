"""One Tocsin command as a child process: `tocsin listener`, `tocsin gateway`, `tocsin check`, `tocsin demo`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from tocsin.settings import child_environment
from tocsin.stack import process


class ServiceProcess:
    """`tocsin <verb>`, its output in `folder`/<verb>.log; `settings` are fields of Settings by name.

    `start` returns once the process exists, not once it is ready: each service waits for the servers it needs by itself.
    """

    def __init__(self, verb: str, folder: Path, settings: Mapping[str, str]) -> None:
        self.verb = verb
        self.log = folder / f"{verb}.log"
        self._pid_file = folder / f"{verb}.pid"
        self._settings = settings
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    async def end_leftover(self) -> bool:
        """End the one that an earlier run left behind; whether there was one."""
        return await process.end_leftover(self._pid_file)

    async def start(self) -> None:
        self._child = await process.start(
            sys.executable, "-m", "tocsin.cli.main", self.verb, log=self.log, env=child_environment(**self._settings), pid_file=self._pid_file
        )

    async def wait(self) -> int:
        """The exit code, once the process has ended."""
        assert self._child is not None, "start first"
        return await self._child.wait()

    async def stop(self) -> None:
        """SIGTERM, and kill -9 after 10 s."""
        if self._child is not None:
            await process.stop(self._child)
            self._child = None
            self._pid_file.unlink(missing_ok=True)
