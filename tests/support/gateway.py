"""A gateway in this process or one of its own, and the plain client that tests talk to it with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tocsin.settings import Settings
from tocsin.stack import process
from tocsin.stack.process import free_port
from tocsin_gateway.__main__ import serve
from tocsin_gateway.limits import Limits


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """Where it listens."""

    port: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def until_ready(self) -> None:
        async with httpx.AsyncClient() as client, asyncio.timeout(20):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.02)

    async def metric(self, name: str, **labels: str) -> float:
        """The present value of one of its metrics, 0 where it has none of these labels."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.url}/metrics")).text
        shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
        wanted = f"{name}{{{shown}}} " if shown else f"{name} "
        return next((float(line.removeprefix(wanted)) for line in text.splitlines() if line.startswith(wanted)), 0.0)

    async def until_metric(self, name: str, value: float, **labels: str) -> None:
        async with asyncio.timeout(15):
            while await self.metric(name, **labels) != value:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running_gateway(
    nats_url: str, source: str, *, ready: bool = True, port: int | None = None, limits: Limits | None = None, **settings: Any
) -> AsyncIterator[RunningGateway]:
    """Served in this process's loop for as long as the context lasts."""
    running = RunningGateway(port or free_port())
    stop = running.stop
    chosen = Settings(nats_url=nats_url, source=source, gateway_port=running.port, **settings)
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(chosen, stop, limits))
        try:
            if ready:
                await running.until_ready()
            yield running
        finally:
            stop.set()


async def gateway_process(gateway: RunningGateway, nats_url: str, source: str, log: Path, **environment: str) -> asyncio.subprocess.Process:
    """`tocsin gateway` as a process of its own at `gateway`'s port, ready; `environment` are more of its settings. End it with process.kill."""
    settings = {"TOCSIN_NATS_URL": nats_url, "TOCSIN_SOURCE": source, "TOCSIN_GATEWAY_PORT": str(gateway.port), **environment}
    child = await process.start(sys.executable, "-m", "tocsin.cli.main", "gateway", log=log, env={**os.environ, **settings})
    await gateway.until_ready()
    return child


@dataclass(slots=True)
class Peer:
    """A WebSocket client that shows every frame as it is."""

    socket: ClientConnection
    welcome: dict[str, Any] = field(default_factory=dict)

    async def send(self, **message: Any) -> None:
        await self.socket.send(msgspec.json.encode(message).decode())

    async def next(self, *, patience: float = 10) -> dict[str, Any]:
        async with asyncio.timeout(patience):
            frame: dict[str, Any] = msgspec.json.decode(await self.socket.recv())
            return frame

    async def until(self, op: str, *, patience: float = 10) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(the first frame of that op, the frames before it)"""
        before: list[dict[str, Any]] = []
        async with asyncio.timeout(patience):
            while True:
                frame = msgspec.json.decode(await self.socket.recv())
                if frame["op"] == op:
                    return frame, before
                before.append(frame)

    async def subscribe(self, subject: str, id: str = "a", **options: Any) -> dict[str, Any]:  # noqa: A002  # the field's name
        """The answer: subscribed or error. Events of other subscriptions must not come in between."""
        await self.send(op="subscribe", id=id, subject=subject, **options)
        return await self.next()

    async def events(self, count: int, *, patience: float = 20) -> list[dict[str, Any]]:
        """The next event frames; other frames but `position` must not come in between."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(patience):
            while len(found) < count:
                frame = msgspec.json.decode(await self.socket.recv())
                if frame["op"] != "position":
                    assert frame["op"] == "event", frame
                    found.append(frame)
        return found

    async def nothing_more(self) -> None:
        """No event is on its way: what was handed out before a ping's answer has come before it."""
        await self.send(op="ping")
        _, before = await self.until("pong")
        assert [frame for frame in before if frame["op"] != "position"] == []

    async def closed(self, *, patience: float = 10) -> tuple[int, str]:
        """The close code and reason; 1006 where there was no close frame."""
        async with asyncio.timeout(patience):
            try:
                while True:
                    await self.socket.recv()
            except ConnectionClosed as end:
                return (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "")


def numbers(frames: list[dict[str, Any]]) -> list[int]:
    """The journal numbers of event frames."""
    return [int(frame["event"]["sequence"]) for frame in frames]


@contextlib.asynccontextmanager
async def peer(gateway: RunningGateway, query: str = "", **options: Any) -> AsyncIterator[Peer]:
    """Connected, and welcomed."""
    async with connect(f"{gateway.socket_url}{query}", **{"compression": None, "proxy": None, "max_size": None, **options}) as socket:
        made = Peer(socket)
        made.welcome = await made.next()
        assert made.welcome["op"] == "welcome"
        yield made
