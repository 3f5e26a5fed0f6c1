"""How things stand in the two databases: who leads, and whether the subscription works."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import asyncpg

from tocsin.cli.validation.report import LISTENER, Broken
from tocsin_check.replication.replicate import NAME as REPLICATION
from tocsin_listener.leader import LOCK

_PAUSE: Final = 0.05
_RESTART: Final = 10.0
"""Seconds that whoever supervises may need to start a listener, or PostgreSQL a worker, again."""

_LEADS: Final = f"""SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND classid = {LOCK >> 32} AND objid = {LOCK & 0xFFFFFFFF})"""
_SUBSCRIPTION: Final = """SELECT s.subenabled AS enabled, EXISTS (SELECT FROM pg_stat_subscription AS w WHERE w.subid = s.oid AND w.pid IS NOT NULL) AS working
    FROM pg_subscription AS s WHERE s.subname = $1 AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"""


async def leads(source: asyncpg.Connection) -> bool:
    """Whether a listener holds the lead, wherever it runs."""
    return bool(await source.fetchval(_LEADS))


async def check_leader(source: asyncpg.Connection) -> None:
    if not await leads(source):
        raise Broken("no listener leads: changes wait in the journal, and none is lost", "tocsin listener", part=LISTENER)


async def until_leader(source: asyncpg.Connection, patience: float) -> None:
    """Raises Broken where none leads within `patience` seconds, or about ten."""
    end = time.monotonic() + min(patience, _RESTART)
    while time.monotonic() < end and not await leads(source):
        await asyncio.sleep(_PAUSE)
    await check_leader(source)


async def subscription_works(replica: asyncpg.Connection, patience: float) -> bool:
    """Whether there is one; raises Broken where it does not work within `patience` seconds, or about ten."""
    end = time.monotonic() + min(patience, _RESTART)
    while True:
        row = await replica.fetchrow(_SUBSCRIPTION, REPLICATION)
        if row is None or (row["enabled"] and row["working"]):
            return row is not None
        if not row["enabled"]:
            fix = f"on the replica: ALTER SUBSCRIPTION {REPLICATION} ENABLE;   -- its server's log says why it was disabled"
            raise Broken(f"the subscription {REPLICATION} is disabled", fix)
        if time.monotonic() > end:
            raise Broken(f"the subscription {REPLICATION} has no worker: it can't reach the source, or fails to apply", "the replica's server log says why")
        await asyncio.sleep(_PAUSE)
