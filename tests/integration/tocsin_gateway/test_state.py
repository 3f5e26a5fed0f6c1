"""/state and /why: what the console asks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import jwt
from nats.aio.client import Client

from tests.support import servers
from tests.support.gateway import RunningGateway, peer, running_gateway
from tests.support.stream import Stream
from tocsin import broker
from tocsin_gateway.endpoints.why import SEARCHES

SECRET = "a secret of at least thirty-two bytes"


def headers(*patterns: str) -> dict[str, str]:
    return {"authorization": f"Bearer {jwt.encode({'exp': time.time() + 60, 'subscribe': list(patterns)}, SECRET, 'HS256')}"}


async def ask(url: str, path: str, expect: int = 200, headers: dict[str, str] | None = None, **query: str) -> Any:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{url}{path}", params=query, headers=headers)
    assert answer.status_code == expect, answer.text
    return answer.json()


def steps(answer: Any) -> dict[str, bool | None]:
    return {step["step"]: step["ok"] for step in answer["steps"]}


async def test_the_state_has_the_stream_this_gateway_and_each_part_of_the_source(gateway: RunningGateway, stream: Stream, nats: Client) -> None:
    await stream.publish(stream.subject(), stream.subject())

    async def status() -> bytes:
        return b"{}"

    measured = {"ready": True, "status": "drift", "tables": [{"table": "public.orders", "status": "drift"}, {"table": "public.secret", "status": "drift"}]}
    async with (
        peer(gateway) as client,
        broker.announce(nats, "tocsin-check", "of this source", status, source=stream.source, measured=lambda: measured),
        broker.announce(nats, "tocsin-check", "of another source", status, source="other", measured=lambda: {"ready": False}),
        broker.announce(nats, "tocsin-check", "says nothing of its source", status),
    ):
        await client.subscribe(stream.subject())
        state = await ask(gateway.url, "/state")
    assert (state["source"], state["stream"]["last_sequence"], state["stream"]["messages"]) == (stream.source, 2, 2)
    assert (state["gateway"]["ready"], state["gateway"]["subscriptions"], state["gateway"]["head"]) == (True, 1, 2)
    assert [part["kind"] for part in state["parts"]] == ["checker", "gateway"]
    assert state["parts"][0]["measured"] == measured
    assert state["parts"][1]["measured"]["clients"] == 1


async def test_a_token_sees_the_drift_of_its_own_tables_alone(stream: Stream, nats: Client, nats_server: servers.Server) -> None:
    async def status() -> bytes:
        return b"{}"

    # The last may be the table b.c of the schema a, or c of a.b.
    tables = [{"table": name, "status": "drift"} for name in ("public.orders", "public.secret", "a.b.c")]
    measured = {"ready": True, "tables": tables, "findings": [{"message": "public.secret is not in the publication"}]}
    async with (
        running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as running,
        broker.announce(nats, "tocsin-check", "", status, source=stream.source, measured=lambda: measured),
    ):
        assert (await ask(running.url, "/state", 401))["code"] == "unauthenticated"
        assert (await ask(running.url, "/why", 401, subject="pg.>"))["code"] == "unauthenticated"
        seen = await ask(running.url, "/state", headers=headers(f"pg.{stream.source}.drift.public.orders"))
        assert seen["parts"][0]["measured"] == {"ready": True, "tables": tables[:1]}
        for allowed, told in (("a.b%2Ec", []), ("a%2Eb.c", []), ("*.*", tables)):
            seen = await ask(running.url, "/state", headers=headers(f"pg.{stream.source}.drift.{allowed}"))
            assert seen["parts"][0]["measured"]["tables"] == told
        whole = await ask(running.url, "/state", headers=headers("pg.>"))
        assert whole["parts"][0]["measured"] == measured
        await stream.publish(stream.subject())
        refused = await ask(running.url, "/why", headers=headers("pg.x.>"), subject=stream.subject())
        assert steps(refused) == {"subject": True, "token": False}
        assert refused["event"] is None


async def test_why_walks_from_the_pattern_to_the_position(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 3)
    await stream.publish(stream.subject("items"))
    assert steps(await ask(gateway.url, "/why", subject="pg..x")) == {"subject": False}
    assert steps(await ask(gateway.url, "/why", subject="$SYS.>")) == {"subject": True, "token": False}
    assert steps(await ask(gateway.url, "/why", subject="pg.elsewhere.>"))["stream"] is False
    assert steps(await ask(gateway.url, "/why", subject=f"pg.{stream.source}.live.room"))["stream"] is None
    assert steps(await ask(gateway.url, "/why", subject=stream.subject("nothing")))["stream"] is False
    found = await ask(gateway.url, "/why", subject=stream.subject(), key="2", since=stream.position(1))
    assert (steps(found), found["event"]["position"]) == ({"subject": True, "token": True, "stream": True, "position": True}, stream.position(2))
    assert steps(await ask(gateway.url, "/why", subject=stream.subject(), key="9"))["stream"] is False
    had = await ask(gateway.url, "/why", subject=stream.subject(), since=stream.position(3))
    assert (had["event"]["position"], steps(had)["position"]) == (stream.position(3), False)
    assert steps(await ask(gateway.url, "/why", subject=stream.subject(), since="zzzz999999-1"))["position"] is False
    assert "nonsense" in (await ask(gateway.url, "/why", subject=stream.subject(), since="nonsense"))["steps"][-1]["text"]


async def test_many_who_ask_why_are_searched_for_a_few_at_a_time(gateway: RunningGateway, stream: Stream, nats: Client) -> None:
    """Each search reads up to 2,000 messages by the connection that the live events come by: 300 at once were a slow consumer to NATS, which cut it."""
    await stream.publish(*[stream.subject()] * 300)
    highest = 0
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(ask(gateway.url, "/why", subject=stream.subject(), key="nobody's")) for _ in range(40)]
        while not all(task.done() for task in asking):
            highest = max(highest, (await broker.api(nats, f"STREAM.INFO.{stream.name}"))["state"]["consumer_count"])
    assert {steps(task.result())["stream"] for task in asking} <= {False, None}
    assert 1 < highest < 1 + 4 * SEARCHES, "the gateway's own, and those of the searches; one that ended may be there for a moment"


async def test_a_page_of_a_foreign_origin_learns_nothing(gateway: RunningGateway) -> None:
    foreign = {"origin": "https://evil.example"}
    assert (await ask(gateway.url, "/state", 403, foreign))["code"] == "forbidden"
    assert (await ask(gateway.url, "/why", 403, foreign, subject="pg.>"))["code"] == "forbidden"
