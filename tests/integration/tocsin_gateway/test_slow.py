"""A client that stops reading costs a bounded amount, is cut off, and nobody else notices; one that reads is not taken for slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.integration.tocsin_gateway.test_hostile import resident
from tests.support.gateway import Peer, RunningGateway, numbers, peer
from tests.support.stream import Stream
from tocsin_gateway.limits import PAGES_AT_ONCE
from tocsin_gateway.stream.replay import Pages


async def stalled(gateway: RunningGateway, *messages: str) -> Any:
    """A client that has read `subscribed`, and nothing since; its kernel keeps little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.port))
    client = await connect(gateway.socket_url, sock=sock, compression=None, proxy=None, max_queue=1, ping_interval=None)
    await client.recv()
    for message in messages:
        await client.send(message)
        await client.recv()
    client.transport.pause_reading()
    return client


async def test_a_stalled_client_is_evicted_and_the_others_have_everything(gateway: RunningGateway, stream: Stream) -> None:
    """Both ways out: shared frames, and a socket with several subscriptions."""
    one = await stalled(gateway, '{"op":"subscribe","id":"a","subject":"pg.>"}')
    two = await stalled(gateway, '{"op":"subscribe","id":"a","subject":"pg.>"}', '{"op":"subscribe","id":"b","subject":"pg.*.change.>"}')
    async with peer(gateway) as healthy, peer(gateway) as several:
        await healthy.subscribe("pg.>")
        await several.subscribe("pg.>", "a")
        await several.subscribe("pg.*.change.>", "b")
        before = resident()
        for _ in range(40):
            await stream.publish(*[stream.subject()] * 10, note="x" * 20_000)
            await healthy.events(10)
            await several.events(10)
        await gateway.until_metric("tocsin_gateway_evictions_total", 2.0)
        await gateway.until_metric("tocsin_gateway_clients", 2.0, kind="websocket")
        assert resident() - before < 64 << 20
        await stream.publish(stream.subject())
        assert numbers(await healthy.events(1)) == numbers(await several.events(1)) == [401]
    for client in (one, two):
        client.transport.abort()


async def test_an_evicted_client_is_told_4411_if_it_reads_again_and_resumes_whole(gateway: RunningGateway, stream: Stream) -> None:
    client = await stalled(gateway, '{"op":"subscribe","id":"a","subject":"pg.>"}')
    for _ in range(120):
        await stream.publish(*[stream.subject()] * 10, note="x" * 5_000)
        if await gateway.metric("tocsin_gateway_evictions_total"):
            break
    client.transport.resume_reading()
    seen = Peer(client)
    frames: list[dict[str, Any]] = []
    code = 0
    while not code:
        try:
            frames.append(await seen.next())
        except Exception:  # noqa: BLE001
            code, _ = await seen.closed()
    assert code in (4411, 1006)
    assert numbers(frames) == list(range(1, len(frames) + 1))
    async with peer(gateway) as again:
        answer = await again.subscribe("pg.>", since=frames[-1]["position"] if frames else stream.position(0))
        assert answer["recovered"] is True
        assert numbers(await again.events(stream.number - len(frames))) == list(range(len(frames) + 1, stream.number + 1))


async def test_a_burst_of_large_events_evicts_nobody_who_reads(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as one, peer(gateway) as several:
        await one.subscribe("pg.>")
        await several.subscribe("pg.>", "a")
        await several.subscribe("pg.*.change.>", "b")
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.publish(*[stream.subject()] * 600, note="x" * 8_000))
            first = group.create_task(one.events(600))
            second = group.create_task(several.events(600))
        assert numbers(first.result()) == numbers(second.result()) == list(range(1, 601))
    assert await gateway.metric("tocsin_gateway_evictions_total") == 0


async def test_a_slow_replay_is_read_at_the_clients_pace_and_holds_up_nobody(gateway: RunningGateway, stream: Stream) -> None:
    for _ in range(20):
        await stream.publish(*[stream.subject()] * 50, note="x" * 10_000)
    slow = await stalled(gateway, '{"op":"subscribe","id":"a","subject":"pg.>","since":"start"}')
    before = resident()
    async with peer(gateway) as healthy:
        await healthy.subscribe("pg.>")
        for _ in range(10):
            await stream.publish(stream.subject())
            await healthy.events(1, patience=2)
    assert resident() - before < 16 << 20
    assert await gateway.metric("tocsin_gateway_evictions_total") == 0
    slow.transport.resume_reading()
    assert numbers(await Peer(slow).events(1010, patience=30)) == list(range(1, 1011))
    slow.transport.abort()


async def test_however_many_replay_few_pages_are_on_their_way_at_once(gateway: RunningGateway, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live events come over the same connection to NATS: they would wait behind all of the pages."""
    await stream.publish_many([stream.subject()] * 600)
    fetch, under_way, most = Pages._fetch, 0, 0

    async def counted(pages: Pages) -> object:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await fetch(pages)
        finally:
            under_way -= 1

    monkeypatch.setattr(Pages, "_fetch", counted)
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(30):
        peers = [await stack.enter_async_context(peer(gateway)) for _ in range(4 * PAGES_AT_ONCE)]
        for each in peers:
            await each.send(op="subscribe", id="a", subject="pg.>", since="start")
        for each in peers:
            await each.until("subscribed")
            assert numbers(await each.events(600)) == list(range(1, 601))
    assert most == PAGES_AT_ONCE
