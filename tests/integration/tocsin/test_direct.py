"""A real server's messages handed over directly, and requests that heed a cancellation at whatever moment it comes."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.msg import Msg

from tests.support.servers import Server
from tocsin import broker
from tocsin.direct import fields
from tocsin.errors import Unavailable


async def test_a_request_heeds_a_cancellation_that_comes_with_its_answer(nats_server: Server) -> None:
    """Python 3.11's wait_for gives the answer instead, and who asks in a loop goes on for ever."""
    async with broker.connect([nats_server.url], name="test") as link:

        async def ask() -> None:
            while True:
                await broker.api(link.client, "INFO")

        async def flush() -> None:
            while True:
                await link.client.flush()

        for turns in range(150):
            tasks = [asyncio.get_running_loop().create_task(one()) for one in (ask, flush)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            done, pending = await asyncio.wait(tasks, timeout=1)
            for task in pending:
                task.cancel()
            assert not pending, f"cancelled after {turns} turns of the loop, and it goes on"
            assert all(task.cancelled() for task in done)


async def test_a_time_limit_around_a_request_is_still_told_as_one(nats_server: Server) -> None:
    async with broker.connect([nats_server.url], name="test") as link:

        async def ask(limit: float) -> None:
            async with asyncio.timeout(limit):
                while True:
                    await broker.api(link.client, "INFO")

        for limit in (0.0, 0.0001, 0.0003):
            with pytest.raises(TimeoutError):
                await ask(limit)
        with pytest.raises(Unavailable):
            await broker.api(link.client, "NO.SUCH.CALL", wait=0.2)


async def test_behind_a_flush_the_server_has_the_subscription(nats_server: Server) -> None:
    """nats-py's own PING overtakes it, and what another connection publishes then is lost: a `subscribed` that is not true."""
    async with broker.connect([nats_server.url], name="hears") as hears, broker.connect([nats_server.url], name="says") as says:
        for number in range(300):
            heard = asyncio.Event()

            async def hear(_message: Msg, heard: asyncio.Event = heard) -> None:
                heard.set()

            subscription = await hears.client.subscribe(f"flushed.{number}", cb=hear)
            await hears.client.flush()
            await says.client.publish(f"flushed.{number}", b"")
            async with asyncio.timeout(10):
                await heard.wait()
            await subscription.unsubscribe()


async def test_messages_of_every_size_beside_ordinary_subscriptions(nats_server: Server) -> None:
    async with broker.connect([nats_server.url], name="test") as link:
        taken: list[tuple[bytes, bytes, bytes, dict[bytes, bytes]]] = []
        ordinary: list[bytes] = []
        whole = asyncio.Event()

        def on_message(subject: bytes, reply: bytes, body: bytes, headers: bytes) -> None:
            taken.append((subject, reply, body, fields(headers)))
            if body == b"end":
                whole.set()

        async def on_ordinary(message: object) -> None:
            ordinary.append(message.data)  # type: ignore[attr-defined]

        direct = await link.client.listen("direct.*", on_message)
        await link.client.subscribe("direct.*", cb=on_ordinary)
        bodies = [b"x" * size for size in (0, 1, 5, 300, 32_768, 65_536, 900_000, 2)] * 3 + [b"end"]
        for number, body in enumerate(bodies):
            await link.client.publish(f"direct.{number}", body, headers={"Number": str(number)} if number % 4 else None, reply="r" if number % 2 else "")
        async with asyncio.timeout(10):
            await whole.wait()
        assert [body for _, _, body, _ in taken] == bodies == ordinary
        assert [(subject, reply, headers) for subject, reply, _, headers in taken] == [
            (b"direct.%d" % n, b"r" if n % 2 else b"", {b"Number": b"%d" % n} if n % 4 else {}) for n in range(len(bodies))
        ]
        await link.client.forget(direct)
        await link.client.publish("direct.x", b"late")
        await link.client.flush()
        assert len(taken) == len(bodies)
