"""One pipeline and one Chromium for all of these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.support.browser import ARGUMENTS, CHROMIUM, Opened
from tests.support.pipeline import Pipeline, watched_table

TABLE = "CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL DEFAULT 0, status text NOT NULL, note text)"


@pytest_asyncio.fixture(scope="session")
async def running() -> AsyncIterator[Pipeline]:
    async with watched_table(TABLE, "orders") as started:
        yield started


@pytest_asyncio.fixture
async def shop(running: Pipeline) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(running.source_url)
    await connection.execute("TRUNCATE orders")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """Whatever a test leaves open is closed after it."""
    yield chromium
    for context in chromium.contexts:
        await context.close()


@pytest_asyncio.fixture
async def opened(chromium: Browser) -> AsyncIterator[Opened]:
    page = await chromium.new_page(viewport={"width": 1280, "height": 800})
    found = Opened(page)
    page.on("console", lambda message: found.complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    yield found
    await page.close()
