"""`since: "snapshot"`: the rows and then every change after exactly their moment, from a real source with a real listener."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import jwt
import msgspec
import pytest
import pytest_asyncio

from tests.support import servers
from tests.support.gateway import Peer, RunningGateway, peer, running_gateway
from tests.support.schema import problems
from tests.support.stream import Stream
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_listener.__main__ import serve
from tocsin_listener.install import install
from tocsin_listener.watch import watch

SECRET = "a secret of at least thirty-two bytes!"
ROLE = Path(__file__).parents[3] / "deploy/postgres/gateway.sql"
TABLE = "CREATE TABLE orders (id int PRIMARY KEY, customer int, total numeric, placed timestamptz DEFAULT '2026-11-22 20:15:31+00', note text)"


@pytest_asyncio.fixture
async def orders(source: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A source with a watched table of 300 rows; half of them customer 42's."""
    await install(source)
    await source.execute(TABLE)
    await source.execute("INSERT INTO orders (id, customer, total) SELECT g, CASE g % 2 WHEN 0 THEN 42 ELSE 7 END, g + 0.10 FROM generate_series(1, 300) AS g")
    await watch(source, ["orders"])
    yield source


@contextlib.asynccontextmanager
async def listening(source_url: str, nats_url: str) -> AsyncIterator[str]:
    """A listener, for as long as the context lasts; the source's name."""
    settings = load_settings(database_url=source_url, nats_url=nats_url, listener_port=free_port(), stream_max_bytes="64MB")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        try:
            yield settings.source_name
        finally:
            stop.set()


@pytest_asyncio.fixture
async def live(orders: asyncpg.Connection, source_url: str, nats_server: servers.Server) -> AsyncIterator[tuple[RunningGateway, str]]:
    """A listener and a gateway that knows the source; and the pattern of the table."""
    assert orders is not None
    async with (
        asyncio.timeout(100),
        listening(source_url, nats_server.url) as name,
        running_gateway(nats_server.url, name, database_url=source_url) as gateway,
    ):
        yield gateway, f"pg.{name}.change.public.orders.>"


async def rows_and_end(client: Peer, pattern: str, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """(the rows, the events before the snapshot's end, its position)"""
    answer = await client.subscribe(pattern, since="snapshot", **options)
    assert (answer["op"], answer["recovered"]) == ("subscribed", True), answer
    end, before = await client.until("snapshot-end", patience=30)
    return [frame for frame in before if frame["op"] == "row"], [frame for frame in before if frame["op"] == "event"], end["position"]


def applied(table: dict[int, dict[str, Any]], frames: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What a client makes of changes. Each must fit: an insert only of what is not there, the rest only of what is."""
    for frame in frames:
        data, mark = frame["event"]["data"], (frame.get("for") or {"a": None})["a"]
        key = data["key"]["id"]
        enters = mark == "enter" or (mark is None and data["op"] == "insert")
        assert enters == (key not in table), (frame, table.get(key))
        if mark == "leave" or data["op"] == "delete":
            del table[key]
        else:
            table[key] = data["new"]
    return table


async def rows_of(connection: asyncpg.Connection, where: str = "true") -> dict[int, dict[str, Any]]:
    found = await connection.fetch(f"SELECT id, row_to_json(o)::text AS row FROM orders AS o WHERE {where}")  # the test's own
    return {row["id"]: msgspec.json.decode(row["row"]) for row in found}


@pytest.mark.parametrize("filtered", [False, True])
async def test_rows_and_changes_make_the_table_whatever_is_written_meanwhile(
    live: tuple[RunningGateway, str], orders: asyncpg.Connection, source_url: str, filtered: bool
) -> None:
    """The oracle is the table: writers run before, through and after many snapshots, some of them open when the moment is taken."""
    gateway, pattern = live
    options: dict[str, Any] = {"where": {"customer": {"eq": 42}}} if filtered else {}
    condition = "customer = 42" if filtered else "true"
    chance = random.Random(4)
    await orders.execute("SET timezone = 'UTC'")
    writing = True

    async def write(number: int) -> None:
        writer = await asyncpg.connect(source_url)
        while writing:
            async with writer.transaction():
                for _ in range(chance.randint(1, 4)):
                    id_ = chance.randint(1, 100) * 3 + number
                    await writer.execute("DELETE FROM orders WHERE id = $1", id_) if chance.random() < 0.2 else await writer.execute(
                        "INSERT INTO orders VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET customer = $2, total = $3",
                        id_,
                        chance.choice([42, 7]),
                        chance.randint(0, 10**6),
                    )
                await asyncio.sleep(chance.random() / 50)
        await writer.close()

    clients: list[tuple[Peer, dict[int, dict[str, Any]]]] = []
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        writers = [group.create_task(write(number)) for number in range(3)]
        for _ in range(6):
            client = await stack.enter_async_context(peer(gateway))
            rows, events, end = await rows_and_end(client, pattern, **options)
            table = {row["key"]["id"]: row["row"] for row in rows}
            assert len(table) == len(rows), "a key came twice"
            clients.append((client, applied(table, events)))
            other = await stack.enter_async_context(peer(gateway))
            answer = await other.subscribe(pattern, since=end, **options)
            assert answer["recovered"]
            clients.append((other, dict(table)))
        writing = False
        await asyncio.wait(writers)
        await orders.execute("INSERT INTO orders VALUES (9999, 42, 0)")
        for client, table in clients:
            frames: list[dict[str, Any]] = []
            while not frames or frames[-1]["event"]["data"]["key"] != {"id": 9999}:
                frames += await client.events(1)
            assert applied(table, frames) == await rows_of(orders, condition)


async def test_the_end_waits_for_a_listener_that_is_behind_and_nothing_of_the_rows_comes_again(
    orders: asyncpg.Connection, source_url: str, nats_server: servers.Server
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with listening(source_url, nats_server.url) as name:
            gateway = await stack.enter_async_context(running_gateway(nats_server.url, name, database_url=source_url))
        await orders.execute("INSERT INTO orders VALUES (1000, 1, 1)")
        pattern = f"pg.{name}.change.public.orders.>"
        client, other = await stack.enter_async_context(peer(gateway)), await stack.enter_async_context(peer(gateway))
        await client.send(op="subscribe", id="a", subject=pattern, since="snapshot")
        frames = [await client.next() for _ in range(302)]
        assert frames[-1]["op"] == "row"
        async with listening(source_url, nats_server.url):
            end, before = await client.until("snapshot-end")
            assert before == []
            assert (await other.subscribe(pattern, since=end["position"]))["recovered"]
            await orders.execute("INSERT INTO orders VALUES (1001, 1, 1)")
            for each in (client, other):
                assert [frame["event"]["data"]["key"] for frame in await each.events(1)] == [{"id": 1001}]


async def test_rows_are_what_events_of_them_would_be(live: tuple[RunningGateway, str], orders: asyncpg.Connection) -> None:
    """Digits, time zones and NULL alike."""
    gateway, pattern = live
    await orders.execute("SET timezone = 'Asia/Tokyo'; INSERT INTO orders VALUES (1000, NULL, 1.10000000000000000001, '2026-01-01 00:00:00.5+09', E'a\\nb')")
    async with peer(gateway) as client:
        await client.send(op="subscribe", id="a", subject=pattern, since="snapshot", where={"id": {"eq": 1000}})
        assert (await client.next())["op"] == "subscribed"
        row = await client.socket.recv(decode=False)
        assert b'"total":1.10000000000000000001,' in row
        assert (await client.next())["op"] == "snapshot-end"
        await client.subscribe(pattern, "b", since="start", where={"id": {"eq": 1000}})
        event = await client.socket.recv(decode=False)
        assert event.partition(b'"new":')[2].startswith(row.partition(b'"row":')[2].removesuffix(b"}"))


async def test_where_select_and_the_watch_s_own_condition_and_columns(live: tuple[RunningGateway, str], orders: asyncpg.Connection) -> None:
    gateway, pattern = live
    async with peer(gateway) as client, httpx.AsyncClient() as http:
        document = (await http.get(f"{gateway.url}/asyncapi.json")).json()
        messages = document["components"]["messages"]
        asked = {"where": {"customer": {"eq": 42}, "total": {"lte": 10.1}}, "select": ["total"]}
        assert problems({"op": "subscribe", "id": "a", "subject": pattern, "since": "snapshot", **asked}, messages["subscribe"]["payload"], document) == []
        rows, _, end = await rows_and_end(client, pattern, **asked)
        assert problems({"op": "snapshot-end", "id": "a", "position": end}, messages["snapshot-end"]["payload"], document) == []
        assert [problems(row, messages["row"]["payload"], document) for row in rows] == [[]] * 5
        rows, _, _ = await rows_and_end(client, pattern, id="b", where={"customer": {"eq": 42}, "total": {"lte": 10.1}}, select=["total"])
        assert [(row["key"], row["row"]) for row in rows] == [({"id": n}, {"total": n + 0.1}) for n in (2, 4, 6, 8, 10)]
    await watch(orders, ["orders"], columns=["id", "customer"], when="id <= 5", exact_numbers=True)
    async with peer(gateway) as client:
        rows, _, _ = await rows_and_end(client, pattern)
        assert sorted(row["key"]["id"] for row in rows) == [1, 2, 3, 4, 5]
        assert rows[0]["row"].keys() == {"id", "customer"}


async def test_a_route_in_the_pattern_is_a_condition_on_the_rows(live: tuple[RunningGateway, str], orders: asyncpg.Connection) -> None:
    gateway, pattern = live
    await watch(orders, ["orders"], route=["customer"])
    root = pattern.removesuffix(".>")
    async with peer(gateway) as client:
        rows, _, _ = await rows_and_end(client, f"{root}.*.42")
        assert {row["row"]["customer"] for row in rows} == {42}
        assert len(rows) == 150
        refused = await client.subscribe(f"{root}.*", "b", since="snapshot")
        assert (refused["code"], "route" in refused["message"]) == ("bad-since", True)


async def test_a_token_s_rules_hold_for_rows(orders: asyncpg.Connection, source_url: str, nats_server: servers.Server) -> None:
    await orders.execute("UPDATE orders SET note = 'secret'")
    rules = {"rows": {"public.orders": {"customer": {"eq": 42}}}, "hidden": {"public.orders": ["note", "id"]}}
    token = jwt.encode({"exp": int(time.time()) + 60, "subscribe": ["pg.>"], **rules}, SECRET, "HS256")
    async with (
        listening(source_url, nats_server.url) as name,
        running_gateway(nats_server.url, name, database_url=source_url, jwt_secret=SECRET) as gateway,
        peer(gateway) as client,
    ):
        await client.send(op="auth", token=token)
        assert (await client.next())["op"] == "authenticated"
        rows, events, _ = await rows_and_end(client, f"pg.{name}.change.public.orders.>")
        assert len(rows) == 150
        assert events == []
        assert all(row["key"] == {} and row["row"].keys() == {"customer", "total", "placed"} and row["row"]["customer"] == 42 for row in rows)


async def test_server_sent_events_bring_rows_and_may_resume_only_behind_them(live: tuple[RunningGateway, str], orders: asyncpg.Connection) -> None:
    """A Last-Event-ID from among the rows would skip the others."""
    gateway, pattern = live
    await orders.execute("ALTER TABLE orders ADD position text DEFAULT 'k3v9q2m7xa-1'")
    names: list[str] = []
    ids: list[str] = []
    async with httpx.AsyncClient() as http, http.stream("GET", f"{gateway.url}/sse?subject={pattern}&since=snapshot") as response:
        async for line in response.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                names.append(value)
            if field == "id":
                ids.append(value)
                assert names[-1] == "snapshot-end"
                break
    assert names == ["subscribed", *["row"] * 300, "snapshot-end"]
    assert ids[0] != "k3v9q2m7xa-1"


async def test_a_slip_in_a_table_s_name_is_told_with_what_would_watch_it(live: tuple[RunningGateway, str], orders: asyncpg.Connection) -> None:
    gateway, pattern = live
    async with peer(gateway) as client:
        answer = await client.subscribe(pattern.replace("orders", "ordres"))
        assert "public.ordres is not watched" in answer["hint"]
        assert answer["hint"].endswith("tocsin watch public.ordres")
        assert "yet" in (await client.subscribe(pattern, "b"))["hint"]
        await orders.execute("INSERT INTO orders (id) VALUES (1000)")
        await client.events(1)
    async with peer(gateway) as client, asyncio.timeout(20):
        while "hint" in await client.subscribe(pattern, "c"):
            await asyncio.sleep(0.5)
            await client.send(op="unsubscribe", id="c")
            await client.until("unsubscribed")


async def test_what_is_no_snapshot_is_refused(live: tuple[RunningGateway, str]) -> None:
    gateway, pattern = live
    root = pattern.partition(".change")[0]
    refused = {
        f"{root}.change.public.orders.insert": "every op",
        f"{root}.change.public.*.>": "one table",
        f"{root}.event.>": "one table",
        "pg.elsewhere.change.public.orders.>": "source",
        f"{root}.change.public.other.>": "not watched",
    }
    async with peer(gateway) as client:
        for subject, said in refused.items():
            answer = await client.subscribe(subject, since="snapshot")
            assert (answer["op"], answer["code"]) == ("error", "bad-since")
            assert said in answer["message"]


async def test_the_role_of_least_rights_is_enough_and_row_security_is_never_applied_in_silence(
    orders: asyncpg.Connection, source_url: str, nats_server: servers.Server
) -> None:
    await watch(orders, ["orders"], route=["customer"], when="id < 10")
    await orders.execute(ROLE.read_text())
    await orders.execute("GRANT SELECT ON orders TO tocsin_gateway")
    parts = urlsplit(source_url)
    url = urlunsplit(parts._replace(netloc=f"tocsin_gateway@{parts.netloc.rpartition('@')[2]}"))
    async with listening(source_url, nats_server.url) as name, running_gateway(nats_server.url, name, database_url=url) as gateway, peer(gateway) as client:
        rows, _, _ = await rows_and_end(client, f"pg.{name}.change.public.orders.>")
        assert sorted(row["key"]["id"] for row in rows) == list(range(1, 10))
        await orders.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
        await client.send(op="subscribe", id="b", subject=f"pg.{name}.change.public.orders.>", since="snapshot")
        refused, _ = await client.until("error")
        assert (refused["id"], refused["code"]) == ("b", "unavailable")


async def test_a_gateway_without_a_source_says_so(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        answer = await client.subscribe(f"pg.{stream.source}.change.public.orders.>", since="snapshot")
        assert (answer["op"], answer["code"]) == ("error", "unavailable")
        assert "TOCSIN_DATABASE_URL" in answer["message"]


async def test_another_database_than_the_stream_s_is_not_taken_for_its_source(
    orders: asyncpg.Connection, source_url: str, stream: Stream, nats_server: servers.Server
) -> None:
    await orders.execute("UPDATE tocsin.identity SET stream = 'TOCSIN_ANOTHER'")
    async with running_gateway(nats_server.url, stream.source, database_url=source_url) as gateway, peer(gateway) as client:
        answer = await client.subscribe(f"pg.{stream.source}.change.public.orders.>", since="snapshot")
        assert (answer["code"], "not the database" in answer["message"]) == ("unavailable", True)
        assert "postgres" not in answer["message"]
