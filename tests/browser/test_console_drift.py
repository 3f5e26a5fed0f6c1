"""The console's charts of lag and drift, over a real checker and a replica that somebody altered."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Locator, expect

from tests.support.browser import Opened, show
from tests.support.pipeline import Pipeline, pipeline

pytestmark = pytest.mark.browser


@pytest_asyncio.fixture
async def replicated() -> AsyncIterator[Pipeline]:
    """A watched and replicated table of 2,000 orders, and every service."""
    async with pipeline(replica=True, TOCSIN_CHECK_MAX_LOAD="1") as started:
        source = await asyncpg.connect(started.source_url)
        await source.execute("CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL, status text NOT NULL, note text)")
        await source.execute("INSERT INTO orders SELECT n, n % 7, 'new', 'note ' || n FROM generate_series(1, 2000) n")
        await source.close()
        await started.tocsin("replicate", "orders")
        await started.tocsin("install")
        await started.tocsin("watch", "orders")
        for service in ("listener", "check", "gateway"):
            await started.start(service)
        yield started


async def audited(running: Pipeline) -> None:
    """The checker has begun to audit anew."""
    async with httpx.AsyncClient(base_url=running.check_url) as client:
        assert (await client.post("/audits", json={})).status_code == 202


async def heights(chart: Locator) -> list[float]:
    """The line's points from left to right, 0 at the bottom."""
    drawn = await chart.locator("svg .line").get_attribute("d") or ""
    return [28 - float(height) for height in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn)]


async def test_a_planted_drift_and_a_stopped_replica_show_as_charts_and_go_again(replicated: Pipeline, opened: Opened, tmp_path: Path) -> None:
    shots = Path(os.environ.get("TOCSIN_TEST_SCREENSHOTS", tmp_path))
    source, replica = await asyncpg.connect(replicated.source_url), await asyncpg.connect(replicated.replica_url)
    page = await show(opened, replicated.gateway_url)
    checker = page.locator("#parts li", has_text="checker")
    await expect(checker).to_contain_text("in sync", timeout=30_000)
    await expect(page.locator("#tables-fine")).to_have_text("1 of 1 table in sync")
    await expect(page.locator("#drift-now")).to_have_text("0 rows")
    await expect(page.locator("#replica-now")).to_contain_text("s")

    await replica.execute("UPDATE orders SET note = 'altered' WHERE id <= 3")
    await replica.execute("DELETE FROM orders WHERE id = 11")
    await audited(replicated)
    await source.execute("INSERT INTO orders VALUES (2001, 1, 'new', 'ring'); UPDATE orders SET status = 'paid' WHERE id = 2001")
    await expect(page.locator("#drift-now")).to_have_text("4 rows", timeout=30_000)
    await expect(checker).to_have_attribute("data-state", "bad")
    await expect(page.locator("#tables li")).to_contain_text(["public.orders"])
    await expect(page.locator("#tables")).to_contain_text("1 missing, 3 different")
    await expect(page.locator("#tables-fine")).to_have_text("0 of 1 table in sync")
    line = await heights(page.locator("#drift-chart"))
    assert line[-1] > 3 * line[0], line
    await expect(page.locator("#events > li", has_text="drift.public.orders").first.locator(".values")).to_have_text("1 missing, 3 different")
    await page.locator("#events > li .row", has_text="public.orders.update").click()
    for width, height, scheme in ((1440, 900, "light"), (1440, 900, "dark"), (390, 844, "dark"), (390, 844, "light")):
        await page.set_viewport_size({"width": width, "height": height})
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        if width < 800:
            await page.get_by_role("button", name="State", exact=True).click()
        await page.screenshot(path=shots / f"drift-{width}-{scheme}.png")
        assert await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    await page.set_viewport_size({"width": 1280, "height": 800})

    await replica.execute("UPDATE orders SET note = 'note ' || id WHERE id <= 3; INSERT INTO orders VALUES (11, 11 % 7, 'new', 'note 11')")
    await audited(replicated)
    await expect(page.locator("#drift-now")).to_have_text("0 rows", timeout=30_000)
    await expect(checker).to_contain_text("in sync", timeout=30_000)

    subscription = await replica.fetchval("SELECT subname FROM pg_subscription")
    await replica.execute(f'ALTER SUBSCRIPTION "{subscription}" DISABLE')
    await expect(page.locator("#replica-now")).to_have_text(re.compile(r"^[2-9]\.\d s|^\d\d\.\d s"), timeout=30_000)
    line = await heights(page.locator("#replica-chart"))
    assert line[-1] > line[0] + 5, line
    await replica.execute(f'ALTER SUBSCRIPTION "{subscription}" ENABLE')
    await expect(page.locator("#replica-now")).to_have_text(re.compile(r"ms$"), timeout=40_000)
    assert opened.complaints == []
    await source.close()
    await replica.close()
