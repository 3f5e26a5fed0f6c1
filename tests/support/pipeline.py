"""The whole pipeline as its users run it: servers of its own, and each service a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from tests.support.servers import NATS_SERVER, POSTGRES_BIN
from tocsin.stack import process
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.postgres_server import PostgresServer

DATABASE = "shop"


@dataclass(slots=True)
class Pipeline:
    """Servers and services; `environment` is what a `tocsin` command needs to find them."""

    folder: Path
    source: PostgresServer
    nats: NatsServer
    replica: PostgresServer | None
    environment: dict[str, str]
    services: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def source_url(self) -> str:
        return self.source.url(DATABASE)

    @property
    def replica_url(self) -> str:
        assert self.replica is not None, "this pipeline has no replica"
        return self.replica.url(DATABASE)

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['TOCSIN_GATEWAY_PORT']}"

    @property
    def socket_url(self) -> str:
        return f"ws://127.0.0.1:{self.environment['TOCSIN_GATEWAY_PORT']}/ws"

    @property
    def listener_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['TOCSIN_LISTENER_PORT']}"

    @property
    def check_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['TOCSIN_CHECK_PORT']}"

    async def tocsin(self, *arguments: str, expect: int | None = 0) -> str:
        """Run one `tocsin` command to its end; what it printed on both outputs."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tocsin.cli.main", *arguments, env=self.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await child.communicate()
        text = output.decode()
        assert expect is None or child.returncode == expect, f"tocsin {' '.join(arguments)} ended with {child.returncode}:\n{text}"
        return text

    async def pgbench(self, script: str, *, writers: int, seconds: int, prepared: bool = False) -> tuple[int, float]:
        """(transactions that pgbench committed, transactions a second)"""
        path = self.folder / "load.sql"
        path.write_text(script)
        child = await asyncio.create_subprocess_exec(
            str(self.source.bin / "pgbench"),
            *("-n", "-M", "prepared" if prepared else "simple", "-f", str(path), "-c", str(writers), "-j", "2", "-T", str(seconds), self.source_url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"LD_LIBRARY_PATH": str(self.source.bin.parent / "lib")},
        )
        output, _ = await child.communicate()
        text = output.decode()
        assert child.returncode == 0, text
        processed = next(line for line in text.splitlines() if "actually processed" in line)
        rate = next(line for line in text.splitlines() if line.startswith("tps"))
        return int(processed.rsplit(":", 1)[1].split("/")[0]), float(rate.split()[2])

    async def start(self, service: str, *, ready: bool = True, name: str | None = None, **environment: Any) -> asyncio.subprocess.Process:
        """Start `tocsin <service>`, and wait until its /readyz says so."""
        child = await process.start(
            sys.executable, "-m", "tocsin.cli.main", service, log=self.folder / f"{name or service}.log", env={**self.environment, **environment}
        )
        self.services[name or service] = child
        if ready:
            port = {**self.environment, **environment}[f"TOCSIN_{service.upper()}_PORT"]
            await self.until_ready(f"http://127.0.0.1:{port}", child, name or service)
        return child

    async def until_ready(self, url: str, child: asyncio.subprocess.Process, name: str, *, patience: float = 30) -> None:
        async with httpx.AsyncClient() as client:
            try:
                async with asyncio.timeout(patience):
                    while True:
                        assert child.returncode is None, f"{name} ended with {child.returncode}:\n{process.tail(self.folder / f'{name}.log', 30)}"
                        with contextlib.suppress(httpx.HTTPError):
                            if (await client.get(f"{url}/readyz")).status_code == 200:
                                return
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise AssertionError(f"{name} was not ready after {patience} s:\n{process.tail(self.folder / f'{name}.log', 30)}") from None

    async def kill(self, name: str) -> None:
        """kill -9 of one service."""
        child = self.services.pop(name)
        child.kill()
        await child.wait()

    async def stop(self, name: str) -> int:
        """SIGTERM; the exit code."""
        child = self.services.pop(name)
        await process.stop(child)
        assert child.returncode is not None
        return child.returncode


@contextlib.asynccontextmanager
async def pipeline(
    *, replica: bool = False, configuration: Mapping[str, str] | None = None, sync: str = "2m", nats_extra: str = "", **settings: Any
) -> AsyncIterator[Pipeline]:
    """Servers with an empty database `shop`, no service started; all of it ends with the context."""
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        source = PostgresServer(folder / "source", process.free_port(), configuration=configuration, bin_folder=POSTGRES_BIN)
        copy = PostgresServer(folder / "replica", process.free_port(), configuration=configuration, bin_folder=POSTGRES_BIN) if replica else None
        nats = NatsServer(folder / "nats", process.free_port(), sync=sync, extra=nats_extra, program=NATS_SERVER)
        running = Pipeline(folder, source, nats, copy, _environment(source, copy, nats, settings))
        databases = [source, copy] if copy else [source]
        servers: list[PostgresServer | NatsServer] = [*databases, nats]
        try:
            async with asyncio.TaskGroup() as group:
                for server in servers:
                    group.create_task(server.start())
            for database in databases:
                connection = await asyncpg.connect(database.url())
                await connection.execute(f"CREATE DATABASE {DATABASE}")
                await connection.close()
            yield running
        finally:
            for child in running.services.values():
                await process.stop(child, patience=5)
            for server in servers:
                await server.stop()


@contextlib.asynccontextmanager
async def watched_table(create: str, *watch: str) -> AsyncIterator[Pipeline]:
    """A pipeline with one table, made by the statement `create` and watched as `tocsin watch` is told; listener and gateway run."""
    async with pipeline() as running:
        connection = await asyncpg.connect(running.source_url)
        await connection.execute(create)
        await connection.close()
        await running.tocsin("install")
        await running.tocsin("watch", *watch)
        await running.start("listener")
        await running.start("gateway")
        yield running


def _environment(source: PostgresServer, replica: PostgresServer | None, nats: NatsServer, settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TOCSIN_")}
    return {
        **inherited,
        "TOCSIN_DATABASE_URL": source.url(DATABASE),
        **({"TOCSIN_REPLICA_URL": replica.url(DATABASE)} if replica else {}),
        "TOCSIN_NATS_URL": nats.url,
        "TOCSIN_LISTENER_PORT": str(process.free_port()),
        "TOCSIN_GATEWAY_PORT": str(process.free_port()),
        "TOCSIN_CHECK_PORT": str(process.free_port()),
        **settings,
    }
