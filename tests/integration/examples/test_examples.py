"""Each example as its reader runs it, over the whole pipeline; the orders board is in tests/browser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest_asyncio

from tests.support.pipeline import Pipeline, watched_table
from tocsin.stack.process import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest_asyncio.fixture(scope="module")
async def running() -> AsyncIterator[Pipeline]:
    async with watched_table(
        "CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL)", "orders", "--route", "customer_id"
    ) as started:
        yield started


@pytest_asyncio.fixture
async def shop(running: Pipeline) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(running.source_url)
    await connection.execute("DELETE FROM orders")
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def started(*command: str, folder: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=folder, env={"PATH": "/usr/bin:/bin", **environment}, start_new_session=True
    )
    try:
        async with asyncio.timeout(30):
            yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)  # a shell's children too: they hold its output open
        async with asyncio.timeout(10):
            await child.wait()


async def lines(child: asyncio.subprocess.Process, count: int) -> list[str]:
    assert child.stdout is not None
    return [(await child.stdout.readline()).decode().rstrip() for _ in range(count)]


async def test_the_follower_goes_on_from_its_kept_position(running: Pipeline, shop: asyncpg.Connection, tmp_path: Path) -> None:
    script = (sys.executable, str(EXAMPLES / "follow_orders.py"), running.gateway_url)
    async with httpx.AsyncClient() as client:
        at = (await client.get(f"{running.gateway_url}/state")).json()["stream"]
    (tmp_path / "follow_orders.position").write_text(f"{at['epoch']}-{at['last_sequence']}")
    await shop.execute("INSERT INTO orders VALUES (1, 5, 'new')")
    async with started(*script, folder=tmp_path) as child:
        assert (await lines(child, 1))[0].startswith("insert {'id': 1}")
        await shop.execute("INSERT INTO orders VALUES (2, 5, 'new')")
        assert (await lines(child, 1))[0].startswith("insert {'id': 2}")
        # It keeps the position after the line.
        async with asyncio.timeout(10):
            before = (tmp_path / "follow_orders.position").read_text()
            while before == f"{at['epoch']}-{at['last_sequence']}" or (tmp_path / "follow_orders.new").exists():
                await asyncio.sleep(0.01)
                before = (tmp_path / "follow_orders.position").read_text()


async def test_curl_alone_follows_the_orders(running: Pipeline, shop: asyncpg.Connection, tmp_path: Path) -> None:
    await shop.execute("INSERT INTO orders VALUES (11, 5, 'new')")
    async with started("sh", str(EXAMPLES / "follow.sh"), running.gateway_url, "1m", folder=tmp_path) as child:
        while '"key":{"id":11}' not in (line := (await lines(child, 1))[0].replace(" ", "")):
            assert line.startswith("data:"), line
        await shop.execute("INSERT INTO orders VALUES (12, 6, 'new')")
        assert '"key":{"id":12}' in (await lines(child, 1))[0].replace(" ", "")


async def test_an_app_keeps_its_figures_over_a_killed_gateway(running: Pipeline, shop: asyncpg.Connection, tmp_path: Path) -> None:
    port = str(free_port())
    command = (sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app", "--port", port, "--log-level", "warning")
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 10) n")

    async def until(expected: dict[str, int], *, live: bool = True) -> None:
        async with httpx.AsyncClient() as client, asyncio.timeout(20):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    told = (await client.get(f"http://127.0.0.1:{port}/orders")).json()
                    if (told["orders"], told["live"]) == (expected, live):
                        return
                await asyncio.sleep(0.05)

    async with started(*command, folder=tmp_path, TOCSIN_GATEWAY=running.gateway_url):
        await until({"new": 10})
        await running.kill("gateway")
        await until({"new": 10}, live=False)
        await shop.execute("UPDATE orders SET status = 'paid' WHERE id <= 4")
        await shop.execute("DELETE FROM orders WHERE id = 10")
        await running.start("gateway")
        await until({"new": 5, "paid": 4})


async def test_a_durable_consumer_goes_on_where_it_was_killed(running: Pipeline, shop: asyncpg.Connection, tmp_path: Path) -> None:
    command = (sys.executable, str(EXAMPLES / "nats_consumer.py"), running.environment["TOCSIN_NATS_URL"])
    await shop.execute("INSERT INTO orders VALUES (21, 5, 'new')")
    async with started(*command, folder=tmp_path) as child:
        while (await lines(child, 1))[0] != "insert {'id': 21}":
            pass
        await asyncio.sleep(0.2)  # the acknowledgement follows the line
        child.kill()
    await shop.execute("INSERT INTO orders VALUES (22, 5, 'new')")
    async with started(*command, folder=tmp_path) as child:
        assert await lines(child, 1) == ["insert {'id': 22}"]
