"""The console in a real Chromium, over the whole pipeline."""

from __future__ import annotations

import os
import re
from pathlib import Path

import asyncpg
import pytest
from playwright.async_api import expect

from tests.support.browser import Opened, show
from tests.support.pipeline import Pipeline
from tests.support.proxy import TcpProxy

pytestmark = pytest.mark.browser


async def test_a_commit_appears_with_its_op_key_and_values(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url)
    await shop.execute("INSERT INTO orders VALUES (1, 42, 'new', 'ring twice')")
    await shop.execute("UPDATE orders SET status = 'paid' WHERE id = 1")
    await shop.execute("DELETE FROM orders WHERE id = 1")
    await expect(page.locator(".what")).to_have_text(["delete", "update", "insert"])
    update = page.locator("#events > li").nth(1)
    await expect(update.locator(".values")).to_have_text("status new paid")
    await expect(update.locator(".key")).to_have_text("1")
    await expect(update.locator(".subject")).to_have_text("pg.shop.change.public.orders.update")
    await update.locator(".row").click()
    changed = update.locator("tr.changed")
    await expect(changed).to_have_count(1)
    await expect(changed.locator("td")).to_have_text(["new", "paid"])
    await expect(update.locator(".tree")).to_contain_text('type: "public.orders.update"')
    await expect(page.locator("#position")).to_have_text(re.compile(r"^[a-z0-9]+-[0-9]+$"))
    assert opened.complaints == []


async def test_several_subjects_show_an_event_once_and_count_it_for_each(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url, "#subject=pg.shop.change.>&subject=pg.*.change.public.orders.*")
    await expect(page.locator("#subscriptions li[data-state=live]")).to_have_count(2)
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 5) n")
    await expect(page.locator("#subscriptions .count")).to_have_text(["5", "5"])
    await expect(page.locator("#events > li")).to_have_count(5)
    await page.get_by_label("Unsubscribe from pg.shop.change.>").click()
    await expect(page.locator("#subscriptions li")).to_have_count(1)
    await shop.execute("INSERT INTO orders VALUES (6, 6, 'new')")
    await expect(page.locator("#subscriptions .count")).to_have_text(["6"])
    assert opened.complaints == []


async def test_since_start_brings_the_past_and_pause_and_filter_hold(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    await shop.execute("INSERT INTO orders VALUES (901, 1, 'special-901')")
    page = await show(opened, running.gateway_url, "#subject=pg.shop.event.>")
    await page.keyboard.press("s")
    await page.keyboard.type("pg.shop.change.public.orders.insert")
    await page.locator("#since").select_option("start")
    await page.get_by_role("button", name="Subscribe", exact=True).click()
    await expect(page.locator("#events")).to_contain_text("special-901")
    await page.locator("#subject").blur()
    await page.locator("#filter").fill("SPECIAL-901")
    await expect(page.locator("#events > li")).to_have_count(1)
    await page.locator("#filter").fill("")
    await page.locator("#filter").blur()
    await page.keyboard.press("p")
    await shop.execute("INSERT INTO orders VALUES (902, 1, 'special-902')")
    await expect(page.locator("#pause")).to_contain_text("Go on (1)")
    await expect(page.locator("#events")).not_to_contain_text("special-902")
    await page.keyboard.press("p")
    await expect(page.locator("#events > li").first).to_contain_text("special-902")


async def test_a_wrong_subject_and_a_wrong_position_are_told_with_their_code(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url)
    await page.locator("#subject").fill("pg.>.orders")
    await page.keyboard.press("Enter")
    await expect(page.locator("#problem-code")).to_have_text("bad-subject")
    await expect(page.locator("#problem-text")).to_contain_text("only as the last token")
    await page.locator("#subject").fill("pg.shop.>")
    await page.locator("#since").select_option("position")
    await page.locator("#from").fill("nonsense")
    await page.keyboard.press("Enter")
    await expect(page.locator("#problem-code")).to_have_text("bad-since")
    await expect(page.locator("#state")).to_have_attribute("data-state", "live")


async def test_a_position_of_another_stream_is_a_visible_gap(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url)
    await page.locator("#subject").fill("pg.shop.>")
    await page.locator("#since").select_option("position")
    await page.locator("#from").fill("otherepoch-7")
    await page.keyboard.press("Enter")
    await expect(page.locator(".note")).to_contain_text("Gap (epoch)")
    await shop.execute("INSERT INTO orders VALUES (1, 1, 'after')")
    await expect(page.locator("#events")).to_contain_text("after")


async def test_a_cut_connection_comes_back_without_hole_or_repeat(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    async with TcpProxy(int(running.environment["TOCSIN_GATEWAY_PORT"])) as proxy:
        page = await show(opened, f"http://127.0.0.1:{proxy.port}")
        await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 3) n")
        await expect(page.locator("#total")).to_have_text("3")
        proxy.cut()
        await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(4, 9) n")
        await expect(page.locator("#total")).to_have_text("9")
        keys = await page.locator("#events .key").all_inner_texts()
        assert keys == [str(n) for n in range(9, 0, -1)]
        await expect(page.locator(".note")).to_have_count(0)


async def test_the_list_is_bounded_under_a_flood(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url)
    await shop.execute("INSERT INTO orders SELECT n, n, 'flood' FROM generate_series(1, 3000) n")
    await expect(page.locator("#total")).to_have_text("3,000", timeout=20_000)
    await expect(page.locator("#events .key").first).to_have_text("3000")
    rows, missing = await page.locator("#events > li:not(.skipped)").count(), await page.locator("#unshown").inner_text()
    assert rows <= 200
    shown = await page.evaluate("[...document.querySelectorAll('#events .skipped')].reduce((sum, line) => sum + Number(line.dataset.count), 0)")
    assert missing.endswith("not shown")
    assert rows + shown <= 3000
    assert 3000 - rows >= int(missing.replace(",", "").split()[0]) >= 1000, "what is not shown is counted"
    await page.locator("#filter").fill('"id":2999,')
    await expect(page.locator("#events .key")).to_have_text(["2999"])  # a search finds what was not shown


async def test_hostile_values_are_text(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    evil = '<img src=x onerror="window.owned = 1"><script>window.owned = 1</script>\u202e'
    page = await show(opened, running.gateway_url)
    await shop.execute("INSERT INTO orders VALUES (1, 1, $1, $1)", evil)
    await shop.execute("UPDATE orders SET note = $1 || 'x'", evil)
    await shop.execute("SELECT tocsin.emit('evil', jsonb_build_object($1::text, $1::text))", evil)
    await expect(page.locator("#events > li")).to_have_count(3)
    for item in await page.locator("#events .row").all():
        await item.click()
    await expect(page.locator("#events .detail").first).to_contain_text("<img src=x onerror=")
    await page.locator("#filter").fill("<img")
    await expect(page.locator("#events > li")).to_have_count(3)
    assert await page.locator("#events img, #events script").count() == 0
    assert await page.evaluate("window.owned") is None
    assert opened.complaints == []


async def test_a_filter_says_who_enters_and_leaves_and_a_wrong_one_what_is_allowed(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url)
    await page.get_by_label("Unsubscribe from pg.>").click()
    await page.locator("#subject").fill("pg.shop.change.public.orders.*")
    await page.locator("#where").fill("status paid")
    await page.keyboard.press("Enter")
    await expect(page.locator("#problem-code")).to_have_text("bad-where")
    await page.locator("#where").fill("status = paid and customer >= 2")
    await page.keyboard.press("Enter")
    await expect(page.locator("#subscriptions li[data-state=live]")).to_have_count(1)
    await shop.execute("INSERT INTO orders VALUES (1, 1, 'paid'), (2, 2, 'new'), (3, 3, 'paid')")
    await shop.execute("UPDATE orders SET status = 'paid' WHERE id = 2")
    await shop.execute("UPDATE orders SET status = 'sent' WHERE id = 3")
    await expect(page.locator(".what")).to_have_text(["updateleave", "updateenter", "insertenter"])
    await page.reload()
    await expect(page.locator("#subscriptions .name")).to_have_text("pg.shop.change.public.orders.* where status = paid and customer >= 2")


async def test_the_rows_and_then_their_changes(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    await shop.execute("INSERT INTO orders VALUES (1, 1, 'new'), (2, 2, 'new')")
    page = await show(opened, running.gateway_url, "#subject=pg.shop.event.>")
    await page.locator("#subject").fill("pg.shop.change.public.orders.>")
    await page.locator("#since").select_option("snapshot")
    await page.get_by_role("button", name="Subscribe", exact=True).click()
    await expect(page.locator(".what")).to_have_text(["row", "row"])
    await shop.execute("DELETE FROM orders WHERE id = 1")
    await expect(page.locator(".what").first).to_have_text("delete")


async def test_a_killed_gateway_is_seen_and_comes_back_with_nothing_lost(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url)
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 3) n")
    await expect(page.locator("#events .key")).to_have_text(["3", "2", "1"])
    await running.kill("gateway")
    await expect(page.locator("#state")).to_have_attribute("data-state", "retrying")
    await expect(page.locator("#parts li[data-state=bad]")).to_contain_text("does not answer")
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(4, 30) n")
    await running.start("gateway")
    await expect(page.locator("#state")).to_have_attribute("data-state", "live", timeout=15_000)
    await expect(page.locator("#total")).to_have_text("30")
    assert await page.locator("#events .key").all_inner_texts() == [str(n) for n in range(30, 0, -1)]
    await expect(page.locator(".note")).to_have_count(0)


async def test_a_flood_leaves_the_page_usable(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    """The longest that the page did not answer while 20,000 events came in as fast as the gateway gives them."""
    page = await show(opened, running.gateway_url)
    await page.evaluate("""() => {
      window.longest = 0;
      let last = performance.now();
      setInterval(() => { const now = performance.now(); window.longest = Math.max(window.longest, now - last); last = now; }, 20);
    }""")
    await shop.execute("INSERT INTO orders SELECT n, n, 'flood', repeat('x', 100) FROM generate_series(1, 20000) n")
    await expect(page.locator("#total")).to_have_text(re.compile(r"^1?[0-9],"), timeout=20_000)
    await page.locator("#pause").click(timeout=2_000)
    await expect(page.locator("#total")).to_have_text("20,000", timeout=20_000)
    await expect(page.locator("#pause")).to_contain_text("Go on")
    await page.locator("#pause").click()
    await expect(page.locator("#events .key").first).to_have_text("20000")
    assert await page.locator("#events > li").count() <= 201
    assert await page.evaluate("window.longest") < 1_000


async def test_the_parts_and_the_subjects_are_told(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url)
    await expect(page.locator("#parts")).to_contain_text("leads")
    await expect(page.locator("#parts li[data-state=good]")).to_have_count(3)
    await expect(page.locator("#parts li", has_text="checker")).to_contain_text("none answers")
    await shop.execute("INSERT INTO orders VALUES (1, 1, 'new')")
    await shop.execute("UPDATE orders SET status = 'paid'")
    await expect(page.locator("#subject-list .name")).to_have_text(["change public.orders.insert", "change public.orders.update"])
    await expect(page.locator("#lag-now")).to_contain_text("ms")
    await page.locator("#subject-list button").first.click()
    await expect(page.locator("#events > li")).to_have_count(1)


async def test_why_did_i_not_get_it(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    await shop.execute("INSERT INTO orders VALUES (77, 1, 'before')")
    page = await show(opened, running.gateway_url, "#subject=pg.shop.change.public.orders.*")
    await expect(page.locator("#parts")).to_contain_text("leads")
    await page.keyboard.press("w")
    await page.keyboard.type("orders")
    await page.keyboard.press("Tab")
    await page.keyboard.type("77")
    await page.keyboard.press("Enter")
    answer = page.locator("#why-answer")
    await expect(answer.locator("li[data-ok=true]")).to_have_count(3)
    await expect(answer).to_contain_text("the last event with the key 77")
    await expect(answer.locator("li").last).to_contain_text("began after it")
    await page.locator("#why-subject").fill("pg.>.x")
    await page.keyboard.press("Enter")
    await expect(answer.locator("li")).to_contain_text(["only as the last token", "subscribed to nothing"])
    await page.keyboard.press("Escape")
    await expect(page.locator("#why-dialog")).to_be_hidden()


async def test_by_keyboard_alone(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    page = await show(opened, running.gateway_url, "#subject=pg.shop.event.>")
    keys = page.keyboard
    await keys.press("s")
    await keys.type("pg.shop.change.>")
    await keys.press("Enter")
    await expect(page.locator("#subscriptions li[data-state=live]")).to_have_count(2)
    await keys.press("Escape")
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 3) n")
    await expect(page.locator("#events > li")).to_have_count(3)
    await keys.press("j")
    await keys.press("j")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert await page.evaluate(outline) == "solid", "the focus is seen"
    await keys.press("Enter")
    await expect(page.locator("#events > li").nth(1).locator(".detail")).to_be_visible()
    await keys.press("Escape")
    await expect(page.locator(".detail")).to_have_count(0)
    await keys.press("/")
    await keys.type('"id":3,')
    await expect(page.locator("#events > li")).to_have_count(1)
    await keys.press("Escape")
    await keys.press("p")
    await expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    await keys.press("?")
    await expect(page.locator("#shortcuts")).to_be_visible()
    await keys.press("Escape")
    await keys.press("c")
    await expect(page.locator("#events > li")).to_have_count(0)
    seen = set()
    for _ in range(30):
        await keys.press("Tab")
        seen.add(await page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.className"))
        assert await page.evaluate(f"document.activeElement === document.body || {outline} !== 'none'"), seen
    assert {"subject", "where", "since", "why", "pause", "Unsubscribe from pg.shop.change.>", "skip"} <= seen


async def test_it_fits_a_phone_in_dark_and_in_light(running: Pipeline, shop: asyncpg.Connection, opened: Opened, tmp_path: Path) -> None:
    page = await show(opened, running.gateway_url)
    shots = Path(os.environ.get("TOCSIN_TEST_SCREENSHOTS", tmp_path))
    await shop.execute("INSERT INTO orders SELECT n, 40 + n % 5, 'new', 'second floor' FROM generate_series(1, 12) n")
    await shop.execute("UPDATE orders SET status = 'paid' WHERE id < 6")
    await shop.execute("DELETE FROM orders WHERE id = 3")
    await shop.execute("""SELECT tocsin.emit('order.paid', '{"id": 1, "total": 12.50}')""")
    await expect(page.locator("#events > li")).to_have_count(19)
    await expect(page.locator("#subject-list li")).to_have_count(4)
    await page.locator("#events > li").nth(3).locator(".row").click()
    await expect(page.locator("#parts")).to_contain_text("leads")
    for width, height, scheme in ((1440, 900, "light"), (1440, 900, "dark"), (390, 844, "dark"), (390, 844, "light"), (320, 640, "light")):
        await page.set_viewport_size({"width": width, "height": height})
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for panel in ("Events", "Subjects", "State") if width < 800 else ("",):
            if panel:
                await page.get_by_role("button", name=panel, exact=True).click()
            await page.screenshot(path=shots / f"console-{width}-{scheme}{panel and '-' + panel.lower()}.png")
            overflow = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow == 0, f"the page scrolls sideways at {width} px"
        background = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    await page.get_by_role("button", name="Events", exact=True).click()
    await page.get_by_role("button", name="Why did I not get it?").click()
    await page.locator("#why-subject").fill("orders")
    await page.keyboard.press("Enter")
    await expect(page.locator("#why-answer li[data-ok]")).to_have_count(5)
    await page.screenshot(path=shots / "console-320-why.png")
    assert await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert opened.complaints == []
