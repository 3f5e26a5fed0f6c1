"""What a token hides, searched for in every byte that the gateway sends by any way; who may see everything finds it there by the same ways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import urlencode

import asyncpg
import httpx
import jwt
import msgspec
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.integration.tocsin_gateway.test_snapshot import listening
from tests.support import servers
from tests.support.gateway import RunningGateway, running_gateway
from tocsin_listener.install import install
from tocsin_listener.watch import watch

SECRET: Final = "a secret of at least thirty-two bytes!"
STRANGER: Final = 777777777
"""A customer of whom the token may not see anything: neither in a row, nor in a key, nor as a token of the route."""
SILENCE: Final = 2.0
"""Seconds after which nothing more comes."""

LAST: Final = b"the-end"
WRITES: Final = f"""
INSERT INTO orders VALUES (1, 42, 'mine', 'HIDDEN-1'), (2, 42, 'mine', 'HIDDEN-2'), (3, 42, 'mine', 'HIDDEN-3'), (4, 42, 'mine', 'HIDDEN-4');
INSERT INTO orders VALUES (900000001, {STRANGER}, 'FOREIGN', 'HIDDEN-5'), (900000002, {STRANGER}, 'FOREIGN', 'HIDDEN-6');
UPDATE orders SET note = 'HIDDEN-7' WHERE id = 1;
UPDATE orders SET tag = 'FOREIGN-2' WHERE id = 900000001;
UPDATE orders SET id = 900000003, customer = {STRANGER}, tag = 'FOREIGN-3' WHERE id = 2;
UPDATE orders SET id = 5, customer = 42, tag = 'mine' WHERE id = 900000002;
UPDATE orders SET id = 6 WHERE id = 3;
DELETE FROM orders WHERE id = 900000003;
DELETE FROM orders WHERE id = 4;
SELECT tocsin.report_drift('public', 'orders', '{{"kind": "different", "key": {{"id": 900000001}}, "note": "HIDDEN-8"}}');
"""
HIDDEN: Final = (b"HIDDEN", b"FOREIGN", str(STRANGER).encode(), b"9000000")


@pytest_asyncio.fixture
async def shop(source: asyncpg.Connection, source_url: str, nats_server: servers.Server) -> AsyncIterator[tuple[RunningGateway, str, asyncpg.Connection]]:
    """A guarded gateway over a source whose table is routed by the customer; the source's name."""
    await install(source)
    await source.execute("CREATE TABLE orders (id bigint PRIMARY KEY, customer int, tag text, note text)")
    await watch(source, ["orders"], route=["customer"])
    async with (
        listening(source_url, nats_server.url) as name,
        running_gateway(nats_server.url, name, database_url=source_url, jwt_secret=SECRET) as gateway,
    ):
        yield gateway, name, source


def token(**claims: Any) -> str:
    return jwt.encode({"exp": int(time.time()) + 600, "subscribe": ["pg.>"], "presence": True, **claims}, SECRET, "HS256")


async def over_socket(gateway: RunningGateway, bearer: str, *asked: dict[str, Any], query: str = "", protocol: str = "tocsin") -> bytes:
    """Everything that comes, until it is silent."""
    offered = [Subprotocol(protocol), Subprotocol(f"bearer.{bearer}")]
    said: list[bytes] = []
    async with connect(f"{gateway.socket_url}{query}", subprotocols=offered, compression=None, proxy=None) as socket, asyncio.timeout(20):
        for number, message in enumerate(asked):
            await socket.send(msgspec.json.encode({"op": "subscribe", "id": f"s{number}", **message}).decode())
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    said.append((await socket.recv(decode=False)).strip())
            except TimeoutError:
                return b"\n".join(said)


async def over_http(gateway: RunningGateway, bearer: str, path: str, **query: Any) -> bytes:
    """The answer; of an event stream what comes until it is silent."""
    said = b""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {bearer}"}, trust_env=False) as client:
        address = f"{gateway.url}{path}{'?' if query else ''}{urlencode(query)}"
        async with client.stream("GET", address, timeout=httpx.Timeout(10, read=SILENCE)) as answer:
            try:
                async for part in answer.aiter_raw():
                    said += part
            except httpx.ReadTimeout:
                assert path == "/sse"
    return said


def ways(gateway: RunningGateway, bearer: str, source: str) -> dict[str, Any]:
    """By name, every way in which what was written may leave the gateway."""
    everything, table = "pg.>", f"pg.{source}.change.public.orders.>"
    stranger = f"pg.{source}.change.public.orders.*.{STRANGER}"
    start: dict[str, Any] = {"since": "start"}
    filters = ({"subject": table, "where": {"customer": {"ne": 1}}, **start}, {"subject": table, "select": ["tag", "id"], **start})
    return {
        "replay": over_socket(gateway, bearer, {"subject": everything, **start}),
        "route": over_socket(gateway, bearer, {"subject": stranger, **start}),
        "filter": over_socket(gateway, bearer, *filters),
        "filter-of-other-kinds": over_socket(gateway, bearer, {"subject": f"pg.{source}.*.public.>", "where": {"customer": {"gt": 42}}, **start}),
        "snapshot": over_socket(gateway, bearer, {"subject": table, "since": "snapshot"}),
        "snapshot-of-a-route": over_socket(gateway, bearer, {"subject": stranger, "since": "snapshot"}),
        "one-line": over_socket(gateway, bearer, query=f"?{urlencode({'subject': everything, 'since': 'start'})}"),
        "cloudevents": over_socket(gateway, bearer, {"subject": everything, **start}, protocol="cloudevents.json"),
        "cloudevents-snapshot": over_socket(gateway, bearer, {"subject": table, "since": "snapshot"}, protocol="cloudevents.json"),
        "sse": over_http(gateway, bearer, "/sse", subject=everything, since="start"),
        "sse-snapshot": over_http(gateway, bearer, "/sse", subject=table, since="snapshot"),
        "history": over_http(gateway, bearer, "/events", subject=everything),
        "history-of-a-table": over_http(gateway, bearer, "/events", subject=table, where='{"tag": {"ne": "x"}}'),
        "drift": over_http(gateway, bearer, "/events", subject=f"pg.{source}.drift.>"),
        "why": over_http(gateway, bearer, "/why", subject=stranger, key="900000001"),
    }


async def test_what_a_token_hides_is_in_no_byte_of_any_way_out(shop: tuple[RunningGateway, str, asyncpg.Connection]) -> None:
    gateway, name, source = shop
    ruled = token(rows={"public.orders": {"customer": {"eq": 42}}}, hidden={"public.orders": ["note"]})
    live = [asyncio.ensure_future(until_last(gateway, bearer)) for bearer in (token(), ruled)]
    await gateway.until_metric("tocsin_gateway_subscriptions", 2.0)
    for write in WRITES.strip().splitlines():
        await source.execute(write)
    await source.execute(f"INSERT INTO orders VALUES (7, 42, '{LAST.decode()}', 'HIDDEN-9')")  # the test's own text
    whole, cut = await asyncio.gather(*live)
    mine, everybodys = ways(gateway, ruled, name), ways(gateway, token(), name)
    answers = await asyncio.gather(*mine.values(), *everybodys.values())
    told = {"live": (whole, cut), **{way: (answers[len(mine) + number], answers[number]) for number, way in enumerate(mine)}}
    for way, (all_, cut_) in told.items():
        assert any(text in all_ for text in HIDDEN), f"{way}: the search finds nothing where there is something: {all_[:300]!r}"
        for text in HIDDEN:
            shown = cut_.replace(f"orders.*.{STRANGER}".encode(), b"").replace(b"the key 900000001", b"")  # our own words, come back
            assert text not in shown, f"{way}: {text!r} in {shown!r}"
    for way in ("live", "replay", "snapshot", "cloudevents", "sse", "sse-snapshot", "history", "one-line"):
        assert LAST in told[way][1], f"{way}: what is allowed came"


async def test_no_question_tells_what_a_hidden_column_holds(shop: tuple[RunningGateway, str, asyncpg.Connection]) -> None:
    """A condition on it would be an oracle: each is refused, or holds nothing; and no refusal names it among the columns that there are."""
    gateway, name, source = shop
    await source.execute("INSERT INTO orders VALUES (1, 42, 'mine', 'HIDDEN-1')")
    ruled = token(hidden={"public.orders": ["note"]})
    table = f"pg.{name}.change.public.orders.>"
    is_it = {"note": {"like": "HIDDEN%"}}
    asked = urlencode({"subject": "pg.>", "where": msgspec.json.encode(is_it).decode()})
    nope = ({"subject": table, "where": {"nope": {"eq": 1}}}, {"subject": table, "select": ["nope"]})
    answers = await asyncio.gather(
        over_socket(gateway, ruled, *({"subject": table, "since": since, "where": is_it} for since in ("start", "snapshot"))),
        over_socket(gateway, ruled, *({"subject": "pg.>", "since": "start", "where": {"note": note}} for note in (is_it["note"], {"null": True}))),
        over_http(gateway, ruled, f"/events?{asked}"),
        over_http(gateway, token(), f"/events?{asked}"),
        over_socket(gateway, ruled, *({"subject": subject, "presence": True} for subject in (table, "pg.>"))),
        *(over_socket(gateway, bearer, *nope) for bearer in (ruled, token())),
        *(over_http(gateway, bearer, "/asyncapi.json") for bearer in (ruled, token())),
    )
    refused, wide, history, everybodys, presence, nope_here, nope_there, described_here, described_there = answers
    assert refused.count(b'"bad-where"') == 2
    assert b'"event"' not in wide
    assert (b'"events":[]' in history, b'"events":[]' in everybodys) == (True, False)
    assert presence.count(b'"forbidden"') == 2
    assert b"tag" in nope_here
    assert (b"note" in nope_here, b"note" in nope_there) == (False, True)
    assert (b'"note"' in described_here, b'"note"' in described_there) == (False, True)


async def test_a_route_tells_nothing_of_a_hidden_column(shop: tuple[RunningGateway, str, asyncpg.Connection]) -> None:
    """The table is routed by the customer: neither does a subject say whose a row is, nor which events come for a subject that names one."""
    gateway, name, source = shop
    for write in (*WRITES.strip().splitlines()[:7], f"INSERT INTO orders VALUES (8, 42, '{LAST.decode()}', '')"):
        await source.execute(write)
    table, named = f"pg.{name}.change.public.orders.>", f"pg.{name}.change.public.orders.*.{STRANGER}"
    hidden = {"public.orders": ["customer"]}
    wide, narrow = token(hidden=hidden), token(hidden=hidden, subscribe=[table])
    all_tables = f"pg.{name}.change.*.*.*.{STRANGER}"
    seen = ((table, "start"), (table, "snapshot"), ("pg.>", "start"))
    refused = ((wide, named, "start"), (wide, named, "snapshot"), (wide, all_tables, "start"), (narrow, named, "start"), (narrow, named, "snapshot"))
    sockets = [over_socket(gateway, wide, {"subject": subject, "since": since}) for subject, since in seen]
    sockets += [over_socket(gateway, bearer, {"subject": subject, "since": since}) for bearer, subject, since in refused]
    pages = [over_http(gateway, wide, path, subject=subject, since="start") for path in ("/events", "/sse") for subject in (named, all_tables)]
    # Who is allowed this one route knows whose rows they are; and a hidden column that is no route takes none from who names one, or reads it.
    allowed = over_socket(gateway, token(hidden=hidden, subscribe=[named]), {"subject": named, "since": "start"})
    other = over_socket(gateway, token(hidden={"public.orders": ["note"]}), {"subject": named, "since": "start"})
    *said, pinned, by_note = await asyncio.gather(*sockets, *pages, allowed, other)
    for number, (subject, since) in enumerate(seen):
        assert LAST in said[number], (subject, since)
        assert str(STRANGER).encode() not in said[number], (subject, since)
    for answer in said[len(seen) :]:
        assert b'"forbidden"' in answer
        assert not {b'"event":', b'"row"'} & {part for part in (b'"event":', b'"row"') if part in answer}
    assert pinned.count(b'"op":"event"') == 5
    assert f"orders.insert.{STRANGER}".encode() in by_note


async def until_last(gateway: RunningGateway, bearer: str) -> bytes:
    said = b""
    offered = [Subprotocol("tocsin"), Subprotocol(f"bearer.{bearer}")]
    async with connect(f"{gateway.socket_url}?subject=pg.%3E", subprotocols=offered, compression=None, proxy=None) as socket, asyncio.timeout(30):
        while LAST not in said:
            said += await socket.recv(decode=False)
    return said
