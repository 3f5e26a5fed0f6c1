"""A WebSocket server that speaks the gateway's frames and does to its clients what a test says: cut, go silent, refuse, lose.

It is for what the real gateway can't be made to do at a chosen frame. Whether a client and the real gateway agree is tested
against the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

EPOCH = "abcdefghij"


@dataclass(slots=True)
class ScriptedGateway:
    """Keeps a stream of numbered events; `cut_after` ends a connection after so many events, and the connection
    with the number `silent` hears and says nothing."""

    events: list[dict[str, Any]] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    cut_after: int | None = None
    silent: int | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    closes: list[tuple[int, str]] = field(default_factory=list)
    oldest: int = 1
    epoch: str = EPOCH
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    server: Server | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{next(iter(self.server.sockets)).getsockname()[1]}"

    async def publish(self, *numbers: int) -> None:
        async with self.grown:
            self.events += [
                {
                    "specversion": "1.0",
                    "id": f"inc-{number}",
                    "source": "/pg/shop",
                    "type": "public.orders.insert",
                    "time": "2026-11-22T20:15:31.123456Z",
                    "sequence": str(number),
                    "txid": "7",
                    "data": {"op": "insert", "schema": "public", "table": "orders", "key": {"id": number}, "new": {"id": number}},
                }
                for number in numbers
            ]
            self.grown.notify_all()

    async def handle(self, socket: ServerConnection) -> None:
        self.connections += 1
        number = self.connections
        async with asyncio.TaskGroup() as group:
            following: list[asyncio.Task[None]] = []
            with contextlib.suppress(ConnectionClosed):
                await self._send(socket, op="welcome", version=1, limits={})
                async for text in socket:
                    message = msgspec.json.decode(text)
                    self.received.append(message)
                    if message["op"] == "ping" and number != self.silent:
                        await self._send(socket, op="pong")
                    elif message["op"] == "subscribe" and self.closes:
                        await socket.close(*self.closes.pop(0))
                    elif message["op"] == "subscribe" and self.answers:
                        await self._send(socket, **self.answers.pop(0))
                    elif message["op"] == "subscribe":
                        following.append(group.create_task(self._follow(socket, message, number)))
            for task in following:
                task.cancel()

    async def _follow(self, socket: ServerConnection, request: dict[str, Any], number: int) -> None:
        since = request["since"]
        epoch, _, text = since.partition("-")
        at = len(self.events) if since == "now" else 0 if since == "start" else int(text)
        reason = None
        if text and epoch != self.epoch:
            reason, at = "epoch", len(self.events)
        elif text and at < self.oldest - 1:
            reason, at = "expired", self.oldest - 1
        extra = {} if reason is None else {"reason": reason}
        await self._send(
            socket, op="subscribed", id=request["id"], subject=request["subject"], position=f"{self.epoch}-{at}", recovered=reason is None, **extra
        )
        sent = 0
        while True:
            async with self.grown:
                while len(self.events) <= at:
                    await self.grown.wait()
            event = self.events[at]
            at += 1
            if number == self.silent:
                continue
            await self._send(socket, op="event", subject="pg.shop.change.public.orders.insert", position=f"{self.epoch}-{at}", event=event)
            sent += 1
            if self.cut_after is not None and sent >= self.cut_after:
                socket.transport.abort()
                return

    async def _send(self, socket: ServerConnection, **message: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            await socket.send(msgspec.json.encode(message).decode())


@contextlib.asynccontextmanager
async def scripted_gateway(port: int = 0) -> AsyncIterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    async with serve(gateway.handle, "127.0.0.1", port, compression=None, ping_interval=None, close_timeout=0.2) as server:
        gateway.server = server
        yield gateway
