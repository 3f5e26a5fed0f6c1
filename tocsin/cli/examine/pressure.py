"""What presses on the source: a journal that grows, a NOTIFY queue that fills, transactions that stay open, and that somebody relays at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.sql import load_queries

PART: Final = "source"
LATE: Final = 30.0
"""Seconds that the oldest event not yet in the stream may have."""
LARGE: Final = 2 << 30
"""Bytes of the journal: retention keeps half of it."""
FULL: Final = 0.25
LONG: Final = 300.0
"""Seconds that a transaction which has written may be open."""

_WHY: Final = load_queries("tocsin.cli.examine", "why.sql")
_OPEN: Final = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1"
_PREPARED: Final = """
SELECT quote_literal(gid) AS gid, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age
FROM pg_prepared_xacts WHERE database = current_database() AND extract(epoch FROM clock_timestamp() - prepared) > $1::float8 ORDER BY prepared
"""


async def examine(connection: asyncpg.Connection, *, late: float = LATE, large: int = LARGE, full: float = FULL, long: float = LONG) -> AsyncIterator[Finding]:
    """Nothing where Tocsin is not installed."""
    from tocsin_listener.install import installed
    from tocsin_listener.journal import QUERIES, SESSION
    from tocsin_listener.leader import LOCK
    from tocsin_listener.progress import BEGINNING

    if not await installed(connection):
        return
    leader = await connection.fetchval(_WHY["leader"], LOCK)
    yield (
        good(PART, f"a listener leads (its session has the pid {leader})")
        if leader
        else bad(PART, "no listener leads: what is captured stays in the journal", "tocsin listener")
    )
    await connection.execute(SESSION)
    reached = await connection.fetchval("SELECT reached::text FROM tocsin.progress ORDER BY n DESC LIMIT 1")
    behind = await connection.fetchrow(QUERIES["behind"], reached or BEGINNING)
    measured = await connection.fetchrow(QUERIES["measure"])
    assert behind is not None, "the query gives one row"
    assert measured is not None, "the query gives one row"
    size = f"{measured['journal_bytes'] / (1 << 20):,.0f} MiB"
    fix = "start the listener (tocsin listener); where it runs, its log and the findings on NATS say what it waits for"
    if behind["age"] > late:
        yield bad(PART, f"{behind['rows']:,} events are not in the stream, the oldest for {behind['age']:,.0f} s; the journal has {size}", fix)
    elif measured["journal_bytes"] > large:
        why = (
            "it is emptied in turn once the stream has its events and no transaction that wrote it is open; see the oldest writer below, and the listener's log"
        )
        yield bad(PART, f"the journal has grown to {size}", why)
    else:
        yield good(PART, f"the journal has {size}; {behind['rows']:,} events are not in the stream yet")
    yield await _queue(connection, measured["notify_queue"], full)
    async for finding in _writers(connection, measured, long):
        yield finding


async def _queue(connection: asyncpg.Connection, usage: float, full: float) -> Finding:
    if usage <= full:
        return good(PART, f"the NOTIFY queue is {usage:.0%} full")
    pid = await connection.fetchval(_OPEN)
    fix = f"SELECT pg_terminate_backend({pid});" if pid else "end the session that listens and stays in a transaction; see pg_stat_activity"
    return bad(PART, f"the NOTIFY queue is {usage:.0%} full; once it is full, every NOTIFY fails. A session that listens stays in a transaction", fix)


async def _writers(connection: asyncpg.Connection, measured: asyncpg.Record, long: float) -> AsyncIterator[Finding]:
    pid, age = measured["oldest_pid"], measured["oldest_age"] or 0.0
    if pid is not None and age > long:
        text = f"a transaction that has written is open for {age:,.0f} s (pid {pid}): its events wait for its end, and so does the emptying of the journal"
        yield bad(PART, text, f"commit it, or: SELECT pg_terminate_backend({pid});")
    elif pid is not None:
        yield good(PART, f"the oldest transaction that has written is open for {age:.1f} s (pid {pid})")
    for prepared in await connection.fetch(_PREPARED, long):
        gid = prepared["gid"]
        yield bad(
            PART, f"a prepared transaction waits for {prepared['age']:,.0f} s: its events wait too", f"COMMIT PREPARED {gid};   -- or ROLLBACK PREPARED {gid};"
        )
