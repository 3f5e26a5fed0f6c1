"""`tocsin up` as a whole process, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tocsin.stack import process
from tocsin.stack.process import free_port

PORTS = ("GATEWAY_PORT", "LISTENER_PORT", "CHECK_PORT", "EMBEDDED_NATS_PORT", "EMBEDDED_SOURCE_PORT", "EMBEDDED_REPLICA_PORT")
MARK = "TOCSIN_TEST_MARK"


@dataclass(slots=True)
class Place:
    """A data folder, and the settings that every run on it shares."""

    folder: Path
    environment: dict[str, str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def port(self, name: str) -> int:
        return int(self.environment[f"TOCSIN_{name}"])

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{self.port('GATEWAY_PORT')}"

    @property
    def source_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port('EMBEDDED_SOURCE_PORT')}/shop"

    @property
    def replica_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port('EMBEDDED_REPLICA_PORT')}/shop"

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.port('EMBEDDED_NATS_PORT')}"

    def processes(self) -> dict[int, str]:
        """Every process that a run on this place started and that still runs: pid to command."""
        mark = f"{MARK}={self.environment[MARK]}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                # A server gets little of our environment, but its working folder, or its command, is in the place.
                ours = (
                    mark in (entry / "environ").read_bytes()
                    or str(self.folder) in command
                    or str(entry.joinpath("cwd").readlink()).startswith(str(self.folder))
                )
                if ours and process.alive(int(entry.name)):
                    found[int(entry.name)] = command
        return found

    async def until_gone(self, *, patience: float = 15) -> None:
        """Returns once no process of this place runs; fails with those that stay."""
        try:
            async with asyncio.timeout(patience):
                while self.processes():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"still running: {self.processes()}") from None


@dataclass(slots=True)
class Up:
    """A running `tocsin up`; `lines` is what it has printed, on both outputs."""

    place: Place
    child: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def until_line(self, beginning: str, *, patience: float = 60) -> str:
        """The first line that begins so."""
        try:
            async with asyncio.timeout(patience):
                while (line := next((line for line in self.lines if line.startswith(beginning)), None)) is None:
                    assert self.child.returncode is None, f"`tocsin up` ended with {self.child.returncode}:\n{self.text}"
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"no line begins with {beginning!r} after {patience} s:\n{self.text}{self.logs()}") from None
        return line

    def logs(self) -> str:
        return "".join(f"\n--- {log.name}\n{process.tail(log)}" for log in sorted(self.place.data.glob("*.log")))

    async def stop(self, number: int = signal.SIGTERM, *, patience: float = 30) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(number)
        return await self.ended(patience=patience)

    async def ended(self, *, patience: float = 60) -> int:
        async with asyncio.timeout(patience):
            return await self.child.wait()


@contextlib.asynccontextmanager
async def place(**settings: str) -> AsyncIterator[Place]:
    """A place of its own, with free ports; whatever still runs there at the end is killed. The folder has mode 0700."""
    with tempfile.TemporaryDirectory(prefix="tocsin-up-", ignore_cleanup_errors=True) as name:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TOCSIN_")}
        ports = {f"TOCSIN_{port}": str(free_port()) for port in PORTS}
        here = Place(Path(name), {**inherited, **ports, MARK: secrets.token_hex(8), **settings})
        try:
            yield here
        finally:
            for pid in here.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await here.until_gone()


@contextlib.asynccontextmanager
async def up(here: Place, *flags: str, settings: Mapping[str, str] | None = None, python: str | Path = sys.executable) -> AsyncIterator[Up]:
    """`tocsin up` on that place; stopped at the end if it still runs. `python` is the interpreter of another environment."""
    child = await asyncio.create_subprocess_exec(
        *(str(python), "-m", "tocsin.cli.main", "up", "--data", str(here.data), *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**here.environment, **(settings or {})},
        cwd=here.folder,
        start_new_session=True,
    )
    running = Up(here, child)

    async def read() -> None:
        assert child.stdout is not None
        async for line in child.stdout:
            running.lines.append(line.decode().rstrip())

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read())
        try:
            yield running
        finally:
            if child.returncode is None:
                await running.stop()
            await asyncio.wait({reading}, timeout=5)
            reading.cancel()
