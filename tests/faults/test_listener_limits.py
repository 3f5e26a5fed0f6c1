"""Limits and time: a stream that is full, a window of duplicates that is over, NATS away while NOTIFYs come, and the sessions meanwhile."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest
from nats.aio.client import Client

from tests.faults.test_listener_crashes import STREAM, assert_exactly_once, events_in, journal_grown, running_listener, writers
from tests.support import oracle
from tests.support.pipeline import Pipeline
from tocsin.broker import api, stream_state
from tocsin.event import decode_event

LIMIT = 400 << 10


async def given_to_the_stream(running: Pipeline, source: asyncpg.Connection) -> list[int]:
    """Wait until the stream has the journal's last events, which concurrent writers may have committed in any order; its sequences."""
    client = Client()
    await client.connect(running.nats.url)
    try:
        last = {row["seq"] for row in await source.fetch("SELECT seq FROM tocsin.events WHERE subject <> 'canary' ORDER BY seq DESC LIMIT 20")}
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(TimeoutError):
                    seen = await oracle.stream_events(client, STREAM)
                    sequences = [int(event["sequence"]) for event in seen.events]
                    if last <= set(sequences):
                        return sequences
                await asyncio.sleep(0.1)
    finally:
        await client.close()


async def test_a_stream_at_its_limit_gives_up_its_oldest_and_takes_all_that_is_new() -> None:
    """F13: max_bytes with discard old. Under load the stream moves on; what it still has is the journal's end, once and in order."""
    async with running_listener(TOCSIN_STREAM_MAX_BYTES=str(LIMIT)) as (running, source):
        client = Client()
        await client.connect(running.nats.url)
        first = await stream_state(client, STREAM)
        assert first is not None
        async with writers(running):
            for _ in range(4):
                await source.execute("INSERT INTO t (n) SELECT generate_series(1, 1000)")
                await journal_grown(source, 200)
        sequences = await given_to_the_stream(running, source)
        state = await stream_state(client, STREAM)
        assert state is not None
        assert state.bytes <= LIMIT
        assert state.first_sequence > 3000, "the oldest are gone"
        assert state.epoch == first.epoch
        journal = [row["seq"] for row in await source.fetch("SELECT seq FROM tocsin.events WHERE subject <> 'canary'")]
        assert len(sequences) == len(set(sequences))
        assert set(sequences) <= set(journal)
        assert len(journal) > 4000
        await client.close()


async def test_a_stream_that_somebody_made_refuse_new_messages_is_set_right() -> None:
    """F13: discard new at a full stream refuses every message; the listener puts its own configuration back and goes on."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 100)")
        await assert_exactly_once(running)
        client = Client()
        await client.connect(running.nats.url)
        state = await stream_state(client, STREAM)
        assert state is not None
        await api(client, f"STREAM.UPDATE.{STREAM}", {**state.config, "discard": "new", "max_bytes": state.bytes + 100})
        async with asyncio.timeout(5):
            await source.execute("INSERT INTO t (n) SELECT generate_series(101, 500)")
        seen = await assert_exactly_once(running)
        assert len(seen.events) == 500
        now = await stream_state(client, STREAM)
        assert now is not None
        assert (now.config["discard"], now.config["max_bytes"], now.epoch) == ("old", state.config["max_bytes"], state.epoch)
        await client.close()


@pytest.mark.slow
async def test_a_restart_after_the_window_of_duplicates_repeats_nothing() -> None:
    """F2: killed within a batch, and NATS has forgotten every Nats-Msg-Id by the time of the restart: the stream's end decides."""
    async with running_listener() as (running, source):
        client = Client()
        await client.connect(running.nats.url)
        state = await stream_state(client, STREAM)
        assert state is not None
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 30000)")
        async with asyncio.timeout(20):
            while not 500 < await events_in(running) < 28_000:
                await asyncio.sleep(0.002)
        await running.kill("listener")
        part = await events_in(running)
        assert part < 30_000, "the kill came too late to show anything"
        await api(client, f"STREAM.UPDATE.{STREAM}", {**state.config, "duplicate_window": 100_000_000})
        last = await stream_state(client, STREAM)
        assert last is not None
        # A message of an id that is taken is stored once the id is forgotten; this one goes into a stream of the test's own.
        await api(client, "STREAM.CREATE.WINDOW", {"name": "WINDOW", "subjects": ["window"], "storage": "memory", "duplicate_window": 100_000_000})
        async with asyncio.timeout(10):
            await client.jetstream().publish("window", b"", headers={"Nats-Msg-Id": "once"})
            while (await client.jetstream().publish("window", b"", headers={"Nats-Msg-Id": "once"})).duplicate:
                await asyncio.sleep(0.05)
        await running.start("listener")
        seen = await assert_exactly_once(running)
        assert len(seen.events) == 30_000
        await client.close()


async def test_notifies_reach_the_journal_while_nats_is_away() -> None:
    """Carried channels don't wait for NATS: what was notified meanwhile comes when it is back."""
    async with running_listener(TOCSIN_CHANNELS="heard") as (running, source):
        await running.nats.kill()
        for number in range(50):
            await source.execute("SELECT pg_notify('heard', $1)", str(number))
        async with asyncio.timeout(15):
            while await source.fetchval("SELECT count(*) FROM tocsin.journal WHERE subject = 'notify.heard'") < 50:
                await asyncio.sleep(0.05)
        await running.nats.start()
        client = Client()
        await client.connect(running.nats.url)
        subscription = await client.jetstream().pull_subscribe("pg.shop.notify.heard", stream=STREAM)
        found: list[str] = []
        async with asyncio.timeout(30):
            while len(found) < 50:
                with contextlib.suppress(TimeoutError):
                    found += [decode_event(message.data).data["payload"] for message in await subscription.fetch(50, timeout=1)]
        assert found == [str(number) for number in range(50)]
        await client.close()


@pytest.mark.slow
async def test_the_session_that_listens_never_stays_in_a_transaction() -> None:
    """F16: a session that LISTENs and sits in a transaction holds up the NOTIFY queue of the whole cluster; large batches are read elsewhere."""
    async with running_listener() as (running, source):
        await running.nats.stop()
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 40000)")
        await running.nats.start()
        listening = "SELECT state, xact_start < now() - interval '1 second' AS long FROM pg_stat_activity WHERE application_name = 'tocsin listener reader'"
        bulk = "SELECT xact_start IS NOT NULL FROM pg_stat_activity WHERE application_name = 'tocsin listener bulk'"
        looked = beside = 0
        async with asyncio.timeout(40):
            while await events_in(running) < 40_000:
                rows = await source.fetch(listening)
                assert not any("in transaction" in (row["state"] or "") or row["long"] for row in rows), rows
                looked += len(rows)
                beside += bool(await source.fetchval(bulk))
        assert looked > 5
        assert beside > 0, "the backlog was read in a transaction of another session"
