"""Sessions of the checker on the source and the replica: their settings are pinned, so that the same row reads the same."""

from __future__ import annotations

from typing import Final

import asyncpg

from tocsin import postgres

SOURCE_SETTING: Final = "TOCSIN_DATABASE_URL"
REPLICA_SETTING: Final = "TOCSIN_REPLICA_URL"

PATIENCE: Final = {"read": 75.0, "mark": 15.0}
"""Seconds until a side that does not answer counts as lost, longer than the statement time-outs: a frozen link says nothing at all."""

# The search path makes format_type and regclass write every name that is not PostgreSQL's own with its schema.
PINNED: Final = """
SET search_path = pg_catalog;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, YMD';
SET IntervalStyle = 'postgres';
SET extra_float_digits = 1;
SET bytea_output = 'hex';
SET xmlbinary = 'base64';
SET xmloption = 'content';
SET lc_monetary = 'C';
SET quote_all_identifiers = off;
SET row_security = off;
SET jit = off;
SET lock_timeout = '5s';
"""
# A server's own limits for idle sessions would end ours while an audit rests, or waits for a marker within a transaction.
# PostgreSQL 13, which is refused by name a moment later, has but the second.
_UNHURRIED: Final = """
SELECT set_config(name, CASE name WHEN 'idle_session_timeout' THEN '0' ELSE '75s' END, false) FROM pg_settings
WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout');
"""
# A reader takes part of one CPU only, never waits long, and can't write by accident.
_READING: Final = """
SET default_transaction_read_only = on;
SET statement_timeout = '60s';
SET max_parallel_workers_per_gather = 0;
"""
# The marker is flushed here and does not wait for synchronous standbys.
_MARKING: Final = """
SET synchronous_commit = local;
SET statement_timeout = '10s';
"""
_REPAIRING: Final = """
SET statement_timeout = '60s';
"""


async def open_reader(url: str, setting: str) -> asyncpg.Connection:
    """A read-only session with statement and lock time-outs. Raises OperatorError, Unavailable."""
    return await _open(url, setting, "tocsin check", PINNED + _READING, PATIENCE["read"])


async def open_marker(url: str) -> asyncpg.Connection:
    """The one session that writes on the source: the marker row, nothing else. Raises OperatorError, Unavailable."""
    return await _open(url, SOURCE_SETTING, "tocsin check marker", PINNED + _MARKING, PATIENCE["mark"])


async def open_builder(url: str, setting: str) -> asyncpg.Connection:
    """A session that sets replication up. Raises OperatorError, Unavailable."""
    return await _open(url, setting, "tocsin replicate", PINNED)


async def open_repairer(url: str) -> asyncpg.Connection:
    """A session that writes on the replica. Raises OperatorError, Unavailable."""
    return await _open(url, REPLICA_SETTING, "tocsin repair", PINNED + _REPAIRING)


async def _open(url: str, setting: str, application: str, settings: str, patience: float | None = None) -> asyncpg.Connection:
    connection = await postgres.connect(url, setting=setting, application=application, command_timeout=patience)
    try:
        await connection.execute(settings + _UNHURRIED)
    except BaseException:
        connection.terminate()
        raise
    return connection
