"""The servers that every other test relies on."""

from __future__ import annotations

import asyncpg
from nats.aio.client import Client


async def test_source_and_replica_can_replicate_logically(source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    assert await source.fetchval("SHOW wal_level") == "logical"
    assert await source.fetchval("SELECT system_identifier FROM pg_control_system()") != await replica.fetchval(
        "SELECT system_identifier FROM pg_control_system()"
    )


async def test_nats_has_jetstream(nats: Client) -> None:
    assert (await nats.jetstream().account_info()).limits is not None
