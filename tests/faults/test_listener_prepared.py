"""Prepared transactions: a transaction that rang can't be PREPAREd, so where they are possible nobody rings."""

from __future__ import annotations

import asyncio

import asyncpg

from tests.faults.test_listener_crashes import assert_exactly_once, running_listener


async def test_a_writer_can_prepare_and_its_events_come_when_it_commits() -> None:
    async with running_listener(configuration={"max_prepared_transactions": "5"}) as (running, source):
        for number in range(3):
            await asyncio.sleep(0.1)  # long enough for a listener that may sleep to do so
            await source.execute(f"BEGIN; INSERT INTO t (n) VALUES ({number}); PREPARE TRANSACTION 'p{number}'")
        await source.execute("INSERT INTO t (n) VALUES (10)")
        for number in (2, 0):
            await source.execute(f"COMMIT PREPARED 'p{number}'")
        await source.execute("ROLLBACK PREPARED 'p1'")
        seen = await assert_exactly_once(running)
        assert sorted(event["data"]["new"]["n"] for event in seen.events) == [0, 2, 10]
        assert isinstance(source, asyncpg.Connection)
