"""deploy/compose.yaml as it ships: the image is built, every container killed in turn under writes, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import jwt
import pytest
from websockets.asyncio.client import connect

from tests.support import containers, oracle
from tocsin import __version__
from tocsin.stack.process import free_port

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SERVICES = ("listener", "gateway", "checker", "nats", "replica", "source")


class Compose:
    """A project of its own, on ports of its own."""

    def __init__(self, file: str = "compose.yaml", **environment: str) -> None:
        self.ports = {name: free_port() for name in ("SOURCE", "REPLICA", "NATS", "LISTENER", "GATEWAY", "CHECK")}
        self._environment = {**os.environ, **{f"PUBLISH_{name}": str(port) for name, port in self.ports.items()}, **environment}
        program = [found] if (found := shutil.which("docker-compose")) else ["docker", "compose"]
        self._command = [*program, "-p", f"tocsin-test-{os.getpid()}", "-f", str(ROOT / "deploy" / file)]

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

    def publish_gateway(self) -> None:
        """compose.own.yaml takes the gateway's address and port, since it is the one that may be for all."""
        self._environment["PUBLISH_GATEWAY"] = f"127.0.0.1:{self.ports['GATEWAY']}"

    def postgres(self, which: str) -> str:
        return f"postgresql://postgres:tocsin@127.0.0.1:{self.ports[which]}/shop"


async def command(*arguments: str, environment: dict[str, str] | None = None) -> str:
    child = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    output, _ = await child.communicate()
    assert child.returncode == 0, f"{' '.join(arguments)}:\n{output.decode()[-3000:]}"
    return output.decode()


async def built() -> None:
    await command("docker", "build", "--network", "host", "-f", "deploy/Dockerfile", "-t", "tocsin:local", ".")


@contextlib.asynccontextmanager
async def running(compose: Compose) -> AsyncIterator[Compose]:
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


async def test_the_image_runs_as_nobody_knows_its_version_and_holds_no_test() -> None:
    await built()
    run = ("docker", "run", "--rm", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")
    assert await command(*run, "tocsin:local", "--version") == f"tocsin {__version__}\n"
    assert await command(*run, "--entrypoint", "id", "tocsin:local", "-u") == "65532\n"
    # Even without --read-only nothing but /tmp is this user's to write.
    writable = await command(
        *run, "--entrypoint", "sh", "tocsin:local", "-c", "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2>/dev/null; true"
    )
    assert {path.split("/")[1] for path in writable.split()} <= {"tmp", "var", "run"}, writable
    assert await command(*run, "--entrypoint", "sh", "tocsin:local", "-c", "find /opt/tocsin -name 'test_*' -path '*tocsin*/tests/*' -o -name '.env'") == ""
    assert await command(*run, "--entrypoint", "sh", "tocsin:local", "-c", "ls /opt/tocsin/bin | grep -E '^(pip|hatchling)' || true") == ""
    sizes = [int(await command("docker", "inspect", "--format", "{{.Size}}", image)) for image in ("tocsin:local", "python:3.11-slim-bookworm")]
    assert sizes[0] - sizes[1] < 65_000_000, "what it adds to its base"
    settings = await command("docker", "inspect", "--format", "{{json .Config.Env}}", "tocsin:local")
    assert not re.search(r"(PASSWORD|SECRET|_URL)=", settings), settings


async def test_every_container_is_killed_in_turn_and_nothing_is_lost() -> None:
    await built()
    async with running(Compose()) as compose:
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


def from_containers(url: str) -> str:
    """A URL of a port that is published on this machine, as a container reaches it."""
    found = subprocess.run(["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"], capture_output=True, check=True)
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.replace(str(parts.hostname), found.stdout.decode().strip())).geturl()


async def test_servers_of_ones_own_secrets_from_files_and_a_token() -> None:
    """deploy/compose.own.yaml with the steps at its head."""
    secret = secrets.token_hex(32)
    await built()
    async with contextlib.AsyncExitStack() as stack:
        source, own_url = await stack.enter_async_context(containers.postgres("source"))
        replica, _ = await stack.enter_async_context(containers.postgres("replica"))
        nats = await stack.enter_async_context(containers.nats())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tocsin-secrets-")))
        for name, value in (("database_url", from_containers(source)), ("replica_url", from_containers(replica)), ("nats_url", from_containers(nats))):
            (folder / name).write_text(value)
        (folder / "jwt_secret").write_text(secret)
        for file in folder.iterdir():
            file.chmod(0o400)
            os.chown(file, 65532, 65532)
        connection = await asyncpg.connect(source)
        stack.push_async_callback(connection.close)
        await connection.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        compose = Compose("compose.own.yaml", SECRETS=str(folder), SOURCE="shop")
        compose.publish_gateway()
        for verb in (("install",), ("watch", "orders"), ("replicate", "orders", "--source-url-from-replica", own_url)):
            await compose.run("run", "--rm", "--no-deps", "listener", *verb)
        await stack.enter_async_context(running(compose))
        address = f"127.0.0.1:{compose.ports['GATEWAY']}"
        async with httpx.AsyncClient(trust_env=False) as client:
            refused = await client.get(f"http://{address}/sse?subject=pg.>")
            assert refused.status_code == 401, refused.text
        token = jwt.encode({"sub": "test", "exp": int(time.time()) + 600, "subscribe": ["pg.shop.change.public.orders.>"]}, secret, "HS256")
        async with connect(f"ws://{address}/ws?subject=pg.shop.change.public.orders.>", additional_headers={"Authorization": f"Bearer {token}"}) as socket:
            frames: list[dict[str, Any]] = []
            async with asyncio.timeout(30):
                while not any(frame["op"] == "subscribed" for frame in frames):
                    frames.append(json.loads(await socket.recv()))
                await connection.execute("INSERT INTO orders VALUES (7)")
                while frames[-1]["op"] != "event":
                    frames.append(json.loads(await socket.recv()))
        assert frames[-1]["event"]["data"]["key"] == {"id": 7}
        async with asyncio.timeout(30):
            while await orders(replica) != [7]:
                await asyncio.sleep(0.1)
        environment = await command("docker", "inspect", "--format", "{{json .Config.Env}}", await compose.container("gateway"))
        assert secret not in environment
        assert "DATABASE_URL" not in environment
