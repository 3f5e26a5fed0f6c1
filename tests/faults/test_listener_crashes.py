"""The listener against kill -9 of every part: what is in the journal is in the stream, once and in order.

Tried by hand, each with one guarantee of the relay taken out: without storing the intent before publishing,
`test_a_listener_killed_again_and_again_repeats_nothing` fails; without the expected last sequence
`test_a_stranger_in_the_stream_is_noticed_and_begins_a_new_epoch` does; with the cursor kept in memory over a reconnect,
`test_nats_killed_and_started_again` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from tests.support import oracle
from tests.support.pipeline import Pipeline, pipeline
from tocsin.event import BATCH, EPOCH, MSG_ID

STREAM = "TOCSIN_SHOP"


async def epoch_of(context: JetStreamContext) -> str:
    metadata = (await context.stream_info(STREAM)).config.metadata
    assert metadata is not None
    return metadata["tocsin.epoch"]


@contextlib.asynccontextmanager
async def running_listener(*, start: bool = True, **options: Any) -> AsyncIterator[tuple[Pipeline, asyncpg.Connection]]:
    async with pipeline(**options) as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int)")
        await running.tocsin("install")
        await running.tocsin("watch", "t")
        if start:
            await running.start("listener")
        try:
            yield running, source
        finally:
            source.terminate()


WRITER = "a test's writer"


@contextlib.asynccontextmanager
async def writers(running: Pipeline, count: int = 4) -> AsyncIterator[None]:
    """Random small transactions, over every restart of the database."""

    async def write() -> None:
        while True:
            try:
                connection = await asyncpg.connect(running.source_url, timeout=5, server_settings={"application_name": WRITER})
                while True:
                    await connection.execute("INSERT INTO t (n) VALUES (1)")
                    await connection.execute("UPDATE t SET n = n + 1 WHERE id = (SELECT id FROM t ORDER BY random() LIMIT 1)")
                    await asyncio.sleep(0.003)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError):
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(write()) for _ in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
    await _writers_gone(running)


async def _writers_gone(running: Pipeline) -> None:
    """A cancelled statement may still commit; nothing does once its session has ended."""
    source = await asyncpg.connect(running.source_url)
    await source.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", WRITER)
    async with asyncio.timeout(10):
        while await source.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", WRITER):
            await asyncio.sleep(0.02)
    await source.close()


async def events_in(running: Pipeline) -> int:
    client = Client()
    await client.connect(running.nats.url)
    try:
        return (await client.jetstream().stream_info(STREAM)).state.messages
    finally:
        await client.close()


async def grown(running: Pipeline, by: int, patience: float = 20) -> None:
    """Wait until the stream has `by` messages more than now."""
    wanted = await events_in(running) + by
    async with asyncio.timeout(patience):
        while await events_in(running) < wanted:
            await asyncio.sleep(0.02)


async def journal_grown(source: asyncpg.Connection, by: int) -> None:
    """Wait until the journal has `by` rows more than now."""
    wanted = await source.fetchval("SELECT last_value FROM tocsin.seq") + by
    async with asyncio.timeout(20):
        while await source.fetchval("SELECT last_value FROM tocsin.seq") < wanted:
            await asyncio.sleep(0.02)


async def assert_exactly_once(running: Pipeline, *, patience: float = 30) -> oracle.Seen:
    """Wait until the stream holds the last row of the journal, and compare all of both."""
    source = await asyncpg.connect(running.source_url)
    wanted = {row["seq"] for row in await source.fetch("SELECT seq FROM tocsin.events WHERE subject <> 'canary'")}
    await source.close()
    client = Client()
    await client.connect(running.nats.url)
    try:
        async with asyncio.timeout(patience):
            while True:
                seen = await oracle.stream_events(client, STREAM)
                if seen.events and wanted <= {int(event["sequence"]) for event in seen.events}:
                    break
                await asyncio.sleep(0.1)
    except TimeoutError:
        log = (running.folder / "listener.log").read_text()[-3000:]
        raise AssertionError(f"{len(seen.events)} of {len(wanted)} events are in the stream\n{log}") from None
    finally:
        await client.close()
    oracle.assert_same(wanted, [int(event["sequence"]) for event in seen.events], "journal and stream")
    oracle.assert_ordered_per_key(seen, "stream")
    return seen


async def test_a_listener_killed_again_and_again_repeats_nothing() -> None:
    async with running_listener() as (running, _):
        async with writers(running):
            for more in (90, 50, 160):
                await grown(running, more)
                await running.kill("listener")
                await running.start("listener")
        seen = await assert_exactly_once(running)
        assert len(seen.events) > 300


async def test_killed_in_the_middle_of_a_large_batch_it_goes_on_where_the_stream_ends() -> None:
    """Between publishing and the cursor, by construction: the batch is long, and the stream shows part of it."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 30000)")
        async with asyncio.timeout(20):
            while not 0 < await events_in(running) - 1 < 28_000:
                await asyncio.sleep(0.002)
        await running.kill("listener")
        part = await events_in(running)
        assert 500 < part < 30_000, "the kill came too late to show anything"
        assert await source.fetchval("SELECT intended IS NOT NULL FROM tocsin.progress ORDER BY n DESC LIMIT 1")
        await running.start("listener")
        seen = await assert_exactly_once(running)
        assert len(seen.events) == 30_000
        sequences = [int(event["sequence"]) for event in seen.events]
        assert sequences == sorted(sequences)


async def test_nats_killed_and_started_again() -> None:
    async with running_listener() as (running, source):
        async with writers(running):
            for _ in range(2):
                await grown(running, 100)
                await running.nats.kill()
                await journal_grown(source, 100)
                await running.nats.start()
                await running.until_ready(running.listener_url, running.services["listener"], "listener")
        await assert_exactly_once(running)


async def test_postgres_killed_and_started_again() -> None:
    async with running_listener() as (running, _):
        async with writers(running):
            for _ in range(3):
                await grown(running, 100)
                await running.source.kill()
                await running.source.start()
        await assert_exactly_once(running)


async def test_its_sessions_terminated_by_the_administrator() -> None:
    async with running_listener() as (running, source):
        async with writers(running):
            for _ in range(5):
                await grown(running, 50)
                await source.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tocsin listener%'")
        await assert_exactly_once(running)


async def test_nats_down_at_the_start_is_waited_for() -> None:
    async with running_listener(start=False) as (running, source):
        await running.nats.stop()
        child = await running.start("listener", ready=False)
        await source.execute("INSERT INTO t (n) VALUES (1)")
        async with asyncio.timeout(15):
            while "waiting for it" not in (running.folder / "listener.log").read_text():
                await asyncio.sleep(0.05)
        assert child.returncode is None
        await running.nats.start()
        await running.until_ready(running.listener_url, child, "listener")
        await assert_exactly_once(running)


async def test_of_two_listeners_one_leads_and_the_other_takes_over() -> None:
    async with running_listener() as (running, _):
        await running.start("listener", name="second", TOCSIN_LISTENER_PORT=str(free_port()))
        async with writers(running):
            await grown(running, 50)
            await running.kill("listener")
            before = await events_in(running)
            async with asyncio.timeout(5):
                while await events_in(running) < before + 20:
                    await asyncio.sleep(0.05)
        await assert_exactly_once(running)


async def test_a_frozen_leader_that_wakes_beside_its_successor_does_no_harm() -> None:
    async with running_listener() as (running, _):
        await running.start("listener", name="second", TOCSIN_LISTENER_PORT=str(free_port()))
        async with writers(running):
            for frozen in ("listener", "second"):
                await grown(running, 50)
                os.kill(running.services[frozen].pid, signal.SIGSTOP)
                before = await events_in(running)
                async with asyncio.timeout(8):
                    while await events_in(running) < before + 50:
                        await asyncio.sleep(0.05)
                os.kill(running.services[frozen].pid, signal.SIGCONT)
                await grown(running, 50)
        await assert_exactly_once(running)


@pytest.mark.parametrize("how", ["deleted", "purged"])
async def test_a_stream_that_lost_its_past(how: str) -> None:
    """Deleted, it is made anew in a new epoch and filled from the journal; purged, nothing is repeated and the epoch stays."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 50)")
        await assert_exactly_once(running)
        client = Client()
        await client.connect(running.nats.url)
        context = client.jetstream()
        epoch = await epoch_of(context)
        await running.stop("listener")
        await (context.delete_stream(STREAM) if how == "deleted" else context.purge_stream(STREAM))
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 5)")
        await running.start("listener")
        if how == "deleted":
            seen = await assert_exactly_once(running)
            assert len(seen.events) == 55
        else:
            async with asyncio.timeout(10):
                while len(events := (await oracle.stream_events(client, STREAM)).events) < 5:
                    await asyncio.sleep(0.05)
            assert [event["key"] for event in (e["data"] for e in events)] == [{"id": n} for n in range(51, 56)]
        now = await epoch_of(context)
        assert (now == epoch) is (how == "purged")
        await client.close()


async def test_a_stranger_in_the_stream_is_noticed_and_begins_a_new_epoch() -> None:
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) VALUES (1)")
        await assert_exactly_once(running)
        client = Client()
        await client.connect(running.nats.url)
        context = client.jetstream()
        before = await epoch_of(context)
        await context.publish("pg.shop.event.forged", b"{}")
        await source.execute("INSERT INTO t (n) VALUES (2)")
        async with asyncio.timeout(10):
            while await epoch_of(context) == before:
                await asyncio.sleep(0.05)
        await assert_exactly_once(running)
        await client.close()


async def test_headers_say_where_each_message_stands() -> None:
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 3)")
        await assert_exactly_once(running)
        client = Client()
        await client.connect(running.nats.url)
        subscription = await client.jetstream().pull_subscribe("pg.shop.change.>", stream=STREAM)
        messages = await subscription.fetch(3, timeout=5)
        headers = [message.headers or {} for message in messages]
        first = int(headers[0][BATCH].split(";")[0])
        assert [h[BATCH] for h in headers] == [f"{first};{n}" for n in range(3)]
        assert ["Tocsin-Snapshots" in h for h in headers] == [True, False, False]
        assert all(h[MSG_ID].startswith(h[EPOCH] + "-") for h in headers)
        await client.close()


def free_port() -> int:
    from tocsin.stack.process import free_port as free

    return free()
