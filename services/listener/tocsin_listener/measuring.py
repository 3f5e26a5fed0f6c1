"""How far the stream is behind the journal, and what else of the source is worth an alert: measured every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.errors import OperatorError, Unavailable
from tocsin_listener.journal import QUERIES, SESSION
from tocsin_listener.meters import Meters
from tocsin_listener.progress import BEGINNING

EVERY: Final = 5.0

_REACHED: Final = "SELECT reached::text FROM tocsin.progress ORDER BY n DESC LIMIT 1"
"""Not the intent: what NATS never acknowledged is behind, though its batch was begun."""


async def measure(database_url: str, meters: Meters) -> None:
    """For ever, from a connection of its own; what fails is tried again."""
    while True:
        with contextlib.suppress(Unavailable, OperatorError, asyncpg.PostgresError, asyncpg.InternalClientError, *postgres.TRANSIENT):
            async with postgres.connection(database_url, setting="TOCSIN_DATABASE_URL", application="tocsin listener measuring") as connection:
                await connection.execute(SESSION)
                while True:
                    await _measure(connection, meters)
                    await asyncio.sleep(EVERY)
        await asyncio.sleep(EVERY)


async def _measure(connection: asyncpg.Connection, meters: Meters) -> None:
    behind = await connection.fetchrow(QUERIES["behind"], await connection.fetchval(_REACHED) or BEGINNING)
    if behind is not None:
        meters.behind_rows.set(behind["rows"])
        meters.behind_seconds.set(behind["age"])
    measured = await connection.fetchrow(QUERIES["measure"])
    if measured is not None:
        meters.measured(dict(measured))
