"""The checker's page in a real Chromium."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import jwt
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.support import servers
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_check.__main__ import serve
from tocsin_check.replication.replicate import replicate

pytestmark = pytest.mark.browser
SHOTS = os.environ.get("TOCSIN_TEST_SCREENSHOTS")


@pytest_asyncio.fixture
async def address(
    source: asyncpg.Connection, source_url: str, replica_url: str, source_server: servers.Server, nats_server: servers.Server
) -> AsyncIterator[str]:
    """A checker over three replicated tables."""
    await source.execute("""
        CREATE TABLE orders (id bigint PRIMARY KEY, customer int, note text); INSERT INTO orders SELECT i, i % 9, 'note ' || i FROM generate_series(1, 5000) i;
        CREATE TABLE customers (region text, id int, name text, PRIMARY KEY (region, id));
        INSERT INTO customers SELECT 'eu', i, '<b>' || i FROM generate_series(1, 40) i;
        CREATE TABLE products (sku text PRIMARY KEY, price numeric); INSERT INTO products SELECT md5(i::text), i FROM generate_series(1, 300) i""")
    own = source_url.replace(source_server.url.rpartition("/")[0], source_server.own_url.rpartition("/")[0])
    await replicate(source_url=source_url, replica_url=replica_url, source_url_from_replica=own, patience=60)
    settings = load_settings(database_url=source_url, replica_url=replica_url, nats_url=nats_server.url, check_port=free_port(), check_max_load=1)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        try:
            yield f"http://127.0.0.1:{settings.check_port}/"
        finally:
            stop.set()


async def shot(page: Page, name: str) -> None:
    if SHOTS:
        await page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


async def test_one_look_tells_whether_the_replica_can_be_trusted(
    browser: Browser, address: str, replica: asyncpg.Connection, source: asyncpg.Connection
) -> None:
    page = await browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((address, "data:")) else faults.append(request.url))
    await page.goto(address)
    await expect(page.get_by_role("heading", level=1)).to_have_text("The replica equals its source", timeout=30_000)
    await expect(page.locator("#tables tbody tr")).to_have_count(3)
    await expect(page.locator("#map rect.clean")).to_have_count(3)
    await expect(page.locator("#lag svg .line")).to_have_count(1, timeout=20_000)
    assert await page.locator("#lag rect").evaluate_all("gaps => gaps.every(gap => gap.x.baseVal.value >= 0)"), "the time before the chart is not drawn"
    await expect(page.locator("#columns-section")).to_be_hidden()
    await expect(page.locator("#repair")).to_be_hidden()
    await shot(page, "in-sync")
    await replica.execute(
        "DELETE FROM orders WHERE id <= 60; UPDATE orders SET note = 'x', customer = -1 WHERE id = 77; INSERT INTO customers VALUES ('<i>us</i>', 7, 'extra')"
    )
    await page.get_by_role("button", name="Audit now").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("The replica has drifted", timeout=30_000)
    await expect(page.locator("#verdict p").first).to_contain_text("62 rows in 2 of 3 tables")
    await expect(page.locator("#rows tbody")).to_contain_text("region = <i>us</i>, id = 7")
    await expect(page.locator("#rows .group")).to_have_text(["public.orders 61 rows, the first 10", "public.customers 1 row"])
    await page.get_by_role("button", name="More rows").click()
    await expect(page.locator("#rows tbody")).to_contain_text("customer, note")
    await expect(page.locator("#map rect.drifted")).to_have_count(2)
    await expect(page.locator("#map")).to_contain_text("public.orders 1 block: 1 drifted")
    await expect(page.locator("#columns")).to_contain_text("public.orders (missing)60")
    await expect(page.locator("#columns")).to_contain_text("public.orders note1")
    await expect(page.locator("#repair-command")).to_have_text("tocsin drift 'public.customers' 'public.orders' --repair")
    await page.get_by_role("button", name="Copy").click()
    await expect(page.locator("#copy")).to_have_text(re.compile("Copied|Selected"))
    await expect(page.locator("#tables tbody tr", has_text="products")).to_contain_text("every row, in one go")
    await expect(page.locator("#tables .unfollowed").first).to_have_attribute("title", re.compile("does not watch it"))
    await expect(page.locator("#history tbody tr", has_text="drift")).to_have_count(2)
    await expect(page.locator("#history tbody tr", has_text="in sync")).to_have_count(3)
    await shot(page, "drift")
    assert faults == []


async def test_of_many_tables_the_equal_ones_stand_behind_a_button(
    browser: Browser, address: str, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, source_server: servers.Server
) -> None:
    await source.execute("DO $$ BEGIN FOR i IN 1..30 LOOP EXECUTE format('CREATE TABLE many%s (id int PRIMARY KEY)', i); END LOOP; END $$")
    own = source_url.replace(source_server.url.rpartition("/")[0], source_server.own_url.rpartition("/")[0])
    await replicate(source_url=source_url, replica_url=replica_url, source_url_from_replica=own, patience=100)
    await replica.execute("INSERT INTO many9 VALUES (1)")
    page = await browser.new_page()
    await page.goto(address)
    await expect(page.locator("#tables tbody tr").first).to_contain_text("many9", timeout=60_000)
    await expect(page.get_by_role("button", name="All 33 tables")).to_be_visible(timeout=60_000)
    await expect(page.locator("#tables tbody tr")).to_have_count(20)
    await expect(page.locator("#map svg")).to_have_count(20)
    await shot(page, "many")
    await page.get_by_role("button", name="All 33 tables").click()
    await expect(page.locator("#tables tbody tr")).to_have_count(33)
    await expect(page.get_by_role("button", name="Fewer tables")).to_be_visible()


async def test_lag_and_findings_are_shown_in_the_dark_and_on_a_phone(
    browser: Browser, address: str, replica: asyncpg.Connection, source: asyncpg.Connection
) -> None:
    context = await browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = await context.new_page()
    await page.goto(address)
    await expect(page.get_by_role("heading", level=1)).to_have_text("The replica equals its source", timeout=30_000)
    await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
    await source.execute("INSERT INTO products VALUES ('new', 1)")
    await expect(page.get_by_role("heading", level=1)).to_have_text("The replica is behind", timeout=40_000)
    await expect(page.locator("#findings")).to_contain_text("ENABLE")
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing may stick out sideways"
    await shot(page, "phone-lagging")
    await context.close()


async def test_a_page_that_needs_a_token_asks_for_it_and_keeps_it_out_of_the_address(
    browser: Browser, source: asyncpg.Connection, source_url: str, replica_url: str, source_server: servers.Server, nats_server: servers.Server
) -> None:
    secret = "a secret of at least thirty-two bytes"
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    own = source_url.replace(source_server.url.rpartition("/")[0], source_server.own_url.rpartition("/")[0])
    await replicate(source_url=source_url, replica_url=replica_url, source_url_from_replica=own, patience=60)
    settings = load_settings(database_url=source_url, replica_url=replica_url, nats_url=nats_server.url, check_port=free_port(), jwt_secret=secret)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        try:
            page = await browser.new_page()
            await page.goto(f"http://127.0.0.1:{settings.check_port}/")
            await expect(page.locator("#verdict")).to_contain_text("It asks for a token")
            await page.get_by_label("This checker asks for a token").fill("nonsense")
            await page.get_by_role("button", name="Use it").click()
            await expect(page.locator("#verdict")).to_contain_text("the token is refused")
            await page.get_by_label("This checker asks for a token").fill(jwt.encode({"exp": time.time() + 60, "subscribe": ["pg.>"]}, secret, "HS256"))
            await page.get_by_role("button", name="Use it").click()
            await expect(page.get_by_role("heading", level=1)).to_have_text("The replica equals its source", timeout=30_000)
            await expect(page.locator("#token")).to_be_hidden()
            assert "eyJ" not in page.url
        finally:
            stop.set()
