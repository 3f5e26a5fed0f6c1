"""When a chunk goes as an atomic batch: only where single messages were measured to be slow, and the chunk is large."""

from __future__ import annotations

import asyncio

from tocsin_listener.pace import FEW, LOOK_AGAIN, Pace


async def told(pace: Pace, count: int, seconds: float) -> None:
    """One chunk of `count` single messages, sent `seconds` before its acknowledgement."""
    acknowledged: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    pace.measure(acknowledged, count, asyncio.get_running_loop().time() - seconds)
    acknowledged.set_result(None)
    await asyncio.sleep(0)


async def test_single_messages_until_something_is_known_and_while_they_are_fast() -> None:
    pace = Pace()
    assert not pace.batch(500)
    await told(pace, 100, 0.002)
    assert not pace.batch(500)


async def test_batches_where_each_message_waits_for_the_disk_but_not_for_a_few() -> None:
    pace = Pace()
    await told(pace, 100, 0.03)
    assert pace.batch(500)
    assert not pace.batch(FEW)


async def test_a_few_messages_teach_nothing_since_the_way_there_and_back_is_most_of_their_time() -> None:
    pace = Pace()
    await told(pace, FEW, 0.1)
    assert not pace.batch(500)


async def test_what_stood_in_the_pipe_before_is_not_counted() -> None:
    pace = Pace()
    for _ in range(8):
        await told(pace, 100, 0.0001)
    # Sent long ago, yet acknowledged directly after the one before it.
    await told(pace, 100, 0.5)
    assert not pace.batch(500)


async def test_a_server_that_became_fast_is_noticed() -> None:
    pace = Pace()
    await told(pace, 100, 0.03)
    ways = [pace.batch(500) for _ in range(LOOK_AGAIN)]
    assert ways.count(False) == 1
    for _ in range(20):
        await told(pace, 100, 0.0001)
    assert not pace.batch(500)
