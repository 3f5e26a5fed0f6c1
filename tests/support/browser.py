"""A page in a real Chromium, and what it complained about."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from playwright.async_api import Page, expect

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass(slots=True)
class Opened:
    """A page, and everything that it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)


async def show(opened: Opened, url: str, fragment: str = "") -> Page:
    await opened.page.goto(f"{url}/{fragment}")
    await expect(opened.page.locator("#state")).to_have_attribute("data-state", "live")
    return opened.page
