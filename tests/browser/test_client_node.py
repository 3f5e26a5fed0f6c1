"""clients/tocsin.js under Node, over real gateways; the browser's tests are in tests/browser."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import msgspec
import pytest

from tests.support.pipeline import Pipeline
from tests.support.scripted_gateway import scripted_gateway

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients/tocsin.js"
SECRET = "a secret of at least thirty-two bytes"
ORDERS = "pg.shop.change.public.orders.*"

# With the browser's tests, since like a browser Node is no dependency of Tocsin's.
pytestmark = pytest.mark.browser


@dataclass(slots=True)
class Follower:
    """A Node process, and what it said."""

    process: asyncio.subprocess.Process
    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def keys(self) -> list[int]:
        return [line["key"] for line in self.said if "key" in line]

    async def until(self, enough: Any, patience: float = 30) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(patience):
            while not enough(self.said):
                line = await self.process.stdout.readline()
                assert line, f"node ended: {self.said[-5:]}"
                self.said.append(msgspec.json.decode(line))

    async def until_state(self, state: str) -> None:
        await self.until(lambda said: any(line.get("state") == state for line in said))


@contextlib.asynccontextmanager
async def follow(folder: Path, url: str, subject: str = ORDERS, *, socket: bool = False, **options: Any) -> AsyncIterator[Follower]:
    asked = msgspec.json.encode({"url": url, "subject": subject, **options}).decode()
    process = await asyncio.create_subprocess_exec(
        *("node", *(["--experimental-websocket"] if socket else []), str(ROOT / "tests/support/node_client.mjs")),
        *(str(folder / "client.mjs"), str(folder / "position"), asked),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Follower(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the client as a module of its own, as one would copy it."""
    shutil.copy(CLIENT, tmp_path / "client.mjs")
    return tmp_path


async def test_a_killed_gateway_costs_delay_and_no_event_and_a_restarted_client_goes_on(running: Pipeline, shop: asyncpg.Connection, folder: Path) -> None:
    async with follow(folder, running.gateway_url, keep="orders") as client:
        await client.until_state("live")
        await shop.execute("INSERT INTO orders (id, status) SELECT n, 'new' FROM generate_series(1, 50) n")
        await client.until(lambda _: len(client.keys) >= 50)
        await running.kill("gateway")
        await shop.execute("INSERT INTO orders (id, status) SELECT n, 'new' FROM generate_series(51, 90) n")
        await client.until_state("retrying")
        await running.start("gateway")
        await client.until(lambda _: len(client.keys) >= 90)
        assert client.keys == list(range(1, 91))
        client.process.terminate()
        await client.until_state("closed")
        assert await client.process.wait() == 0, "a closed subscription must let the process end"
    await shop.execute("INSERT INTO orders (id, status) SELECT n, 'new' FROM generate_series(91, 100) n")
    async with follow(folder, running.gateway_url, keep="orders") as again:
        await again.until(lambda _: len(again.keys) >= 10)
        assert again.keys == list(range(91, 101)), "kept, and gone on from, across processes"


async def test_where_and_select_say_who_enters_and_leaves(running: Pipeline, shop: asyncpg.Connection, folder: Path) -> None:
    async with follow(folder, running.gateway_url, where={"status": {"eq": "paid"}}, select=["id"]) as client:
        await client.until_state("live")
        await shop.execute("INSERT INTO orders (id, status) VALUES (1, 'new'), (2, 'paid')")
        await shop.execute("UPDATE orders SET status = 'paid' WHERE id = 1")
        await shop.execute("UPDATE orders SET status = 'sent' WHERE id = 2")
        await client.until(lambda _: len(client.keys) >= 3)
    events = [line for line in client.said if "key" in line]
    assert [(line["key"], line["change"]) for line in events] == [(2, "enter"), (1, "enter"), (2, "leave")]
    assert events[0]["new"] == {"id": 2}


async def test_a_snapshot_brings_the_rows_and_then_what_changes(running: Pipeline, shop: asyncpg.Connection, folder: Path) -> None:
    await shop.execute("INSERT INTO orders (id, status) SELECT n, 'new' FROM generate_series(1, 20) n")
    async with follow(folder, running.gateway_url, since="snapshot") as client:
        await client.until(lambda said: said[-1:] == [{"mark": "snapshot-end"}])
        await shop.execute("UPDATE orders SET status = 'paid' WHERE id = 7")
        await client.until(lambda _: client.keys == [7])
    rows = [line["row"] for line in client.said if "row" in line]
    assert sorted(row["id"] for row in rows) == list(range(1, 21))
    assert [line["mark"] for line in client.said if "mark" in line] == ["snapshot-begin", "snapshot-end"]


async def test_clients_that_a_gateway_sends_away_do_not_come_back_as_one(folder: Path) -> None:
    """Closed with 1012 in one moment; half of each pause is chance."""
    script = """
      const [client, url] = process.argv.slice(1);
      const { subscribe } = await import(client);
      const pauses = [];
      for (let number = 0; number < 20; number++) {
        let left = null;
        const live = subscribe("pg.>", { url, token: `of client ${number}`, transport: "websocket", onState: (state) => {
          if (state === "retrying") left = performance.now();
          if (state !== "connecting" || left === null) return;
          pauses.push(performance.now() - left);
          queueMicrotask(() => live.close());
          if (pauses.length === 20) console.log(JSON.stringify(pauses));
        }, onError: () => {} });
      }"""
    async with scripted_gateway() as gateway:
        gateway.closes = [(1012, "restarting")] * 20
        node = await asyncio.create_subprocess_exec(
            *("node", "--experimental-websocket", "--input-type=module", "--eval", script, (folder / "client.mjs").as_uri(), gateway.url),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(30):
                pauses = msgspec.json.decode(await node.stdout.readline(), type=list[float])  # type: ignore[union-attr]
        finally:
            if node.returncode is None:
                node.kill()
            await node.wait()
    assert len(pauses) == 20
    assert min(pauses) >= 45
    assert max(pauses) - min(pauses) >= 15


async def test_a_refusal_ends_it_with_its_code(running: Pipeline, folder: Path) -> None:
    each: tuple[tuple[dict[str, Any], str], ...] = (
        ({"subject": "a..b"}, "bad-subject"),
        ({"since": "yesterday"}, "bad-since"),
        ({"where": {"id": {"is": 1}}}, "bad-where"),
    )
    for options, code in each:
        async with follow(folder, running.gateway_url, **{"subject": ORDERS, **options}) as client:
            await client.until_state("closed")
            await client.until(lambda said, code=code: {"failed": code} in said)


async def test_a_token_goes_with_streams_messages_and_tickets_and_an_iterator_ends(running: Pipeline, shop: asyncpg.Connection, folder: Path) -> None:
    port = str(int(running.environment["TOCSIN_GATEWAY_PORT"]))
    await running.stop("gateway")
    try:
        await running.start("gateway", name="guarded", TOCSIN_JWT_SECRET=SECRET)
        url = f"http://127.0.0.1:{port}"
        async with follow(folder, url, iterate=True, token="nonsense") as refused:
            await refused.until(lambda said: {"failed": "unauthenticated"} in said)
        token = jwt.encode({"exp": time.time() + 60, "subscribe": [ORDERS]}, SECRET, "HS256")
        async with follow(folder, url, iterate=True, token=token) as client:
            await client.until_state("live")
            await shop.execute("INSERT INTO orders (id, status) VALUES (1, 'new')")
            await client.until(lambda _: client.keys == [1])
        room = "pg.shop.live.room.7"
        token = jwt.encode({"exp": time.time() + 60, "sub": "alice", "subscribe": ["pg.>"], "publish": [room]}, SECRET, "HS256")
        asked = msgspec.json.encode({"url": url, "token": token, "room": room, "elsewhere": "pg.shop.live.other"}).decode()
        messages = await asyncio.create_subprocess_exec(
            *("node", "--experimental-websocket", str(ROOT / "tests/support/node_messages.mjs"), str(folder / "client.mjs"), asked),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            told = msgspec.json.decode((await messages.communicate())[0])
        assert (told["heard"]["data"], told["heard"]["user"]) == ({"text": "hi"}, "alice")
        assert told["statuses"] == [200, 401], "a ticket lets in once"
        assert told["refused"] == ["forbidden", "unauthenticated", "unauthenticated"]
    finally:
        await running.stop("guarded")
        await running.start("gateway")


async def test_who_is_there_is_told_and_a_token_is_renewed_on_the_living_socket(running: Pipeline, shop: asyncpg.Connection, folder: Path) -> None:
    """`fresh` is what a token is made of: the Node program signs a new one whenever the client asks."""
    await running.stop("gateway")
    try:
        await running.start("gateway", name="guarded", TOCSIN_JWT_SECRET=SECRET)
        claims = {"subscribe": [ORDERS], "presence": True}
        fresh = {"secret": SECRET, "seconds": 4}
        async with follow(folder, running.gateway_url, socket=True, presence=True, fresh={**fresh, "claims": {**claims, "sub": "alice"}}) as alice:
            await alice.until(lambda said: any(line.get("here") == ["alice"] for line in said))
            # Without a WebSocket, and so by server-sent events, whose token can't be renewed.
            lasting = {"secret": SECRET, "seconds": 60, "claims": {**claims, "sub": "bob"}}
            async with follow(folder, running.gateway_url, presence=True, fresh=lasting) as bob:
                await bob.until(lambda said: any(sorted(line.get("here", [])) == ["alice", "bob"] for line in said))
                await alice.until(lambda said: any(line.get("joined") == "bob" and line["here"] == ["alice", "bob"] for line in said))
            await alice.until(lambda said: any(line.get("left") == "bob" and line["here"] == ["alice"] for line in said))
            await alice.until(lambda said: sum("signed" in line for line in said) >= 3)
            await shop.execute("INSERT INTO orders (id, status) VALUES (1, 'new')")
            await alice.until(lambda _: alice.keys == [1])
            assert [line["state"] for line in alice.said if "state" in line] == ["live"], "one connection, past its first token's end"
    finally:
        await running.stop("guarded")
        await running.start("gateway")
