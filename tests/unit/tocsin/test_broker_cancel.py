"""A service that is stopped while NATS is away stops, at whatever moment the cancellation comes."""

from __future__ import annotations

import asyncio

from tocsin import broker
from tocsin.stack.process import free_port


async def test_waiting_for_a_server_can_be_cancelled_at_every_turn_of_the_loop() -> None:
    """Python 3.11's wait_for forgets a cancellation that comes with the refusal of the connection: nats-py would try on for ever."""
    servers = [f"nats://127.0.0.1:{free_port()}"]

    async def wait() -> None:
        async with broker.connect(servers, name="test"):
            raise AssertionError("nobody listens there")

    for turns in range(40):
        task = asyncio.get_running_loop().create_task(wait())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(3):
            await asyncio.wait([task])
        assert task.cancelled()
