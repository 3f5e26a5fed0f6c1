"""The real NATS CLI sees what a NATS user expects: events, the stream, the services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest

from tests.support.pipeline import Pipeline, pipeline
from tocsin.stack.process import free_port

pytestmark = [pytest.mark.nats_cli]


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Pipeline, asyncpg.Connection]]:
    monitor = free_port()
    async with pipeline(nats_extra=f'http: "127.0.0.1:{monitor}"', MONITOR=str(monitor)) as whole:
        source = await asyncpg.connect(whole.source_url)
        await source.execute("CREATE TABLE orders (id int PRIMARY KEY, customer int, note text)")
        await whole.tocsin("install")
        await whole.tocsin("watch", "orders", "--route", "customer")
        await whole.start("listener")
        await whole.start("gateway")
        try:
            yield whole, source
        finally:
            await source.close()


async def run(cli: str, whole: Pipeline, *arguments: str) -> str:
    child = await asyncio.create_subprocess_exec(
        *(cli, "--server", whole.nats.url, *arguments), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()
    return output.decode()


async def test_nats_sub_stream_and_micro_show_what_is_there(cli: str) -> None:
    async with running() as (whole, source):
        sub = await asyncio.create_subprocess_exec(
            *(cli, "--server", whole.nats.url, "sub", "pg.>", "--count", "2"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert sub.stdout is not None
        printed = b""
        async with asyncio.timeout(30):
            while b"Subscribing on" not in printed:
                printed += await sub.stdout.readline()
            # The line comes before the server has the subscription; its list of them tells.
            while "pg.>" not in await subscriptions(whole):
                await asyncio.sleep(0.05)
            await source.execute("INSERT INTO orders VALUES (1, 42, 'a first one')")
            await source.execute("SELECT tocsin.emit('order.paid', '{\"id\": 1}')")
            printed += await sub.stdout.read()
        text = printed.decode()
        assert "pg.shop.change.public.orders.insert.42" in text
        assert "a first one" in text
        assert "pg.shop.event.order.paid" in text
        assert "Tocsin-Epoch" in text

        info = await run(cli, whole, "stream", "info", "TOCSIN_SHOP")
        assert "pg.shop.change.>" in info
        assert "tocsin.epoch" in info

        services = await run(cli, whole, "micro", "ls")
        for name in ("tocsin-listener", "tocsin-gateway"):
            assert name in services
        assert "tocsin-listener" in await run(cli, whole, "micro", "info", "tocsin-listener")


async def subscriptions(whole: Pipeline) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        told = (await client.get(f"http://127.0.0.1:{whole.environment['MONITOR']}/connz?subs=1")).json()
    return [subject for connection in told["connections"] for subject in connection.get("subscriptions_list", ())]
