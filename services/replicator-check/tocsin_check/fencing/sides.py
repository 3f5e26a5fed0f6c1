"""The two reading sessions of an audit, and the fence between them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from tocsin import postgres
from tocsin_check import sessions
from tocsin_check.fencing.fence import Fence
from tocsin_check.replication.preflight import check_apart


@dataclass(slots=True)
class Sides:
    """The two reading sessions, and the fence between them."""

    source: asyncpg.Connection
    replica: asyncpg.Connection
    fence: Fence


@contextlib.asynccontextmanager
async def open_sides(source_url: str, replica_url: str) -> AsyncIterator[Sides]:
    """Sessions of their own and a fence over them. Raises OperatorError, Unavailable."""
    opened: list[asyncpg.Connection] = []
    try:
        opened.append(await sessions.open_reader(source_url, sessions.SOURCE_SETTING))
        opened.append(await sessions.open_reader(replica_url, sessions.REPLICA_SETTING))
        opened.append(await sessions.open_marker(source_url))
        source, replica, marker = opened
        await check_apart(source, replica)
        fence = Fence(marker, source, replica)
        try:
            yield Sides(source, replica, fence)
        finally:
            await fence.forget()
    finally:
        for connection in opened:
            await postgres.close(connection)
