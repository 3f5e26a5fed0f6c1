"""The browser's client in a real Chromium, over the whole pipeline."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import jwt
import pytest

from tests.support.browser import Opened, show
from tests.support.pipeline import Pipeline
from tocsin.stack.process import free_port

pytestmark = pytest.mark.browser
SECRET = "a secret of at least thirty-two bytes"


async def test_the_client_iterates_resumes_and_ends(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    """What an application writes: for await over a subscription, break, and go on from the kept position."""
    page = await show(opened, running.gateway_url)
    collect = """async ([since, count]) => {
      const { subscribe } = await import("/client.js");
      const keys = [];
      const states = [];
      const live = subscribe("pg.shop.change.public.orders.insert", { since, onState: (state) => states.push(state) });
      for await (const { event } of live) {
        keys.push(event.data.key.id);
        if (keys.length === count) break;
      }
      return { keys, states, position: live.position };
    }"""
    start = await page.locator("#position").inner_text()
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 5000) n")
    async with asyncio.timeout(60):
        whole = await page.evaluate(collect, [start, 5000])
    assert whole["keys"] == list(range(1, 5001)), "an iterator slower than the stream lost or repeated events"
    assert whole["states"][-1] == "closed"
    await shop.execute("INSERT INTO orders VALUES (5001, 1, 'new')")
    assert (await page.evaluate(collect, [whole["position"], 1]))["keys"] == [5001]
    refused = await page.evaluate(
        """async () => {
          const { subscribe } = await import("/client.js");
          try {
            for await (const _ of subscribe("a..b")) ;
          } catch (error) {
            return [error.name, error.code];
          }
        }"""
    )
    assert refused == ["SubscribeError", "bad-subject"]


async def test_a_page_that_may_not_connect_is_told_why_and_asks_no_more(running: Pipeline, opened: Opened) -> None:
    """The first page that somebody makes, served on another port than the gateway's."""

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(page, "127.0.0.1") as server, asyncio.timeout(30):
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await opened.page.goto(origin)
        refused = await opened.page.evaluate(
            """async (url) => {
              const { subscribe } = await import(`${url}/client.js`);
              return new Promise((done) => subscribe("pg.>", { onError: ({ code, message }) => done([code, message]) }));
            }""",
            running.gateway_url,
        )
    assert refused == ["forbidden", f"forbidden: pages of {origin} may not connect; the gateway's setting TOCSIN_ALLOWED_ORIGINS lists the origins that may"]


async def test_where_no_websocket_gets_through_server_sent_events_come(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    """A path that takes no socket, as behind a proxy that forwards none: two attempts, and then the same over HTTP."""
    page = await show(opened, running.gateway_url)
    await page.evaluate(
        """async (url) => {
          const { subscribe } = await import("/client.js");
          const keys = [];
          await new Promise((live) => {
            window.three = new Promise((done) => subscribe("pg.shop.change.public.orders.insert", {
              url,
              onState: (state) => state === "live" && live(),
              onEvent: ({ event }) => keys.push(event.data.key.id) === 3 && done(keys),
            }));
          });
        }""",
        f"{running.gateway_url.replace('http', 'ws')}/no-socket-here",
    )
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 3) n")
    async with asyncio.timeout(15):
        assert await page.evaluate("window.three") == [1, 2, 3]


async def test_a_ticket_lets_an_event_source_in_once(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    await running.stop("gateway")
    try:
        await running.start("gateway", name="guarded", TOCSIN_JWT_SECRET=SECRET)
        await opened.page.goto(f"{running.gateway_url}/healthz")
        token = jwt.encode({"exp": time.time() + 60, "subscribe": ["pg.>"]}, SECRET, "HS256")
        told = await opened.page.evaluate(
            """async (token) => {
              const { ticket } = await import("/client.js");
              const address = `/sse?subject=pg.shop.change.>&ticket=${await ticket(undefined, token)}`;
              const opens = () => new Promise((done) => {
                const source = new EventSource(address);
                source.onopen = () => { source.close(); done(true); };
                source.onerror = () => { source.close(); done(false); };
              });
              const refused = await ticket(undefined, "nonsense").catch((error) => [error.name, error.code]);
              return [await opens(), await opens(), refused];
            }""",
            token,
        )
        assert told == [True, False, ["SubscribeError", "unauthenticated"]]
    finally:
        await running.stop("guarded")
        await running.start("gateway")


async def test_a_kept_position_goes_on_after_a_reload(running: Pipeline, shop: asyncpg.Connection, opened: Opened) -> None:
    """What was committed while the page was away comes, and nothing twice."""
    page = opened.page
    follow = """async () => {
      const { subscribe } = await import("/client.js");
      window.keys = [];
      await new Promise((live) => subscribe("pg.shop.change.public.orders.insert", {
        keep: "reload", onState: (state) => state === "live" && live(), onEvent: ({ event }) => keys.push(event.data.key.id),
      }));
    }"""
    await page.goto(f"{running.gateway_url}/healthz")
    await page.evaluate(follow)
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, 3) n")
    await page.wait_for_function("window.keys.length === 3")
    await page.goto("about:blank")
    await shop.execute("INSERT INTO orders SELECT n, n, 'new' FROM generate_series(4, 6) n")
    await page.goto(f"{running.gateway_url}/healthz")
    await page.evaluate(follow)
    await shop.execute("INSERT INTO orders VALUES (7, 7, 'new')")
    await page.wait_for_function("window.keys.includes(7)")
    assert await page.evaluate("window.keys") == [4, 5, 6, 7]


async def test_a_hidden_page_asks_seldom_and_at_once_when_it_is_seen(running: Pipeline, opened: Opened) -> None:
    """Hidden: pauses of at least 0.5, 1 and 2 s between attempts; seen again: the next attempt does not wait for the pause of at least 4 s."""
    await opened.page.goto(f"{running.gateway_url}/healthz")
    waited, seen = await opened.page.evaluate(
        """async (url) => {
          const { subscribe } = await import("/client.js");
          let visibility = "hidden";
          Object.defineProperty(document, "visibilityState", { get: () => visibility });
          const times = [];
          let arrived = () => {};
          class Counted extends WebSocket {
            constructor(...given) { super(...given); times.push(performance.now()); arrived(); }
          }
          const attempts = (count) => new Promise((done) => {
            arrived = () => times.length >= count && done();
            arrived();
          });
          const live = subscribe("pg.>", { url, transport: "websocket", WebSocket: Counted });
          await attempts(4);
          const waited = times[3] - times[0];
          await new Promise((done) => setTimeout(done, 300));
          const before = performance.now();
          visibility = "visible";
          document.dispatchEvent(new Event("visibilitychange"));
          await attempts(5);
          live.close();
          return [waited, times[4] - before];
        }""",
        f"ws://127.0.0.1:{free_port()}/ws",
    )
    assert waited >= 3_500
    assert seen < 1_500
