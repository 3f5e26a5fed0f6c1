"""`tocsin gateway --workers`: processes that share a port, whole ones, killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import jwt
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from tests.support import servers
from tests.support.gateway import RunningGateway
from tests.support.stream import Stream
from tocsin.client import subscribe
from tocsin.stack import process

CLIENTS = 24
SECRET = "a secret of at least thirty-two bytes!"


def children(pid: int) -> list[int]:
    """Of one process, in the order of their start."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.asynccontextmanager
async def started(nats_url: str, source: str, log: Path, **settings: str) -> AsyncIterator[tuple[RunningGateway, asyncio.subprocess.Process]]:
    """A gateway of two workers, both of which answer."""
    gateway = RunningGateway(process.free_port())
    child = await process.start(
        *(sys.executable, "-m", "tocsin.cli.main", "gateway", "--workers", "2"),
        log=log,
        env={**os.environ, "TOCSIN_NATS_URL": nats_url, "TOCSIN_SOURCE": source, "TOCSIN_GATEWAY_PORT": str(gateway.port), **settings},
    )
    try:
        await until_both_count(gateway)
        yield gateway, child
    finally:
        await process.stop(child)


async def until_both_count(gateway: RunningGateway) -> str:
    """The metrics, once they hold both workers'."""
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{gateway.url}/readyz")).status_code == 200:
                    text = (await client.get(f"{gateway.url}/metrics")).text
                    if all(f'tocsin_gateway_subscriptions{{worker="{number}"}}' in text for number in (0, 1)):
                        return text
            await asyncio.sleep(0.05)


class Reader:
    """A client that resumes by itself."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.lives = 0

    async def read(self, gateway: RunningGateway, stream: Stream) -> None:
        def on_state(state: str, _error: BaseException | None) -> None:
            self.lives += state == "live"

        async with subscribe(gateway.url, stream.subject(), on_state=on_state) as events:
            async for delivery in events:
                self.seen.append(int(delivery.event.sequence))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_clients_of_a_killed_worker_come_back_and_lose_nothing(stream: Stream, nats_server: servers.Server, tmp_path: Path) -> None:
    """The other worker's clients notice nothing; the killed one is there again; SIGTERM ends both."""
    log = tmp_path / "gateway.log"
    async with started(nats_server.url, stream.source, log) as (gateway, child), asyncio.TaskGroup() as group:
        readers = [Reader() for _ in range(CLIENTS)]
        reading = [group.create_task(reader.read(gateway, stream)) for reader in readers]
        await until(lambda: all(reader.lives == 1 for reader in readers))
        shares = [await gateway.metric("tocsin_gateway_clients", worker=str(number), kind="websocket") for number in (0, 1)]
        assert sum(shares) == CLIENTS
        assert min(shares) > 0, "the kernel shares connections out"
        await stream.publish_many([stream.subject()] * 50)
        await until(lambda: all(len(reader.seen) == 50 for reader in readers))
        workers = children(child.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        await stream.publish_many([stream.subject()] * 50)
        await until(lambda: all(len(reader.seen) == 100 for reader in readers))
        assert sum(reader.lives > 1 for reader in readers) in (shares[0], shares[1]), "only the killed worker's clients had to come back"
        await until(lambda: len(children(child.pid)) == 2)
        await until_both_count(gateway)
        await stream.publish_many([stream.subject()] * 10)
        await until(lambda: all(reader.seen == list(range(1, 111)) for reader in readers))
        for task in reading:
            task.cancel()
        last = children(child.pid)
        await process.stop(child, patience=20)
        assert child.returncode == 0, process.tail(log, 30)
        assert not any(Path(f"/proc/{pid}").exists() for pid in last)


async def test_a_users_connections_are_counted_over_all_workers(stream: Stream, nats_server: servers.Server, tmp_path: Path) -> None:
    """As many as the limit says get in, whichever worker the kernel gives them; a killed worker's count no more, and one that leaves gives its place back."""
    settings = {"TOCSIN_JWT_SECRET": SECRET, "TOCSIN_LIMITS": "connections_per_user=5"}
    alice = {"Authorization": "Bearer " + jwt.encode({"sub": "alice", "subscribe": ["pg.>"], "exp": time.time() + 600}, SECRET, "HS256")}

    async with contextlib.AsyncExitStack() as stack:
        gateway, child = await stack.enter_async_context(started(nats_server.url, stream.source, tmp_path / "gateway.log", **settings))

        async def come(times: int) -> list[ClientConnection]:
            inside = []
            for _ in range(times):
                socket = await stack.enter_async_context(connect(gateway.socket_url, additional_headers=alice, compression=None, proxy=None))
                with contextlib.suppress(ConnectionClosed):
                    while msgspec.json.decode(await socket.recv())["op"] != "authenticated":
                        pass
                    inside.append(socket)
            return inside

        inside = await come(15)
        assert len(inside) == 5
        shares = [await gateway.metric("tocsin_gateway_clients", worker=str(number), kind="websocket") for number in (0, 1)]
        assert sum(shares) == 5
        await inside.pop().close()
        async with asyncio.timeout(10):
            while not (came := await come(1)):
                await asyncio.sleep(0.05)
        inside += came
        os.kill(children(child.pid)[0], signal.SIGKILL)
        await until(lambda: len(children(child.pid)) == 2)
        await until_both_count(gateway)
        living = [socket for socket in inside if socket.state is State.OPEN]
        assert len(await come(15)) == 5 - len(living)


async def test_workers_end_with_whoever_started_them(stream: Stream, nats_server: servers.Server, tmp_path: Path) -> None:
    async with started(nats_server.url, stream.source, tmp_path / "gateway.log") as (gateway, child):
        workers = children(child.pid)
        await process.kill(child)
        await until(lambda: not process.port_is_open(gateway.port))
        await until(lambda: all(not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in workers))


@pytest.mark.parametrize("arguments", [("--workers", "0"), ("--workers", "two")])
async def test_a_number_of_workers_is_at_least_one(arguments: tuple[str, ...]) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tocsin.cli.main", "gateway", *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await child.communicate()
    assert child.returncode == 2
    assert "--workers" in output.decode()
