"""The orders board of examples/, served from an origin of its own, in a real Chromium."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.support.pipeline import Pipeline, pipeline
from tocsin.stack.process import free_port

pytestmark = pytest.mark.browser

BOARD = Path(__file__).parents[2] / "examples/orders-board"


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Pipeline]:
    async with pipeline() as started:
        connection = await asyncpg.connect(started.source_url)
        await connection.execute("CREATE TABLE orders (id int PRIMARY KEY, status text NOT NULL, note text)")
        await connection.execute("INSERT INTO orders VALUES (1, 'new', NULL), (2, 'new', 'ring twice'), (3, 'paid', NULL)")
        await started.tocsin("install")
        await started.tocsin("watch", "orders")
        yield started
        await connection.close()


async def test_the_board_has_the_rows_and_follows_them_over_a_killed_gateway(running: Pipeline, browser: Browser) -> None:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    await running.start("listener")
    await running.start("gateway", TOCSIN_ALLOWED_ORIGINS=origin)
    shop = await asyncpg.connect(running.source_url)
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port), "--directory", str(BOARD)), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        page = await browser.new_page()
        for _ in range(100):
            try:
                await page.goto(f"{origin}/?gateway={running.gateway_url}")
                break
            except Exception:  # noqa: BLE001  # the server is not up yet
                await asyncio.sleep(0.05)
        new, paid = page.locator("[data-status=new] li"), page.locator("[data-status=paid] li")
        await expect(page.locator("#state")).to_have_text("live")
        await expect(new).to_have_count(2)
        await expect(new.filter(has_text="#2")).to_have_text("#2 · ring twice")
        await shop.execute("UPDATE orders SET status = 'paid' WHERE id = 2")
        await expect(paid).to_have_count(2)
        await running.kill("gateway")
        await expect(page.locator("#state")).not_to_have_text("live")
        await shop.execute("DELETE FROM orders WHERE id = 1")
        await shop.execute("INSERT INTO orders VALUES (4, 'new', '<img src=x>')")
        await running.start("gateway", TOCSIN_ALLOWED_ORIGINS=origin)
        await expect(new).to_have_text(["#4 · <img src=x>"], timeout=15_000)
        await expect(paid).to_have_count(2)
    finally:
        server.terminate()
        await server.wait()
        await shop.close()
