"""What the leader does beside relaying: the canary, and emptying what the journal no longer has to keep."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Final

from tocsin_listener.leader import Lead
from tocsin_listener.meters import Meters

CANARY_EVERY: Final = 10.0
RETENTION_EVERY: Final = 5.0
"""Seconds. Often, since a leaf that the relay is just reading is left for the next time, and the written one grows meanwhile."""
LEAVES: Final = 8
JOURNAL_BYTES: Final = 1 << 30
JOURNAL_AGE: Final = timedelta(hours=24)


async def sing(lead: Lead, meters: Meters) -> None:
    """A row that goes the whole way, where nothing else did for a while."""
    while True:
        since = time.monotonic() - (meters.acknowledged_at or float("-inf"))
        if since >= CANARY_EVERY:
            await lead.execute("SELECT tocsin.canary()")
            since = 0.0
        await asyncio.sleep(CANARY_EVERY - since)


async def retain(lead: Lead) -> None:
    """Empty the oldest leaf of the journal when the written one is large or old; never past the cursor, and no writer waits."""
    while True:
        await asyncio.sleep(RETENTION_EVERY)
        emptied = await lead.fetchval("SELECT tocsin.empty_next_leaf($1, $2)", JOURNAL_BYTES // LEAVES, JOURNAL_AGE / LEAVES)
        if emptied is not None:
            await lead.execute("SELECT tocsin.advance($1)", emptied)
