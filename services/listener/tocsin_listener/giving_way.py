"""Locks on the application's tables: whoever asks for one makes its writers queue behind. It is Tocsin that gives way, never a writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

T = TypeVar("T")

LOCK_TIMEOUT: Final = 300
"""Milliseconds for each lock: writers queue behind it no longer, and it gives up before PostgreSQL looks for deadlocks (1 s)."""

AGAIN_AFTER: Final = 0.7

HOLDERS: Final = """SELECT string_agg(DISTINCT format('%s on %s', coalesce(format('process %s (%s), open for %s s', l.pid, a.application_name,
        extract(epoch FROM now() - a.xact_start)::int), 'a prepared transaction of pg_prepared_xacts'), l.relation::regclass), '; ')
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
    WHERE l.relation = ANY (ARRAY(SELECT tocsin.family(r)::oid FROM unnest($1::oid[]) AS r)) AND l.granted AND l.mode <> ALL ($2::text[])
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.pid IS DISTINCT FROM pg_backend_pid()"""
"""Who holds a lock on one of the tables $1, in a mode that is none of $2; for people. NULL where nobody does."""


async def giving_way(attempt: Callable[[], Awaitable[T]], patience: float) -> T:
    """What `attempt` gives, a transaction or a savepoint of its own that waits for no lock longer than LOCK_TIMEOUT. Tried again and again for
    `patience` seconds; then its asyncpg.LockNotAvailableError is raised.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return await attempt()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if time.monotonic() > end:
                raise
        await asyncio.sleep(AGAIN_AFTER)
