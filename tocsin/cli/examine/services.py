"""The services on this machine: what each says of itself under /readyz."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.settings import Settings
from tocsin.stack.proof import readiness

PART: Final = "services"
SERVICES: Final = {"listener": "listener", "gateway": "gateway", "checker": "check"}


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    for name, verb in SERVICES.items():
        address: str = getattr(settings, f"{verb}_url")
        code, body = await asyncio.to_thread(readiness, address)
        if code == 200:
            yield good(PART, f"the {name} is ready ({address})")
            if lost := dropped(body):
                fix = "carry fewer channels (TOCSIN_CHANNELS), or let the application call tocsin.emit, which loses nothing"
                yield bad(PART, f"the {name} had to drop {lost} carried NOTIFYs: they came faster than the journal takes them", fix)
        elif code == 0:
            yield bad(PART, f"the {name} does not answer at {address}: {body}", f"tocsin {verb}   # or set TOCSIN_{verb.upper()}_PORT to where it is")
        else:
            yield bad(PART, f"the {name} is not ready: {body}", _fix(settings, address, body))


def _fix(settings: Settings, address: str, body: str) -> str:
    if "insufficient resources" in body:
        # While the store is full, NATS refuses a smaller max_bytes too.
        stream = settings.stream_name if settings.stream or settings.database_url else "STREAM"
        return f"NATS's store is full: give it room (its disk, max_file_store), or drop the oldest events: nats stream purge {stream} --keep 100000"
    return f"its log says why; {address}/metrics has the figures"


def dropped(body: str) -> int:
    """What the listener's /readyz says of NOTIFYs that it dropped; 0 where it says nothing."""
    with contextlib.suppress(msgspec.DecodeError, AttributeError, TypeError, ValueError):
        return int(msgspec.json.decode(body).get("notifies_dropped", 0))
    return 0
