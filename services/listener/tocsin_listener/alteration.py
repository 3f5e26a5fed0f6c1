"""Watched tables that change their shape, where no event trigger tells of it: the functions that capture them are brought up to date."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import asyncpg
import structlog

from tocsin import postgres
from tocsin.errors import OperatorError, Unavailable

EVERY: Final = 1.0
SELDOM: Final = 60.0
SHARE: Final = 20
"""A look that takes a second is repeated after as many seconds as this, so that a thousand watches don't keep a core busy."""

log = structlog.get_logger("tocsin.listener")


async def follow_shapes(database_url: str) -> None:
    """Look every second, or every minute where event triggers do it already; for ever, from a connection of its own."""
    while True:
        with contextlib.suppress(Unavailable, OperatorError, asyncpg.PostgresError, asyncpg.InternalClientError, *postgres.TRANSIENT):
            async with postgres.connection(database_url, setting="TOCSIN_DATABASE_URL", application="tocsin listener shapes") as connection:
                while True:
                    begun = time.monotonic()
                    if refreshed := await connection.fetchval("SELECT tocsin.refresh_all()"):
                        log.warning("watched tables changed their shape", tables=refreshed)
                    told = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'tocsin_ddl' AND evtenabled <> 'D')")
                    await asyncio.sleep(max(SELDOM if told else EVERY, SHARE * (time.monotonic() - begun)))
        await asyncio.sleep(EVERY)
