"""deploy/compose.yaml as it ships: the image is built, every container killed in turn under writes, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.support import oracle
from tocsin.stack.process import free_port

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SERVICES = ("listener", "gateway", "checker", "nats", "replica", "source")


class Compose:
    """A project of its own, on ports of its own."""

    def __init__(self) -> None:
        self.ports = {name: free_port() for name in ("SOURCE", "REPLICA", "NATS", "LISTENER", "GATEWAY", "CHECK")}
        self._environment = {**os.environ, **{f"PUBLISH_{name}": str(port) for name, port in self.ports.items()}}
        program = [found] if (found := shutil.which("docker-compose")) else ["docker", "compose"]
        self._command = [*program, "-p", f"tocsin-test-{os.getpid()}", "-f", str(ROOT / "deploy/compose.yaml")]

    async def run(self, *arguments: str) -> str:
        return await command(*self._command, *arguments, environment=self._environment)

    async def container(self, service: str) -> str:
        return (await self.run("ps", "-q", service)).split()[-1]

    async def kill(self, service: str) -> None:
        """kill -9 of its process, from outside as the kernel would; its restart policy brings it back."""
        name = await self.container(service)
        pid = int(await command("docker", "inspect", "--format", "{{.State.Pid}}", name))
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while await command("docker", "inspect", "--format", "{{.State.Running}} {{.RestartCount}}", name) != "true 1\n":
                await asyncio.sleep(0.1)

    def postgres(self, which: str) -> str:
        return f"postgresql://postgres:tocsin@127.0.0.1:{self.ports[which]}/shop"


async def command(*arguments: str, environment: dict[str, str] | None = None) -> str:
    child = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    output, _ = await child.communicate()
    assert child.returncode == 0, f"{' '.join(arguments)}:\n{output.decode()[-3000:]}"
    return output.decode()


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Compose]:
    await command("docker", "build", "--network", "host", "-f", "deploy/Dockerfile", "-t", "tocsin:local", ".")
    compose = Compose()
    try:
        await compose.run("up", "-d", "--no-build")
        for port in ("LISTENER", "GATEWAY", "CHECK"):
            await until_ready(compose, port)
        yield compose
    finally:
        await compose.run("down", "-v")


async def until_ready(compose: Compose, port: str) -> None:
    async with asyncio.timeout(120), httpx.AsyncClient(trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"http://127.0.0.1:{compose.ports[port]}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.2)


async def write(compose: Compose, ended: asyncio.Event) -> None:
    """One order every 10 ms, through whatever happens to the source; what is in the table at the end counts."""
    while not ended.is_set():
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError):
            source = await asyncpg.connect(compose.postgres("SOURCE"), timeout=3)
            try:
                while not ended.is_set():
                    await source.execute("INSERT INTO orders (customer_id) VALUES (1)")
                    await asyncio.sleep(0.01)
            finally:
                source.terminate()
        await asyncio.sleep(0.1)


async def orders(url: str) -> list[int]:
    connection = await asyncpg.connect(url)
    try:
        return [row["id"] for row in await connection.fetch("SELECT id FROM orders ORDER BY id")]
    finally:
        await connection.close()


async def test_every_container_is_killed_in_turn_and_nothing_is_lost() -> None:
    async with running() as compose:
        url = f"ws://127.0.0.1:{compose.ports['GATEWAY']}/ws"
        async with oracle.socket_client(url, "pg.shop.change.public.orders.>") as (seen, arrived):
            ended = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(write(compose, ended))
                await oracle.until_count(seen, arrived, 20)
                for service in SERVICES:
                    await compose.kill(service)
                    # Events flow again before the next one dies.
                    await oracle.until_count(seen, arrived, len(seen.events) + 100, patience=90)
                ended.set()
            written = await orders(compose.postgres("SOURCE"))
            await oracle.until_count(seen, arrived, len(written), patience=60)
            oracle.assert_same(written, sorted(set(seen.values("id"))), "table and client")
            oracle.assert_ordered_per_key(seen, "client")
        async with asyncio.timeout(60):
            while await orders(compose.postgres("REPLICA")) != written:
                await asyncio.sleep(0.2)
        async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
            while (await client.get(f"http://127.0.0.1:{compose.ports['CHECK']}/drift")).json()["status"] != "in_sync":
                await asyncio.sleep(0.5)
        async with asyncio.timeout(60):
            while (await compose.run("ps")).count("(healthy)") < 5:
                await asyncio.sleep(0.5)
