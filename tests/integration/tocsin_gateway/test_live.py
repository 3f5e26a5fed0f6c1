"""Clients' own messages and presence: only where the token allows, over all gateways, and never anything else's event."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
import msgspec
import pytest
import pytest_asyncio

from tests.support import servers
from tests.support.gateway import Peer, RunningGateway, numbers, peer, running_gateway
from tests.support.stream import Stream

SECRET = "a-secret-of-at-least-thirty-two-bytes"


@pytest_asyncio.fixture
async def guarded(stream: Stream, nats_server: servers.Server) -> AsyncIterator[RunningGateway]:
    async with asyncio.timeout(100), running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as running:
        yield running


@contextlib.asynccontextmanager
async def admitted(gateway: RunningGateway, **claims: Any) -> AsyncIterator[Peer]:
    text = jwt.encode({"exp": int(time.time()) + 600, "iat": int(time.time()) - 1, "subscribe": ["pg.>"], **claims}, SECRET, "HS256")
    async with peer(gateway) as client:
        await client.send(op="auth", token=text)
        assert (await client.next())["op"] == "authenticated"
        yield client


def room(stream: Stream, name: str = "room.7") -> str:
    return f"pg.{stream.source}.live.{name}"


async def test_a_message_reaches_who_listens_on_any_gateway_once_and_nats_too(stream: Stream, nats_server: servers.Server, gateway: RunningGateway) -> None:
    async with running_gateway(nats_server.url, stream.source) as second, peer(gateway) as alice, peer(second) as bob, peer(gateway) as carol:
        subscribed = await bob.subscribe(room(stream), "a")
        assert (subscribed["op"], subscribed["position"], subscribed["recovered"]) == ("subscribed", None, True)
        assert (await bob.subscribe(room(stream, ">"), "b"))["op"] == "subscribed"
        await carol.subscribe("pg.>")
        heard = await stream.client.subscribe(room(stream, ">"))
        await stream.client.flush()
        await alice.send(op="publish", id="m1", subject=room(stream), data={"text": "hi", "n": 1.5})
        answer = await alice.next()
        assert (answer["op"], answer["id"]) == ("published", "m1")
        frame = await bob.next()
        event = frame["event"]
        assert frame["for"] == {"a": None, "b": None}
        assert "position" not in frame
        assert (frame["subject"], event["id"], event["type"], event["data"]) == (room(stream), answer["event"], "live.message", {"text": "hi", "n": 1.5})
        assert {"specversion", "source", "time"} <= event.keys()
        assert msgspec.json.decode((await heard.next_msg()).data) == event
        await bob.nothing_more()
        # A pattern that is wider than `live` is about the stream.
        await carol.nothing_more()
        await bob.send(op="unsubscribe", id="a")
        assert await bob.next() == {"op": "unsubscribed", "id": "a"}
        await alice.send(op="publish", subject=room(stream), data=None)
        assert (await bob.next())["for"] == {"b": None}


async def test_a_message_goes_only_where_the_token_says(guarded: RunningGateway, stream: Stream) -> None:
    async with admitted(guarded, publish=[room(stream), "pg.>", "_tocsin.>", stream.subject()], sub="alice") as alice, admitted(guarded) as bob:
        await bob.subscribe(room(stream, ">"))
        for subject, code in (
            (stream.subject(), "forbidden"),
            (room(stream, "other"), "forbidden"),
            (f"_tocsin.{stream.source}.revoke", "forbidden"),
            ("pg.other.live.room.7", "forbidden"),
            ("$SYS.x", "forbidden"),
            (room(stream, "*"), "bad-subject"),
            (room(stream) + "\r\nPUB x", "bad-subject"),
        ):
            await alice.send(op="publish", id="m", subject=subject, data={})
            answer = await alice.next()
            assert (answer["op"], answer["code"], answer["id"]) == ("error", code, "m"), subject
        await bob.send(op="publish", id="m", subject=room(stream), data={})
        assert (await bob.next())["code"] == "forbidden"
        # Whose message it is says the token, not the client.
        await alice.send(op="publish", subject=room(stream), data={"user": "bob"})
        event = (await bob.next())["event"]
        assert (event["user"], event["data"]) == ("alice", {"user": "bob"})
        await alice.send(op="publish", id="m", subject=room(stream), data="x" * 20_000)
        assert (await alice.next())["code"] == "limit"
        assert await guarded.metric("tocsin_gateway_refused_total", limit="publish_bytes") == 1
    async with peer(guarded) as nobody:
        await nobody.send(op="publish", id="m", subject=room(stream), data={})
        assert (await nobody.next())["code"] == "unauthenticated"


async def test_what_others_write_to_live_subjects_can_t_break_a_frame(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe(room(stream, ">"))
        for body in (b"", b"{", b'{}},{"op":"pong"', b"\xff\xfe", b"[" * 100_000, b'{"specversion":"1.0","id":"x"}', b'{"a":1}', b"5"):
            await stream.client.publish(room(stream), body)
        events = [(await client.next())["event"] for _ in range(3)]
        assert events[0] == {"specversion": "1.0", "id": "x"}
        assert [event["data"] for event in events[1:]] == [{"a": 1}, 5]
        await client.nothing_more()


async def test_who_is_there_is_seen_over_gateways_and_who_goes(stream: Stream, nats_server: servers.Server, guarded: RunningGateway) -> None:
    subject = stream.subject("orders", "*")
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as second, admitted(guarded, presence=True, sub="alice") as alice:
        heard = await stream.client.subscribe(room(stream, "presence.>"))
        await stream.client.flush()
        await alice.send(op="subscribe", id="a", subject=subject, presence=True)
        assert {(await alice.next())["op"], (await alice.next())["op"]} == {"subscribed", "presence"}
        async with admitted(second, presence=[subject], sub="bob") as bob:
            await bob.send(op="subscribe", id="p", subject=subject, presence=True)
            joined, _ = await alice.until("joined")
            assert joined["user"] == "bob"
            seen, before = await bob.until("presence")
            assert [frame["op"] for frame in before] in ([], ["subscribed"])
            if {member["user"] for member in seen["members"]} != {"alice", "bob"}:
                assert (await bob.until("joined"))[0]["user"] == "alice"
            assert seen["client"] == joined["client"]
        left, _ = await alice.until("left")
        assert (left["user"], left["client"]) == ("bob", joined["client"])
        told = [msgspec.json.decode((await heard.next_msg(timeout=5)).data) for _ in range(3)]
        assert [(event["type"], event["data"]["user"], event["data"]["subject"]) for event in told] == [
            ("live.join", "alice", subject),
            ("live.join", "bob", subject),
            ("live.leave", "bob", subject),
        ]
        await stream.publish(stream.subject())
        while (frame := await alice.next())["op"] != "event":
            pass
        assert numbers([frame]) == [1]


async def test_server_sent_events_tell_who_is_there_too(guarded: RunningGateway, stream: Stream) -> None:
    text = jwt.encode({"exp": int(time.time()) + 600, "subscribe": ["pg.>"], "presence": True, "sub": "alice"}, SECRET, "HS256")
    query = {"subject": stream.subject(), "presence": "true"}
    async with httpx.AsyncClient(timeout=10) as http, admitted(guarded, presence=True, sub="bob") as bob:
        refused = await http.get(f"{guarded.url}/sse", params={**query, "presence": "yes"}, headers={"authorization": f"Bearer {text}"})
        assert (refused.status_code, refused.json()["message"]) == (400, "presence is 'yes'; true or false is allowed")
        async with http.stream("GET", f"{guarded.url}/sse", params=query, headers={"authorization": f"Bearer {text}"}) as events:
            lines = events.aiter_lines()

            async def told(name: str) -> dict[str, Any]:
                async with asyncio.timeout(10):
                    while await anext(lines) != f"event: {name}":
                        pass
                    frame: dict[str, Any] = msgspec.json.decode((await anext(lines)).removeprefix("data: "))
                    return frame

            assert [member["user"] for member in (await told("presence"))["members"]] == ["alice"]
            await bob.send(op="subscribe", id="a", subject=stream.subject(), presence=True)
            assert {member["user"] for member in (await bob.until("presence"))[0]["members"]} >= {"alice"}
            assert (await told("joined"))["user"] == "bob"
        assert (await bob.until("left"))[0]["user"] == "alice"


async def test_presence_needs_its_claim_and_is_not_had_by_another_way(guarded: RunningGateway, stream: Stream) -> None:
    rules = {"public.orders": {"id": {"eq": 1}}}
    async with admitted(guarded, presence=[room(stream)]) as client, admitted(guarded, presence=True, rows=rules) as ruled, admitted(guarded) as without:
        for who, subject in ((client, room(stream, "other")), (client, stream.subject()), (ruled, stream.subject()), (ruled, "pg.>"), (without, room(stream))):
            assert (await who.subscribe(subject, presence=True))["code"] == "forbidden", subject
        for subject in (room(stream, "presence.>"), room(stream, "presence.x")):
            assert (await without.subscribe(subject))["code"] == "bad-subject"
        await without.subscribe(room(stream, ">"))
        await client.send(op="subscribe", id="a", subject=room(stream), presence=True)
        await client.until("presence")
        await without.nothing_more()


async def test_a_new_token_without_presence_ends_it_and_leaves_the_subscription(guarded: RunningGateway, stream: Stream) -> None:
    async with admitted(guarded, presence=True, sub="alice") as alice, admitted(guarded, presence=True, sub="bob") as bob:
        await alice.send(op="subscribe", id="a", subject=stream.subject(), presence=True)
        await alice.until("presence")
        await bob.send(op="subscribe", id="a", subject=stream.subject(), presence=True)
        await bob.until("presence")
        await alice.until("joined")
        text = jwt.encode({"exp": int(time.time()) + 600, "subscribe": ["pg.>"]}, SECRET, "HS256")
        await alice.send(op="auth", token=text)
        assert (await bob.until("left"))[0]["user"] == "alice"
        await alice.until("authenticated")
        assert (await alice.until("presence"))[0] == {"op": "presence", "id": "a", "client": None, "members": []}, "who is not told any more is told that"
        await stream.publish(stream.subject())
        while (frame := await alice.next())["op"] != "event":
            assert frame["op"] not in ("joined", "left", "unsubscribed")


async def test_who_shows_another_token_is_present_under_its_name(guarded: RunningGateway, stream: Stream) -> None:
    async with admitted(guarded, presence=True, sub="alice") as changing, admitted(guarded, presence=True, sub="bob") as bob:
        await changing.send(op="subscribe", id="a", subject=stream.subject(), presence=True)
        first, _ = await changing.until("presence")
        await bob.send(op="subscribe", id="a", subject=stream.subject(), presence=True)
        await bob.until("presence")
        await changing.until("joined")
        text = jwt.encode({"exp": int(time.time()) + 600, "subscribe": ["pg.>"], "presence": True, "sub": "carol"}, SECRET, "HS256")
        await changing.send(op="auth", token=text)
        again, before = await changing.until("presence")
        assert "left" not in [frame["op"] for frame in before], "it is told of others only"
        assert again["client"] != first["client"]
        assert sorted(member["user"] for member in again["members"]) == ["bob", "carol"]
        assert ((await bob.until("left"))[0]["client"], (await bob.until("joined"))[0]["user"]) == (first["client"], "carol")


@pytest.mark.parametrize(("more", "code"), [({"since": "start"}, "bad-since"), ({"where": {"a": {"eq": 1}}}, "bad-where"), ({"select": ["a"]}, "bad-where")])
async def test_live_subjects_have_no_past_and_no_columns(gateway: RunningGateway, stream: Stream, more: dict[str, Any], code: str) -> None:
    async with peer(gateway) as client:
        assert (await client.subscribe(room(stream), **more))["code"] == code


async def test_who_comes_and_goes_leaves_nothing_behind(gateway: RunningGateway, stream: Stream) -> None:
    async def visit(number: int) -> None:
        async with peer(gateway) as client:
            await client.send(op="subscribe", id="a", subject=room(stream), presence=True)
            if number % 2:
                await client.until("presence")

    async with peer(gateway) as witness:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(visit(number))
        await gateway.until_metric("tocsin_gateway_subscriptions", 0.0)
        await witness.send(op="subscribe", id="a", subject=room(stream), presence=True)
        seen, _ = await witness.until("presence")
        assert [member["client"] for member in seen["members"]] == [seen["client"]]
