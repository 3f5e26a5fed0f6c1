"""Whether NATS writes to the disk before it acknowledges: its monitoring page tells, where one can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import urllib.request
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from nats.aio.client import Client

from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.settings import Settings

PART: Final = "NATS"
USUAL_PORT: Final = 8222
FIX: Final = "jetstream { sync_interval: always } in nats-server's configuration, then restart it; or TOCSIN_STREAM_REPLICAS=3 in a cluster"


async def examine(client: Client, settings: Settings) -> Finding:
    """One finding. Without a page to ask it is only told that nothing is known."""
    known = str(client._server_info.get("server_id"))  # noqa: SLF001  # there is no public way to it
    for url in _pages(client, settings):
        page = await asyncio.to_thread(_varz, url)
        # Another server may have the usual port.
        if page is not None and (settings.nats_monitor_url is not None or page.get("server_id") == known):
            return _judge(page, settings)
    if settings.nats_monitor_url is not None:
        return bad(
            PART, f"{settings.nats_monitor_url} is not the monitoring page of a NATS server", "correct TOCSIN_NATS_MONITOR_URL, such as http://host:8222"
        )
    return good(PART, "whether it writes to the disk before it acknowledges can't be seen from here; TOCSIN_NATS_MONITOR_URL=http://host:8222 would show it")


def _pages(client: Client, settings: Settings) -> Iterator[str]:
    if settings.nats_monitor_url is not None:
        yield settings.nats_monitor_url.rstrip("/")
        return
    host = client.connected_url.hostname if client.connected_url is not None else None
    if host:
        yield f"http://{f'[{host}]' if ':' in host else host}:{USUAL_PORT}"


def _varz(url: str) -> dict[str, Any] | None:
    """The page /varz, or None. Blocking, for at most a second."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException, msgspec.DecodeError):
        if urlsplit(url).scheme in ("http", "https"):
            with opener.open(f"{url}/varz", timeout=1) as answer:
                page = msgspec.json.decode(answer.read(1 << 20))
                return page if isinstance(page, dict) and "server_id" in page else None
    return None


def _judge(page: dict[str, Any], settings: Settings) -> Finding:
    jetstream = (page.get("jetstream") or {}).get("config") or {}
    if jetstream.get("sync_always"):
        return good(PART, "it writes to the disk before it acknowledges (sync_interval: always)")
    seconds = int(jetstream.get("sync_interval", 0)) / 1e9
    text = f"it acknowledges before it writes to the disk (sync_interval: {seconds:g}s)"
    if settings.stream_replicas > 1:
        return good(PART, f"{text}; {settings.stream_replicas} replicas bear the power cut of one server")
    return bad(PART, f"{text}: a power cut loses what the stream has acknowledged, and the events come again in a new epoch", FIX)
