"""The hostile inputs that no other file has; docs/hostile-inputs.md lists where each of the twenty is tried."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import pytest
from websockets.asyncio.client import connect

from tests.support import servers
from tests.support.gateway import RunningGateway, peer, running_gateway
from tests.support.stream import EPOCH_ONE, EPOCH_TWO, Stream
from tocsin_gateway.limits import Limits

SECRET = "a-secret-of-at-least-thirty-two-bytes"


async def test_a_cookie_opens_nothing(stream: Stream, nats_server: servers.Server) -> None:
    """H2. A browser sends cookies along with a foreign page's handshake; so nothing here reads them."""
    text = jwt.encode({"exp": int(time.time()) + 600, "subscribe": ["pg.>"]}, SECRET, "HS256")
    cookie = "; ".join(f"{name}={text}" for name in ("token", "access_token", "session", "Authorization", "bearer"))
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as gateway, peer(gateway, additional_headers={"Cookie": cookie}) as client:
        assert (await client.subscribe(stream.subject()))["code"] == "unauthenticated"


async def test_what_is_nats_s_own_is_denied_before_nats_is_asked(gateway: RunningGateway, stream: Stream) -> None:
    """H7."""
    async with peer(gateway) as client:
        for subject in (">", "*", "*.>", "$SYS.>", "$JS.>", "$JS.API.>", "_INBOX.>", "$KV.>", "$SRV.>", f"_tocsin.{stream.source}.>", "pgx.>"):
            assert (await client.subscribe(subject))["code"] == "forbidden", subject
        assert await gateway.metric("tocsin_gateway_errors_total", code="forbidden") == 11
    assert await stream.client.jetstream().consumers_info(stream.name) == []


@pytest.mark.parametrize(
    "subject", ["", ".", ".pg.x", "pg.x.", "pg..x", "pg.>.x", "pg.x*", "pg x", "pg.\tx", "pg.\ud7ff\u200bx", ".".join(["pg"] * 33), "pg." + "x" * 5000]
)
async def test_a_subject_that_is_none_is_answered_and_nats_never_sees_it(gateway: RunningGateway, stream: Stream, subject: str) -> None:
    """H9. A subject of 5,000 characters makes NATS drop the connection."""
    async with peer(gateway) as witness, peer(gateway) as client:
        await witness.subscribe(stream.subject())
        assert (await client.subscribe(subject))["code"] == "bad-subject"
        assert (await client.subscribe(stream.subject(), "b"))["op"] == "subscribed"
        await stream.publish(stream.subject())
        await witness.events(1)


async def test_a_storm_of_subscriptions_ends_at_the_limit_and_leaves_nothing(stream: Stream, nats_server: servers.Server) -> None:
    """H10."""
    async with running_gateway(nats_server.url, stream.source, limits=Limits(messages_per_second=5_000)) as gateway:
        async with peer(gateway) as client:
            for number in range(2_000):
                await client.send(op="subscribe", id=str(number), subject=stream.subject(f"t{number}"))
            codes: dict[str, int] = {}
            for _ in range(2_000):
                frame = await client.next(patience=30)
                codes[frame.get("code", frame["op"])] = codes.get(frame.get("code", frame["op"]), 0) + 1
            assert codes == {"subscribed": 128, "limit": 2_000 - 128}
            for _ in range(300):
                await client.send(op="unsubscribe", id="0")
                await client.send(op="subscribe", id="0", subject=stream.subject("t0"))
            await client.send(op="ping")
            await client.until("pong", patience=30)
        await gateway.until_metric("tocsin_gateway_subscriptions", 0.0)
        async with asyncio.timeout(20):
            while await stream.client.jetstream().consumers_info(stream.name):
                await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("since", "answer"),
    [
        (f"{EPOCH_ONE}--1", "bad-since"),
        (f"{EPOCH_ONE}-1.5", "bad-since"),
        (f"{EPOCH_ONE}-0x1", "bad-since"),
        ("1", "bad-since"),
        ("", "bad-since"),
        ("-", "bad-since"),
        (f"{EPOCH_ONE}-" + "9" * 19, "epoch"),
        (f"{EPOCH_ONE}-" + "9" * 4000, "bad-since"),
        (f"{EPOCH_TWO}-1", "epoch"),
        (f"{EPOCH_ONE}-1 OR 1=1", "bad-since"),
        ("99999999999999d", None),
    ],
)
async def test_a_position_that_is_none_or_another_s_is_told(gateway: RunningGateway, stream: Stream, since: str, answer: str | None) -> None:
    """H11."""
    await stream.publish(stream.subject(), stream.subject("secrets"))
    async with peer(gateway) as client:
        said: dict[str, Any] = await client.subscribe(stream.subject(), since=since)
        assert said.get("code", said.get("reason")) == answer or (answer is None and said["op"] in ("subscribed", "error")), said
        await client.send(op="ping")
        _, before = await client.until("pong")
        assert all(frame["subject"] == stream.subject() for frame in before if frame["op"] == "event")


async def test_compression_is_not_negotiated_so_there_is_no_bomb(gateway: RunningGateway) -> None:
    """H14."""
    async with connect(gateway.socket_url, compression="deflate", proxy=None) as socket:
        assert socket.response is not None
        assert "sec-websocket-extensions" not in socket.response.headers
        assert socket.protocol.extensions == []


async def test_many_replays_from_the_start_do_not_hold_up_the_living(gateway: RunningGateway, stream: Stream) -> None:
    """H12. Each costs one page at a time, at its reader's pace."""
    await stream.publish_many([stream.subject()] * 1_500)

    async def replay() -> int:
        async with peer(gateway) as client:
            assert (await client.subscribe(stream.subject(), since="start"))["op"] == "subscribed"
            return len(await client.events(1_500, patience=100))

    async with peer(gateway) as witness, asyncio.TaskGroup() as group:
        await witness.subscribe(stream.subject("live"))
        replays = [group.create_task(replay()) for _ in range(20)]
        delays = []
        while not all(task.done() for task in replays):
            began = time.monotonic()
            await stream.publish(stream.subject("live"))
            await witness.events(1)
            delays.append(time.monotonic() - began)
    assert [task.result() for task in replays] == [1_500] * 20
    assert sorted(delays)[len(delays) // 2] < 1, "gateway, readers and publisher share one process here"
