"""An installed source, and its journal as events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from tocsin_listener.install import install

Events = Callable[[], Awaitable[list[dict[str, Any]]]]


@pytest_asyncio.fixture
async def installed(source: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """The fresh source with Tocsin installed."""
    await install(source)
    yield source


async def journal_events(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Everything in the journal, in the order in which it would be published: data, with subject, type, key and old_subject."""
    rows = await connection.fetch(
        """SELECT subject, old_subject, type, key, data FROM (
               SELECT *, max(seq) OVER (PARTITION BY xid) AS last FROM tocsin.events) AS j ORDER BY last, xid, stmt, seq"""
    )
    return [{**msgspec.json.decode(r["data"]), "subject": r["subject"], "old_subject": r["old_subject"], "type": r["type"], "key_text": r["key"]} for r in rows]


@pytest.fixture
def events(installed: asyncpg.Connection) -> Events:
    """`journal_events` of the installed source."""

    async def read() -> list[dict[str, Any]]:
        return await journal_events(installed)

    return read
