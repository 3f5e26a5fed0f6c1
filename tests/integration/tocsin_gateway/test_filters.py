"""`where`, `select` and a token's rules over every road that an event takes to a client: live, replay, join, SSE, /ws?where."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import msgspec
import pytest
import pytest_asyncio

from tests.support import servers
from tests.support.gateway import Peer, RunningGateway, numbers, peer, running_gateway
from tests.support.stream import Stream

SECRET = "a secret of at least thirty-two bytes!"
ORDERS = {"customer": {"eq": 42}}


def orders(stream: Stream) -> str:
    return stream.subject("orders", "*")


async def changes(stream: Stream) -> None:
    """Enter, nothing, stay, leave, enter, leave of customer 42's orders, one event each, and a truncate."""
    for op, new, old in (
        ("insert", {"id": 1, "customer": 42, "total": 1.10}, None),
        ("insert", {"id": 2, "customer": 7, "total": 5}, None),
        ("update", {"id": 1, "customer": 42, "total": 2}, {"total": 1.10}),
        ("update", {"id": 1, "customer": 7, "total": 2}, {"customer": 42}),
        ("update", {"id": 2, "customer": 42, "total": 5}, {"customer": 7}),
        ("delete", None, {"id": 2, "customer": 42, "total": 5}),
    ):
        row = new or old or {}
        data: dict[str, Any] = {"new": new, "old": old, "op": op, "key": {"id": row["id"]}}
        await stream.publish(stream.subject("orders", op), **{name: value for name, value in data.items() if value is not None or name == "new"})
    await stream.publish(stream.subject("orders", "truncate"), op="truncate", key=None, new=None)


SET = ["enter", "stay", "leave", "enter", "leave", None]


def marks(frames: list[dict[str, Any]], id: str = "a") -> list[str | None]:  # noqa: A002  # the field's name
    return [frame["for"][id] for frame in frames]


@pytest.mark.parametrize("since", ["now", "start"])
async def test_enter_stay_and_leave_live_and_replayed(gateway: RunningGateway, stream: Stream, since: str) -> None:
    if since == "start":
        await changes(stream)
    async with peer(gateway) as client:
        answer = await client.subscribe(orders(stream), since=since, where=ORDERS)
        assert (answer["op"], answer["recovered"]) == ("subscribed", True)
        if since == "now":
            await changes(stream)
        frames = await client.events(len(SET))
        assert marks(frames) == SET
        assert [frame["event"]["data"]["key"] for frame in frames[:-1]] == [{"id": 1}, {"id": 1}, {"id": 1}, {"id": 2}, {"id": 2}]
        await client.nothing_more()


async def test_clients_that_ask_the_same_share_frames_and_each_may_turn_aside(gateway: RunningGateway, stream: Stream) -> None:
    """Equal conditions and ids, other ids, another value, none; then one of each subscribes to more, and one leaves."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(gateway)) for _ in range(6)]
        same, twin, named, other, plain, leaving = peers
        for client, name, where in (
            (same, "a", ORDERS),
            (twin, "a", ORDERS),
            (named, "b", ORDERS),
            (other, "a", {"customer": {"in": [7, 8]}}),
            (leaving, "a", ORDERS),
        ):
            await client.subscribe(orders(stream), name, where=where)
        await plain.subscribe(orders(stream))
        for turn in range(3):
            await changes(stream)
            if turn < 2:
                assert marks(await leaving.events(len(SET))) == SET
            frames = [await client.events(len(SET)) for client in (same, twin)]
            assert frames[0] == frames[1]
            assert marks(frames[0]) == SET
            assert marks(await named.events(len(SET)), "b") == SET
            assert marks(await other.events(4)) == ["enter", "enter", "leave", None]
            assert numbers(await plain.events(len(SET) + 1)) == [*range(7 * turn + 1, 7 * turn + 8)]
            if turn == 0:
                await twin.subscribe("pg.*.event.>", "more")
            if turn == 1:
                leaving.socket.transport.abort()


async def test_many_subscriptions_of_one_socket_get_an_event_once_with_what_it_is_to_each(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe(orders(stream), "mine", where=ORDERS)
        await client.subscribe("pg.>", "all")
        await client.subscribe(orders(stream), "others", where={"customer": {"ne": 42}})
        await changes(stream)
        frames = await client.events(7)
        assert [frame["for"] for frame in frames] == [
            {"mine": "enter", "all": None},
            {"others": "enter", "all": None},
            {"mine": "stay", "all": None},
            {"mine": "leave", "others": "enter", "all": None},
            {"mine": "enter", "others": "leave", "all": None},
            {"mine": "leave", "all": None},
            {"mine": None, "others": None, "all": None},
        ]
        await client.nothing_more()


async def test_select_sends_a_form_of_its_own_to_whom_it_is_for(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe(orders(stream), "narrow", select=["total"], where={"total": {"lt": 2}})
        await client.subscribe(orders(stream), "wide")
        await stream.publish(stream.subject(), new={"id": 1, "customer": 42, "total": 1.5}, key={"id": 1})
        frames = {next(iter(frame["for"])): frame for frame in await client.events(2)}
        assert frames["narrow"]["event"]["data"]["new"] == {"total": 1.5}
        assert frames["narrow"]["event"]["data"]["key"] == {"id": 1}
        assert frames["narrow"]["for"] == {"narrow": "enter"}
        assert frames["wide"]["event"]["data"]["new"] == {"id": 1, "customer": 42, "total": 1.5}
        await client.nothing_more()


async def test_a_plain_socket_beside_filters_gets_shared_bytes_and_a_socket_whose_filter_ends_becomes_plain(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as plain, peer(gateway) as filtered:
        await plain.subscribe(orders(stream))
        await filtered.subscribe(orders(stream), "a", where=ORDERS)
        await filtered.subscribe(orders(stream), "b")
        await stream.publish(stream.subject(), new={"id": 1, "customer": 42})
        assert "for" not in (await plain.events(1))[0]
        assert (await filtered.events(1))[0]["for"] == {"a": "enter", "b": None}
        await filtered.send(op="unsubscribe", id="a")
        await filtered.until("unsubscribed")
        await stream.publish(stream.subject(), new={"id": 1, "customer": 42})
        assert "for" not in (await filtered.events(1))[0]


async def test_a_row_that_moves_between_two_routes_leaves_one_and_enters_the_other(gateway: RunningGateway, stream: Stream) -> None:
    """On one socket: the copy under the old route is what tells the first subscription that its row has gone."""
    async with peer(gateway) as client:
        await client.subscribe(stream.subject("orders", "*", "42"), "from", where={"customer": {"eq": 42}})
        await client.subscribe(stream.subject("orders", "*", "43"), "to", where={"customer": {"eq": 43}})
        await stream.publish(
            stream.subject("orders", "update", "43"),
            copy=stream.subject("orders", "update", "42"),
            op="update",
            new={"id": 1, "customer": 43},
            old={"customer": 42},
        )
        assert [frame["for"] for frame in await client.events(2)] == [{"to": "enter"}, {"from": "leave"}]
        await client.nothing_more()


async def test_a_bad_filter_is_answered_and_the_socket_lives(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        answer = await client.subscribe(orders(stream), where={"customer": {"equals": 42}})
        assert (answer["op"], answer["code"], answer["id"]) == ("error", "bad-where", "a")
        for part in ("'customer'", "'equals'", "42", "eq, ne, lt"):
            assert part in answer["message"]
        assert (await client.subscribe(orders(stream)))["op"] == "subscribed"


async def test_one_line_tools_filter_by_the_address(gateway: RunningGateway, stream: Stream) -> None:
    await changes(stream)
    query = f"?subject={orders(stream)}&since=start&where={quote(msgspec.json.encode(ORDERS).decode())}&select=total,id"
    async with peer(gateway, query) as client:
        assert (await client.next())["op"] == "subscribed"
        frames = await client.events(len(SET))
        assert marks(frames, "0") == SET
        assert frames[0]["event"]["data"]["new"] == {"id": 1, "total": 1.1}
    async with httpx.AsyncClient() as http, http.stream("GET", f"{gateway.url}/sse{query}") as response:
        found = []
        async for line in response.aiter_lines():
            if line.startswith("data: ") and '"op":"event"' in line:
                found.append(msgspec.json.decode(line.removeprefix("data: ")))
                if len(found) == len(SET):
                    break
        assert marks(found, "0") == SET
    async with httpx.AsyncClient() as http:
        for wrong, code in (("&where={", "bad-where"), ("&where=5", "bad-where"), ("&select=[5]", "bad-message")):
            refused = await http.get(f"{gateway.url}/sse?subject={orders(stream)}{wrong}")
            assert (refused.status_code, refused.json()["code"]) == (400, code)


def token(**claims: Any) -> str:
    return jwt.encode({"exp": int(time.time()) + 86_400, "subscribe": ["pg.>"], **claims}, SECRET, "HS256")


RULED = token(rows={"public.orders": ORDERS}, hidden={"public.orders": ["total"]})


@pytest_asyncio.fixture
async def guarded(stream: Stream, nats_server: servers.Server) -> AsyncIterator[RunningGateway]:
    """A gateway that asks for tokens."""
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as running:
        yield running


async def enter(client: Peer, bearer: str) -> None:
    await client.send(op="auth", token=bearer)
    answer = await client.next()
    assert answer["op"] == "authenticated", answer


@pytest.mark.parametrize("since", ["now", "start"])
@pytest.mark.parametrize("subject", ["pg.>", "orders"])
async def test_a_token_s_rules_hold_on_new_and_old_rows_live_and_replayed(guarded: RunningGateway, stream: Stream, since: str, subject: str) -> None:
    if since == "start":
        await changes(stream)
    async with peer(guarded) as client:
        await enter(client, RULED)
        await client.subscribe("pg.>" if subject == "pg.>" else orders(stream), since=since)
        if since == "now":
            await changes(stream)
        frames = await client.events(len(SET))
        assert marks(frames) == SET
        entered, _, left, entered_again, deleted, _ = (frame["event"]["data"] for frame in frames)
        assert entered["new"] == {"id": 1, "customer": 42}
        assert {name: left[name] for name in left if name not in ("schema", "table")} == {"op": "update", "key": {"id": 1}}
        assert "old" not in entered_again, "it was another customer's"
        assert deleted["old"] == {"id": 2, "customer": 42}
        await client.nothing_more()


async def test_a_fresh_token_s_rules_hold_at_once_for_the_subscriptions_that_are_there(guarded: RunningGateway, stream: Stream) -> None:
    async with peer(guarded) as client:
        await enter(client, token())
        await client.subscribe(orders(stream))
        await stream.publish(stream.subject(), new={"id": 1, "customer": 7})
        assert "for" not in (await client.events(1))[0]
        await enter(client, RULED)
        await stream.publish(stream.subject(), new={"id": 1, "customer": 7})
        await stream.publish(stream.subject(), new={"id": 2, "customer": 42})
        assert [frame["event"]["data"]["new"] for frame in await client.events(1)] == [{"id": 2, "customer": 42}]
        await enter(client, token())
        await stream.publish(stream.subject(), new={"id": 1, "customer": 7})
        assert "for" not in (await client.events(1))[0]


async def test_an_event_that_the_rule_cannot_judge_is_withheld_and_told_as_a_gap(guarded: RunningGateway, stream: Stream) -> None:
    async with peer(guarded) as client:
        await enter(client, RULED)
        await client.subscribe(orders(stream))
        await stream.publish(stream.subject("orders", "update"), op="update", key={"id": 1}, new=None, truncated=True)
        told = await client.next()
        assert (told["op"], told["recovered"], told["reason"], told["position"]) == ("subscribed", False, "gap", stream.position(stream.last))
        await stream.publish(stream.subject("orders", "update"), op="update", key={"id": 1}, new={"id": 1, "customer": 7})
        refused = await client.next()
        assert (refused["op"], refused["code"], refused["id"]) == ("error", "forbidden", "a")
        assert "--old changed" in refused["message"]
        await stream.publish(stream.subject(), new={"id": 1, "customer": 42})
        await client.nothing_more()


async def test_a_replay_that_the_rule_ends_half_way_gives_nothing_more(guarded: RunningGateway, stream: Stream) -> None:
    """It is ended by its own task, which nobody cancels."""
    fine = {"id": 1, "customer": 42}
    await stream.publish(stream.subject(), new=fine)
    await stream.publish(stream.subject("orders", "update"), op="update", key={"id": 2}, new={"id": 2, "customer": 7})
    await stream.publish_many([stream.subject()] * 300)
    await stream.publish(stream.subject(), new=fine)
    async with peer(guarded) as client:
        await enter(client, RULED)
        assert (await client.subscribe(orders(stream), since="start"))["op"] == "subscribed"
        assert [frame["event"]["data"]["new"] for frame in await client.events(1)] == [fine]
        refused = await client.next()
        assert (refused["op"], refused["code"], refused["id"]) == ("error", "forbidden", "a")
        await guarded.until_metric("tocsin_gateway_replays", 0.0)
        await client.nothing_more()


@pytest.mark.parametrize("claims", [{"rows": {"orders": ORDERS}}, {"rows": {"public.orders": {"customer": 42}}}, {"hidden": {"public.orders": "total"}}])
async def test_a_token_whose_rules_are_not_well_formed_is_refused(guarded: RunningGateway, claims: dict[str, Any]) -> None:
    async with peer(guarded) as client:
        await client.send(op="auth", token=token(**claims))
        answer = await client.next()
        assert (answer["code"], "claim" in answer["message"]) == ("unauthenticated", True)
