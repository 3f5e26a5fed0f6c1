"""The Python client against real gateways: who is there, and a token renewed on the living connection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import jwt
import pytest
import pytest_asyncio

from tests.support import servers
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.stream import Stream
from tocsin.client import Delivery, Joined, Left, Members, Publisher, SubscribeError, subscribe
from tocsin.stack.process import free_port

SECRET = "a-secret-of-at-least-thirty-two-bytes"


def token(seconds: float = 600, **claims: Any) -> str:
    return jwt.encode({"exp": time.time() + seconds, "subscribe": ["pg.>"], **claims}, SECRET, "HS256")


@pytest_asyncio.fixture
async def guarded(stream: Stream, nats_server: servers.Server) -> Any:
    async with asyncio.timeout(100), running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as running:
        yield running


async def test_who_is_there_comes_between_the_events_and_anew_after_a_lost_gateway(stream: Stream, nats_server: servers.Server) -> None:
    subject, port = stream.subject("orders", "*"), free_port()
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        alice = await stack.enter_async_context(subscribe(url, subject, presence=True, token=lambda: token(presence=True, sub="alice")))
        async with running_gateway(nats_server.url, stream.source, port=port, jwt_secret=SECRET):
            here = await anext(alice)
            assert isinstance(here, Members)
            assert [(member.client, member.user) for member in here.members] == [(here.client, "alice")]
            async with subscribe(url, subject, presence=True, token=token(presence=[subject], sub="bob")) as bob:
                seen = await anext(bob)
                assert isinstance(seen, Members)
                assert {member.user for member in seen.members} == {"alice", "bob"}
                joined = await anext(alice)
                assert isinstance(joined, Joined)
                assert (joined.member.client, joined.member.user) == (seen.client, "bob")
            assert await anext(alice) == Left(joined.member)
            await stream.publish(stream.subject())
            assert isinstance(await anext(alice), Delivery)
        async with running_gateway(nats_server.url, stream.source, port=port, jwt_secret=SECRET):
            again = await anext(alice)
            assert isinstance(again, Members)
            assert [member.user for member in again.members] == ["alice"]
            assert again.client != here.client


async def test_presence_that_the_token_does_not_allow_is_refused(guarded: RunningGateway, stream: Stream) -> None:
    async with asyncio.timeout(20), subscribe(guarded.url, stream.subject(), presence=True, token=token()) as live:
        with pytest.raises(SubscribeError, match="forbidden"):
            await anext(live)


async def test_a_token_is_renewed_on_the_living_connection(guarded: RunningGateway, stream: Stream) -> None:
    """Past the first token's end without a second connection: whether nothing comes, or more than can be taken."""
    stop = asyncio.Event()

    async def follow(subject: str) -> tuple[int, list[str]]:
        asked, states = 0, list[str]()

        async def fresh() -> str:
            nonlocal asked
            asked += 1
            return token(4)

        end = time.monotonic() + 5
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6), subscribe(guarded.url, subject, token=fresh, on_state=lambda state, _: states.append(state)) as live:
                async for _ in live:
                    if time.monotonic() > end:
                        break
        return asked, states

    async with asyncio.TaskGroup() as group:
        flood = group.create_task(_flood(stream, stop))
        quiet, busy = group.create_task(follow(stream.subject("quiet"))), group.create_task(follow(stream.subject()))
        followed = [await quiet, await busy]
        stop.set()
        await flood
    assert followed == [(2, ["connecting", "live"])] * 2


async def _flood(stream: Stream, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await stream.publish_many([stream.subject()] * 100)


async def test_a_renewed_token_that_allows_less_ends_the_subscription_with_forbidden(guarded: RunningGateway, stream: Stream) -> None:
    tokens = iter([token(2), token(600, subscribe=["pg.other.>"])])
    async with asyncio.timeout(20), subscribe(guarded.url, stream.subject(), token=lambda: next(tokens)) as live:
        with pytest.raises(SubscribeError, match="forbidden"):
            await anext(live)


async def test_a_publisher_whose_connection_ended_with_its_token_brings_a_fresh_one(guarded: RunningGateway, stream: Stream) -> None:
    room, lives = f"pg.{stream.source}.live.room", iter([1.2, 600])
    async with asyncio.timeout(30), Publisher(guarded.url, token=lambda: token(next(lives), publish=[room])) as alice:
        await alice.publish(room, 1)
        await guarded.until_metric("tocsin_gateway_clients", 0.0, kind="websocket")
        await alice.publish(room, 2)
