"""/asyncapi.json with the real columns of what is watched."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import asyncpg
import httpx
import jwt
import pytest
import pytest_asyncio

from tests.support import oracle
from tests.support.asyncapi import faults
from tests.support.gateway import RunningGateway, peer
from tests.support.pipeline import Pipeline, pipeline
from tests.support.schema import problems, resolve
from tocsin.client import SubscribeError, subscribe
from tocsin_gateway.source.watched import Watched

SECRET = "a secret of at least thirty-two bytes"
ORDERS = "change-public-orders"


@pytest_asyncio.fixture(scope="module")
async def running() -> AsyncIterator[Pipeline]:
    async with pipeline() as started:
        source = await asyncpg.connect(started.source_url)
        await source.execute("""
            CREATE TYPE mood AS ENUM ('calm', 'loud');
            CREATE TABLE orders (id int PRIMARY KEY, total numeric(10, 2) NOT NULL, big bigint, mood mood, at timestamptz, tags text[], extra jsonb,
                ratio float8, token uuid, paid boolean NOT NULL DEFAULT false);
            COMMENT ON COLUMN orders.total IS 'with tax';
            CREATE TABLE "odd.name %" (a text, b text, secret text, PRIMARY KEY (a, b));
            CREATE TABLE unwatched (id int PRIMARY KEY)""")
        await source.close()
        await started.tocsin("install")
        await started.tocsin("watch", "orders", "--route", "mood", "--exact-numbers")
        await started.tocsin("watch", '"odd.name %"', "--columns", "a,b", "--ops", "insert")
        await started.start("listener")
        await started.start("gateway")
        yield started


async def document(url: str, headers: dict[str, str] | None = None) -> Any:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{url}/asyncapi.json", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


async def test_each_watched_table_is_described_and_nothing_else(running: Pipeline) -> None:
    made = await document(running.gateway_url)
    assert faults(made) == []
    assert set(made["channels"]) == {"socket", ORDERS, "change-public-odd_2Ename_20_25"}
    assert made["channels"][ORDERS]["address"] == "pg.shop.change.public.orders.{op}.{mood}"
    row = made["components"]["schemas"]["row-public-orders"]["properties"]
    assert {name: column.get("type", column.get("enum")) for name, column in row.items()} == {
        "id": "integer",
        "total": "string",
        "big": ["string", "null"],
        "mood": ["calm", "loud", None],
        "at": ["string", "null"],
        "tags": ["array", "null"],
        "extra": None,
        "ratio": ["number", "string", "null"],
        "token": ["string", "null"],
        "paid": "boolean",
    }
    assert row["total"]["description"] == "numeric(10,2) · with tax"
    odd = made["components"]["messages"]["change-public-odd_2Ename_20_25"]["payload"]["allOf"][1]["properties"]["data"]
    assert (odd["properties"]["key"]["required"], odd["properties"]["op"]["enum"]) == (["a", "b"], ["insert", "read"])
    assert "secret" not in made["components"]["schemas"]["row-public-odd_2Ename_20_25"]["properties"]
    for reference in references(made):
        assert resolve(reference, made), reference


async def test_real_events_fit_the_description_of_their_table(running: Pipeline) -> None:
    made = await document(running.gateway_url)
    schema = made["components"]["messages"][ORDERS]["payload"]["allOf"][1]["properties"]["data"]
    source = await asyncpg.connect(running.source_url)
    async with oracle.socket_client(running.socket_url, "pg.shop.change.public.orders.>") as (seen, arrived):
        await source.execute("""INSERT INTO orders VALUES (1, 9.50, 9007199254740993, 'loud', now(), '{a,b}', '{"x": [1]}', 'NaN', gen_random_uuid())""")
        await source.execute("INSERT INTO orders VALUES (2, 1)")
        await source.execute("UPDATE orders SET total = 2, mood = 'calm' WHERE id = 2")
        await source.execute("DELETE FROM orders")
        await oracle.until_count(seen, arrived, 5)
    await source.close()
    for event in seen.events:
        assert problems(event["data"], schema, made) == [], event
    assert problems({**seen.events[0]["data"], "new": {"id": "one"}}, schema, made) != []


@pytest.mark.parametrize(("field", "asked", "code"), [("where", {"totl": {"eq": 1}}, "bad-where"), ("select", ["id", "totl"], "bad-message")])
async def test_a_column_that_the_table_does_not_have_is_refused_and_named(running: Pipeline, field: str, asked: Any, code: str) -> None:
    """On the socket, in its address, over SSE, in history and in a snapshot: it matched nothing before, in silence."""
    subject, gateway = "pg.shop.change.public.orders.>", RunningGateway(int(running.environment["TOCSIN_GATEWAY_PORT"]))
    query = {"subject": subject, field: json.dumps(asked)}
    async with peer(gateway) as client:
        for since in ("now", "start", "snapshot"):
            refused = await client.subscribe(subject, since=since, **{field: asked})
            assert (refused["op"], refused.get("code")) == ("error", code)
            assert all(word in refused["message"] for word in (field, "public.orders", "'totl'", "id, total, big"))
        assert (await client.subscribe("pg.shop.change.>", **{field: asked}))["op"] == "subscribed", "of several tables none is known to lack it"
    async with peer(gateway, "?" + urlencode(query)) as client:
        assert (await client.next())["code"] == code
    async with httpx.AsyncClient() as http:
        for path in ("sse", "events"):
            answer = await http.get(f"{running.gateway_url}/{path}", params=query)
            assert (answer.status_code, answer.json()["code"]) == (400, code)
    with pytest.raises(SubscribeError, match=r"totl.*id, total, big"):
        async for _ in subscribe(running.socket_url, subject, **{field: asked}):
            pass


async def test_a_column_that_was_added_just_now_is_known(running: Pipeline) -> None:
    source = await asyncpg.connect(running.source_url)
    async with peer(RunningGateway(int(running.environment["TOCSIN_GATEWAY_PORT"]))) as client:
        assert (await client.subscribe("pg.shop.change.public.orders.>", "a", select=["id"]))["op"] == "subscribed"
        await source.execute("ALTER TABLE orders ADD fresh int")
        async with asyncio.timeout(5):
            while (await client.subscribe("pg.shop.change.public.orders.>", "b", select=["fresh"]))["op"] == "error":
                await asyncio.sleep(0.1)
    await source.execute("ALTER TABLE orders DROP fresh")
    await source.close()


async def test_a_token_sees_its_tables_and_a_lost_source_leaves_the_last_description(running: Pipeline) -> None:
    port = running.environment["TOCSIN_GATEWAY_PORT"]
    await running.stop("gateway")
    await running.start("gateway", name="guarded", TOCSIN_JWT_SECRET=SECRET)
    url = f"http://127.0.0.1:{port}"
    token = jwt.encode({"exp": time.time() + 60, "subscribe": ["pg.shop.change.public.orders.>"]}, SECRET, "HS256")
    assert set((await document(url))["channels"]) == {"socket"}
    assert set((await document(url, {"authorization": f"Bearer {token}"}))["channels"]) == {"socket", ORDERS}
    claims = {"exp": time.time() + 60, "subscribe": ["pg.shop.change.public.orders.>"], "hidden": {"public.orders": ["total"]}}
    async with peer(RunningGateway(int(port))) as client:
        await client.send(op="auth", token=jwt.encode(claims, SECRET, "HS256"))
        await client.next()
        refused = await client.subscribe("pg.shop.change.public.orders.>", where={"total": {"gt": 1}})
        assert (refused["code"], "id, big" in refused["message"]) == ("bad-where", True), "a hidden column is one that is not there"
        refused = await client.subscribe("pg.shop.change.public.odd%2Ename%20%25.>", where={"c": {"eq": 1}})
        assert (refused["code"], "a, b" in refused["message"]) == ("forbidden", False), "who may not have the table is not told its columns"
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/asyncapi.json", headers={"authorization": "Bearer nonsense"})).status_code == 401
    await running.stop("guarded")
    wrong = running.source_url.replace("/shop", "/nothing")
    await running.start("gateway", TOCSIN_DATABASE_URL=wrong, TOCSIN_SOURCE="shop")
    async with asyncio.timeout(10):
        assert set((await document(url))["channels"]) == {"socket"}


async def test_who_finds_fresh_rows_does_not_wait_for_whoever_asks_anew(running: Pipeline) -> None:
    watched = Watched(running.source_url, "shop")
    known = await watched.rows()
    assert known
    blocker = await asyncpg.connect(running.source_url)
    try:
        async with blocker.transaction(), asyncio.TaskGroup() as group:
            await blocker.execute("LOCK tocsin.watched IN ACCESS EXCLUSIVE MODE")
            asking = group.create_task(watched.rows(0.0))
            async with asyncio.timeout(2):
                while not await blocker.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'tocsin.watched'::regclass)"):
                    await asyncio.sleep(0.02)
            assert await watched.rows() is known
            assert not asking.done()
    finally:
        await blocker.close()
