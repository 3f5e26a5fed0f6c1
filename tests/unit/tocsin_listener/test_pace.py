"""When a chunk goes as an atomic batch: only where it was measured to be acknowledged sooner than single messages."""

from __future__ import annotations

import asyncio

from tocsin_listener.pace import FEW, LOOK_AGAIN, Pace


async def told(pace: Pace, count: int, seconds: float, *, batch: bool = False) -> None:
    """One chunk of `count` messages that took so long."""
    loop = asyncio.get_running_loop()
    acknowledged: asyncio.Future[object] = loop.create_future()
    pace.measure(acknowledged, count, batch=batch)
    await asyncio.sleep(seconds)
    acknowledged.set_result(None)
    await asyncio.sleep(0)


async def test_single_messages_until_something_is_known_and_while_they_are_fast() -> None:
    pace = Pace()
    assert not pace.batch(500)
    await told(pace, 10_000, 0.001)
    assert not pace.batch(500)


async def test_a_batch_where_each_message_waits_for_the_disk_but_not_for_a_few() -> None:
    pace = Pace()
    await told(pace, 10, 0.01)
    assert pace.batch(500)
    assert not pace.batch(FEW)
    assert not pace.batch(1)


async def test_a_batch_that_is_slower_than_its_messages_is_not_sent_again() -> None:
    """On a busy machine everything takes long: what counts is which of the two takes longer."""
    pace = Pace()
    await told(pace, 10, 0.002)
    assert pace.batch(100)
    await told(pace, 100, 0.1, batch=True)
    assert not pace.batch(100)


async def test_a_few_messages_teach_nothing_since_the_way_there_and_back_is_most_of_their_time() -> None:
    pace = Pace()
    await told(pace, FEW, 0.05)
    assert not pace.batch(500)


async def test_what_stood_in_the_pipe_before_is_not_counted() -> None:
    pace = Pace()
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    pace.measure(first, 100_000, batch=False)
    pace.measure(second, 100_000, batch=False)
    await asyncio.sleep(0.05)
    first.set_result(None)
    second.set_result(None)
    await asyncio.sleep(0)
    # Half a microsecond for one of the first, nothing for one of the second.
    assert not pace.batch(3_000)


async def test_a_server_that_became_fast_is_noticed() -> None:
    pace = Pace()
    await told(pace, 10, 0.01)
    assert [pace.batch(500) for _ in range(LOOK_AGAIN)].count(False) == 1
    for _ in range(30):
        await told(pace, 1_000_000, 0)
    assert not pace.batch(500)
