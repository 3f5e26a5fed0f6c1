"""Parts that die are started again, and what they said last is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tocsin.stack.supervisor import Supervisor


class Failing:
    """Ends with 1 at once, as a service does that could not begin; lives from its second start on."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1
        self.log.write_text("a line\nerror: the schema tocsin is of version 4; this program needs 5\nfix: tocsin install\n")

    async def wait(self) -> int:
        if self.starts > 1:
            await asyncio.Event().wait()
        return 1

    async def stop(self) -> None:
        pass


async def test_why_a_part_ended_stands_in_the_line_that_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    part = Failing(tmp_path / "log")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        supervisor = Supervisor(group, said.append)
        await supervisor.start("listener", part, rank=0)
        while part.starts < 2:
            await asyncio.sleep(0.01)
        await supervisor.stop()
    (line,) = said
    assert line.startswith("listener ended with exit code 1, error: the schema tocsin is of version 4; this program needs 5; starting it again in 0.")
