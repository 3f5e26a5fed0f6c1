"""The listener as a whole in this process: from a commit to the stream."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import asyncpg
import httpx
import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from tests.support.servers import Server
from tocsin.event import COPY, MSG_ID, decode_event
from tocsin.settings import Settings, load_settings
from tocsin.stack.process import free_port
from tocsin_listener.__main__ import serve
from tocsin_listener.watch import watch

ANNOUNCED = ".event.tocsin.quarantined"

Start = Callable[..., contextlib.AbstractAsyncContextManager[Settings]]


@contextlib.asynccontextmanager
async def listening(url: str, nats_server: Server, **flags: object) -> AsyncIterator[Settings]:
    """A listener of that database, ready."""
    settings = load_settings(database_url=url, nats_url=nats_server.url, listener_port=free_port(), **{"stream_max_bytes": "64MB", **flags})
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        await until_ready(settings)
        yield settings
        stop.set()


@pytest.fixture
def start(installed: asyncpg.Connection, source_url: str, nats_server: Server) -> Start:
    """`async with start(**settings)`: a listener of the fresh source."""
    return functools.partial(listening, source_url, nats_server)


async def until_ready(settings: Settings) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(15):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"http://127.0.0.1:{settings.listener_port}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.02)


async def acknowledged(settings: Settings) -> float:
    """How many events the listener has had acknowledged."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{settings.listener_port}/metrics")).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("tocsin_events_total "))


async def messages(nats: Client, settings: Settings, count: int) -> list[Msg]:
    """The stream's first `count` messages but the canary's, and what announces a refusal."""
    context = nats.jetstream()
    subscription = await context.pull_subscribe(f"{settings.subject_prefix}.>", stream=settings.stream_name, config=ConsumerConfig(ack_policy=AckPolicy.ALL))
    found: list[Msg] = []
    async with asyncio.timeout(15):
        while len(found) < count:
            with contextlib.suppress(TimeoutError):
                some = await subscription.fetch(min(500, count - len(found)), timeout=1)
                await some[-1].ack()
                found += [message for message in some if not message.subject.endswith(ANNOUNCED)]
    await subscription.unsubscribe()
    return found


async def test_an_event_is_a_cloudevent_with_a_stable_id(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    async with start() as settings:
        txid = await installed.fetchval("WITH i AS (INSERT INTO t VALUES (42)) SELECT pg_current_xact_id()::text")
        (message,) = await messages(nats, settings, 1)
    event = decode_event(message.data)
    incarnation = await installed.fetchval("SELECT incarnation FROM tocsin.identity")
    assert event.id == f"{incarnation}-{event.sequence}"
    assert (event.specversion, event.source, event.type, event.subject) == ("1.0", f"/pg/{settings.source_name}", "public.t.insert", "42")
    assert event.txid == txid
    assert event.time.endswith("Z")
    assert event.data == {"op": "insert", "schema": "public", "table": "t", "key": {"id": 42}, "new": {"id": 42}}
    assert (message.headers or {})[MSG_ID] == f"{(message.headers or {})['Tocsin-Epoch']}-{event.id}"
    assert message.subject == f"pg.{settings.source_name}.change.public.t.insert"


async def test_events_tell_their_place_in_the_transaction_and_its_annotation(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    """Small and large differences are read in two ways, and tell the same. An annotation holds for what came before it, too."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    for size in (5, 2500):
        async with installed.transaction():
            await installed.execute(f"INSERT INTO t SELECT generate_series({size} * 10, {size} * 11 - 1)")
            await installed.execute(
                """SELECT tocsin.emit('hello'), tocsin.annotate('{"actor": "user-7"}'); INSERT INTO t VALUES ($$-1$$); DELETE FROM t WHERE id = -1"""
            )
    await installed.execute("INSERT INTO t VALUES (-2)")
    await installed.execute("SET tocsin.annotation = '\"no} json'; INSERT INTO t VALUES (-3); RESET tocsin.annotation")
    async with start() as settings:
        found = await messages(nats, settings, 5 + 2500 + 2 * 3 + 2)
    seen = [msgspec.json.decode(m.data) for m in found]
    assert [e["txposition"] for e in seen] == [*range(1, 9), *range(1, 2504), 1, 1]
    assert all(e["annotation"] == {"actor": "user-7"} for e in seen[:-2])
    assert "annotation" not in seen[-2]
    assert seen[-1]["annotation"] == '"no} json', "whatever a writer sets by itself is told as text, and breaks nothing"


async def test_a_clean_stop_leaves_nothing_to_be_read_again(start: Start, installed: asyncpg.Connection) -> None:
    """However large the last batch was, and though it was acknowledged a moment ago."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    async with start() as settings:
        before = await acknowledged(settings)
        await installed.execute("INSERT INTO t SELECT generate_series(1, 3000)")
        async with asyncio.timeout(20):
            while await acknowledged(settings) < before + 3000:
                await asyncio.sleep(0.002)
    left = await installed.fetchrow(
        """SELECT intended IS NULL AS complete, (SELECT count(*) FROM tocsin.journal WHERE NOT pg_visible_in_snapshot(xid, reached)) AS rows
           FROM tocsin.progress ORDER BY n DESC LIMIT 1"""
    )
    assert left is not None
    assert (left["complete"], left["rows"]) == (True, 0)


async def test_a_changed_route_is_told_under_both(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, customer text); INSERT INTO t VALUES (1, 'a b')")
    await watch(installed, ["t"], route=["customer"])
    async with start() as settings:
        await installed.execute("UPDATE t SET customer = NULL")
        new, copy = await messages(nats, settings, 2)
    root = f"pg.{settings.source_name}.change.public.t.update"
    assert (new.subject, copy.subject) == (f"{root}.%N", f"{root}.a%20b")
    assert new.data == copy.data
    assert (COPY in (new.headers or {}), (copy.headers or {})[COPY]) == (False, "1")


async def test_existing_channels_are_carried_as_they_are(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    async with start(channels="My-Channel,other") as settings:
        await installed.execute("""NOTIFY "My-Channel", '{"a": 1'; NOTIFY other; NOTIFY unheard""")
        found = await messages(nats, settings, 2)
    assert [m.subject for m in found] == [f"pg.{settings.source_name}.notify.My-Channel", f"pg.{settings.source_name}.notify.other"]
    assert decode_event(found[0].data).data["payload"] == '{"a": 1'


async def test_what_nats_refuses_is_set_aside_and_the_rest_goes_on(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    """In the middle of a batch, and twice; a restart skips it as well."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    await watch(installed, ["t"])
    await installed.execute("UPDATE tocsin.identity SET max_event = 4000000")
    await watch(installed, ["t"])
    async with start() as settings:
        await installed.execute("INSERT INTO t SELECT g, CASE WHEN g IN (3, 7) THEN repeat('x', 1500000) ELSE 'small' END FROM generate_series(1, 10) AS g")
        found = await messages(nats, settings, 8)
    async with start() as settings:
        await installed.execute("INSERT INTO t VALUES (11, 'after')")
        found = await messages(nats, settings, 9)
    assert [decode_event(m.data).data["key"]["id"] for m in found] == [1, 2, 4, 5, 6, 8, 9, 10, 11]
    rows = await installed.fetch("SELECT subject, reason, length(message) AS size FROM tocsin.quarantine ORDER BY seq")
    assert [r["size"] > 1_500_000 for r in rows] == [True, True]
    assert "max_payload" in rows[0]["reason"]


async def test_the_order_in_a_transaction_and_of_transactions(start: Start, installed: asyncpg.Connection, nats: Client, source_url: str) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    await watch(installed, ["t"])
    async with start() as settings:
        early = await asyncpg.connect(source_url)
        transaction = early.transaction()
        await transaction.start()
        await early.execute("INSERT INTO t VALUES (1, 0)")
        await installed.execute("INSERT INTO t VALUES (2, 0)")
        await early.execute("UPDATE t SET n = 1 WHERE id IN (1, 2)")
        await transaction.commit()
        await early.close()
        found = [decode_event(m.data) for m in await messages(nats, settings, 4)]
    assert [(e.data["op"], e.data["key"]["id"]) for e in found] == [("insert", 2), ("insert", 1), ("update", 1), ("update", 2)]


async def test_the_stream_is_made_as_configured_and_kept_so(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    async with start(stream_max_age="1h", stream_max_bytes="10MB") as settings:
        config = (await nats.jetstream().stream_info(settings.stream_name)).config
        assert (config.max_age, config.max_bytes, config.allow_direct) == (3600, 10_000_000, True)
        assert f"pg.{settings.source_name}.change.>" in (config.subjects or [])
        assert f"_tocsin.{settings.source_name}.canary" in (config.subjects or [])
        epoch = (config.metadata or {})["tocsin.epoch"]
    async with start(stream_max_age="2h") as settings:
        config = (await nats.jetstream().stream_info(settings.stream_name)).config
        assert (config.max_age, (config.metadata or {})["tocsin.epoch"]) == (timedelta(hours=2).total_seconds(), epoch)


async def test_health_metrics_and_the_service_protocol(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    async with start() as settings, httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.listener_port}") as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        ready = (await client.get("/readyz")).json()
        assert (ready["ready"], ready["role"]) == (True, "leader")
        metrics = (await client.get("/metrics")).text
        assert "tocsin_leader 1.0" in metrics
        assert "tocsin_fallback_finds 0.0" in metrics
        assert (await client.get("/docs")).status_code == 200
        answer = await nats.request("$SRV.INFO.tocsin-listener", timeout=2)
        assert msgspec.json.decode(answer.data)["name"] == "tocsin-listener"


async def rotate(source: asyncpg.Connection) -> bool:
    number = await source.fetchval("SELECT tocsin.empty_next_leaf(0, interval '0')")
    if number is not None:
        await source.execute("SELECT tocsin.advance($1)", number)
    return number is not None


async def test_leaves_are_emptied_only_behind_the_cursor(start: Start, installed: asyncpg.Connection, nats: Client, source_url: str) -> None:
    """Round the ring of leaves: what is not yet sent, or not yet committed, stays."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    kept = "SELECT array_agg(key ORDER BY seq) FROM tocsin.events WHERE subject <> 'canary'"
    async with start() as settings:
        await installed.execute("INSERT INTO t VALUES (1)")
        await messages(nats, settings, 1)
        await installed.execute("SELECT tocsin.advance(1)")
        writer = await asyncpg.connect(source_url)
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute("INSERT INTO t VALUES (2)")
        async with asyncio.timeout(10):
            while await installed.fetchval(kept) is not None:
                await rotate(installed)
                await asyncio.sleep(0.02)
        while await rotate(installed):
            pass
        assert await installed.fetchval("SELECT (last_value >> 36) % 8 FROM tocsin.leaf") == 0, "the open writer's leaf, 1, is left alone"
        await transaction.commit()
        await writer.close()
        await messages(nats, settings, 2)
    await installed.execute("INSERT INTO t VALUES (3); SELECT tocsin.advance(8 + 7)")
    assert not any([await rotate(installed) for _ in range(3)]), "the next leaf, 0, holds an event that was never sent"
    assert "3" in await installed.fetchval(kept)


async def test_the_oldest_writer_the_journal_and_the_queue_are_measured(start: Start, installed: asyncpg.Connection, source_url: str) -> None:
    writer = await asyncpg.connect(source_url)
    pid = await writer.fetchval("SELECT pg_backend_pid()")
    await writer.execute("BEGIN; SELECT pg_current_xact_id()")
    async with start() as settings, httpx.AsyncClient() as client, asyncio.timeout(15):
        metrics = ""
        while f'tocsin_oldest_writer_seconds{{pid="{pid}"}}' not in metrics:
            await asyncio.sleep(0.05)
            metrics = (await client.get(f"http://127.0.0.1:{settings.listener_port}/metrics")).text
    figures = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(figures["tocsin_journal_bytes"]) > 0
    assert 0 <= float(figures["tocsin_notify_queue_usage"]) < 1
    assert (float(figures["tocsin_standby"]), float(figures["tocsin_quarantine_waiting"])) == (0, 0)
    writer.terminate()
