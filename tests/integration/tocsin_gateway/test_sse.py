"""Server-sent events over /sse: named, resumed by Last-Event-ID, refused with a status, ended when the gateway is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import msgspec
import pytest

from tests.support import servers
from tests.support.gateway import RunningGateway, peer, running_gateway
from tests.support.stream import EPOCH_TWO, Stream

SECRET = "a-secret-of-at-least-thirty-two-bytes"


@dataclass(slots=True)
class Events:
    """The events of one response, as a browser's EventSource would read them."""

    response: httpx.Response
    lines: AsyncIterator[str]

    async def next(self) -> tuple[str, str | None, dict[str, Any]]:
        """(event, id, data)"""
        found: dict[str, str] = {}
        async with asyncio.timeout(15):
            async for line in self.lines:
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    assert name in {"event", "id", "data"}, line
                    found[name] = value
                elif not line and found:
                    return found["event"], found.get("id"), msgspec.json.decode(found["data"])
        raise EOFError

    async def events(self, count: int) -> list[tuple[int, str | None]]:
        """(journal number, id) of the next events; positions in between are left out."""
        result: list[tuple[int, str | None]] = []
        while len(result) < count:
            name, at, data = await self.next()
            if name == "event":
                result.append((int(data["event"]["sequence"]), at))
        return result


@contextlib.asynccontextmanager
async def events(gateway: RunningGateway, *subjects: str, since: str | None = None, **headers: str) -> AsyncIterator[Events]:
    query: list[tuple[str, Any]] = [("subject", subject) for subject in subjects] + ([("since", since)] if since else [])
    async with (
        httpx.AsyncClient(timeout=15, trust_env=False) as client,
        client.stream("GET", f"{gateway.url}/sse", params=query, headers={name.replace("_", "-"): value for name, value in headers.items()}) as response,
    ):
        yield Events(response, response.aiter_lines())


async def test_the_first_event_is_subscribed_and_every_event_has_its_position_as_id(gateway: RunningGateway, stream: Stream) -> None:
    async with events(gateway, stream.subject()) as source:
        assert source.response.headers["content-type"].startswith("text/event-stream")
        name, at, told = await source.next()
        assert "no event" in told.pop("hint")
        assert (name, at, told) == (
            "subscribed",
            stream.position(0),
            {"op": "subscribed", "id": "0", "subject": stream.subject(), "position": stream.position(0), "recovered": True},
        )
        await stream.publish(stream.subject(), stream.subject("customers"), stream.subject())
        assert await source.events(2) == [(1, stream.position(1)), (3, stream.position(3))]


async def test_a_browser_that_comes_back_with_last_event_id_misses_nothing(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 5)
    async with events(gateway, stream.subject(), since="now", last_event_id=stream.position(2)) as source:
        name, at, data = await source.next()
        assert (name, at, data["recovered"]) == ("subscribed", stream.position(2), True)
        assert await source.events(3) == [(number, stream.position(number)) for number in (3, 4, 5)]
        await stream.publish(stream.subject())
        assert await source.events(1) == [(6, stream.position(6))]


async def test_an_id_of_another_stream_is_told(gateway: RunningGateway, stream: Stream) -> None:
    async with events(gateway, stream.subject(), last_event_id=f"{EPOCH_TWO}-2") as source:
        _, _, data = await source.next()
        assert (data["recovered"], data["reason"]) == (False, "epoch")


async def test_two_subjects_resume_from_any_id_that_was_sent(gateway: RunningGateway, stream: Stream) -> None:
    """While one of them still replays, an id would skip the other's events: then there is none."""
    one, two = stream.subject("one"), stream.subject("two")
    await stream.publish(*[one, two] * 400)
    async with events(gateway, one, two, since="start") as source:
        numbers: list[int] = []
        ids: list[tuple[int, str]] = []
        while len(numbers) < 800:
            name, at, data = await source.next()
            if name == "event":
                numbers.append(int(data["event"]["sequence"]))
                if at is not None:
                    ids.append((len(numbers), at))
        assert sorted(numbers) == list(range(1, 801))
        for count, at in ids:
            assert set(range(1, int(at.partition("-")[2]) + 1)) <= set(numbers[:count]), "everything up to an id had been sent"
        await stream.publish(two, one)
        assert [number for number, _ in await source.events(2)] == [801, 802]
        await stream.publish(one)
        ((_, last),) = await source.events(1)
    assert last == stream.position(803)
    await stream.publish(one, two)
    async with events(gateway, one, two, last_event_id=stream.position(803)) as source:
        assert sorted(number for number, _ in await source.events(2)) == [804, 805]


async def test_white_space_in_a_json_column_does_not_break_the_lines(gateway: RunningGateway, stream: Stream) -> None:
    """PostgreSQL keeps the text of a json column as it was written, line ends included."""
    async with events(gateway, "pg.>") as source:
        await source.next()
        body = b'{"specversion":"1.0",\r\n "sequence":"7",\n"data":{"note":"a\\nb"}\r}'
        await stream.client.jetstream().publish(stream.subject(), body, headers={"Tocsin-Epoch": stream.epoch, "Nats-Msg-Id": "m"})
        name, _, data = await source.next()
        assert (name, data["event"]["data"]) == ("event", {"note": "a\nb"})


async def test_what_another_client_writes_never_becomes_the_id_that_one_comes_back_with(gateway: RunningGateway, stream: Stream) -> None:
    """A browser would send it as Last-Event-ID, be refused, and never try again; or skip what a stream's position skips."""
    room = f"pg.{stream.source}.live.room.7"
    async with events(gateway, room) as source, peer(gateway) as writer:
        assert (await source.next())[:2] == ("subscribed", None)
        for data in ({"position": "gone"}, {"op": "error", "position": stream.position(9)}):
            await writer.send(op="publish", subject=room, data=data)
            name, at, frame = await source.next()
            assert (name, at, frame["event"]["data"]) == ("event", None, data)
    async with events(gateway, stream.subject(), "pg.>") as source:
        assert [(await source.next())[0] for _ in range(2)] == ["subscribed", "subscribed"]
        await stream.publish(stream.subject(), new={"id": 1, "position": "gone", "event": {"position": "gone"}})
        assert await source.events(1) == [(1, stream.position(1))]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "bad-subject"),
        ("?subject=", 400, "bad-subject"),
        ("?subject=pg..x", 400, "bad-subject"),
        ("?subject=pg.x%0d%0aid:%201", 400, "bad-subject"),
        ("?subject=%3E", 403, "forbidden"),
        ("?subject=pg.%3E&since=yesterday", 400, "bad-since"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_a_status(gateway: RunningGateway, query: str, status: int, code: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{gateway.url}/sse{query}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    await gateway.until_metric("tocsin_gateway_clients", 0.0, kind="sse")


async def test_foreign_pages_are_refused_and_listed_ones_may_read(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, allowed_origins=("https://app.example.com",)) as gateway:
        async with events(gateway, stream.subject(), origin="https://app.example.com") as source:
            assert source.response.headers["access-control-allow-origin"] == "https://app.example.com"
            assert (await source.next())[0] == "subscribed"
        for headers, page in (
            ({"origin": "https://evil.example"}, "pages of https://evil.example"),
            ({"origin": "null"}, "pages without an origin, such as a file that a browser opens,"),
            ({"host": "evil.example:8080"}, "pages of http://evil.example:8080"),
        ):
            async with events(gateway, stream.subject(), **headers) as source:
                assert source.response.status_code == 403
                assert source.response.headers["access-control-allow-origin"] == "*", "its author can't read why"
                why = "may not connect; the gateway's setting TOCSIN_ALLOWED_ORIGINS lists the origins that may"
                assert json.loads(await source.response.aread()) == {"code": "forbidden", "message": f"{page} {why}"}


async def test_a_token_is_needed_where_there_is_a_secret_and_its_end_ends_the_stream(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as gateway:
        async with events(gateway, stream.subject()) as source:
            assert source.response.status_code == 401
        short = jwt.encode({"exp": int(time.time()) + 2, "subscribe": ["pg.>"]}, SECRET, "HS256")
        async with events(gateway, stream.subject(), authorization=f"Bearer {short}") as source:
            assert (await source.next())[0] == "subscribed"
            with pytest.raises(EOFError):
                await source.next()


async def test_a_stream_that_ends_with_the_process_ends_at_once(stream: Stream, nats_server: servers.Server) -> None:
    async with asyncio.timeout(20), contextlib.AsyncExitStack() as clients:
        async with running_gateway(nats_server.url, stream.source) as gateway:
            source = await clients.enter_async_context(events(gateway, stream.subject()))
            await source.next()
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 1.5, "the stop did not wait for the response's end"
        with pytest.raises(EOFError):
            await source.next()


async def test_a_reader_that_stops_reading_is_cut_off_and_the_others_go_on(gateway: RunningGateway, stream: Stream) -> None:
    port = gateway.port
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, ("127.0.0.1", port))
        await loop.sock_sendall(stalled, f"GET /sse?subject=pg.%3E HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        await gateway.until_metric("tocsin_gateway_subscriptions", 1.0)
        async with events(gateway, "pg.>") as source:
            await source.next()
            for _ in range(120):
                await stream.publish(stream.subject(), note="x" * 60_000)
                await source.events(1)
            await gateway.until_metric("tocsin_gateway_evictions_total", 1.0)
            await gateway.until_metric("tocsin_gateway_clients", 1.0, kind="sse")
            await stream.publish(stream.subject())
            assert await source.events(1) == [(121, stream.position(121))]


async def test_a_replay_of_large_events_is_no_reason_to_evict_a_reader_that_reads(gateway: RunningGateway, stream: Stream) -> None:
    for _ in range(6):
        await stream.publish(*[stream.subject()] * 2, note="x" * 600_000)
    async with events(gateway, "pg.>", since="start") as source:
        await source.next()
        assert [number for number, _ in await source.events(12)] == list(range(1, 13))
    assert await gateway.metric("tocsin_gateway_evictions_total") == 0
