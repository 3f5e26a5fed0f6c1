"""tocsin.client's Publisher and its subscriptions to live messages, over real gateways."""

from __future__ import annotations

import asyncio
import time

import jwt
import msgspec
import pytest

from tests.support import servers
from tests.support.gateway import running_gateway
from tests.support.stream import Stream
from tocsin.client import Delivery, Publisher, SubscribeError, subscribe
from tocsin.errors import Unavailable
from tocsin.stack.process import free_port

SECRET = "a-secret-of-at-least-thirty-two-bytes"


def token(**claims: object) -> str:
    return jwt.encode({"exp": int(time.time()) + 600, "sub": "alice", "subscribe": ["pg.>"], **claims}, SECRET, "HS256")


async def test_a_message_comes_to_a_subscription_and_the_publisher_outlives_its_gateway(stream: Stream, nats_server: servers.Server) -> None:
    rooms, port = f"pg.{stream.source}.live.room", free_port()
    asked: list[str] = []

    def fresh() -> str:
        asked.append(token(publish=[f"{rooms}.*"]))
        return asked[-1]

    async with asyncio.timeout(60), Publisher(f"http://127.0.0.1:{port}", token=fresh) as alice:
        with pytest.raises(Unavailable):
            await alice.publish(f"{rooms}.7", 1)
        for round_ in (1, 2):
            async with running_gateway(nats_server.url, stream.source, port=port, jwt_secret=SECRET) as gateway:
                live = asyncio.Event()

                def told(state: str, _error: BaseException | None, live: asyncio.Event = live) -> None:
                    if state == "live":
                        live.set()

                async with subscribe(gateway.url, f"{rooms}.>", token=token(), on_state=told) as events:
                    first = asyncio.ensure_future(anext(aiter(events)))
                    await live.wait()
                    id_ = await said(alice, f"{rooms}.7", {"text": "hi", "round": round_})
                    heard = await first
                    assert isinstance(heard, Delivery)
                    assert (heard.id, heard.data, heard.position) == (id_, {"text": "hi", "round": round_}, "")
                    assert msgspec.to_builtins(heard.event)["user"] == "alice"
                with pytest.raises(SubscribeError, match="forbidden"):
                    await alice.publish(f"pg.{stream.source}.live.elsewhere", 1)
                assert await alice.publish(f"{rooms}.8", None), "a refusal leaves the connection"
        assert len(asked) == 2, "one token for each connection that was made"


async def said(publisher: Publisher, subject: str, data: object) -> str:
    """Again where the connection of before had gone with its gateway."""
    try:
        return await publisher.publish(subject, data)
    except Unavailable:
        return await publisher.publish(subject, data)


async def test_a_token_that_is_refused_is_said(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as gateway, Publisher(gateway.url, token="garbage") as nobody:
        for _ in range(2):
            with pytest.raises(SubscribeError, match="unauthenticated"):
                await nobody.publish(f"pg.{stream.source}.live.room.7", 1)
