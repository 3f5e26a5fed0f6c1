"""The source database: reachable without a pooler, installed, and every watched table's triggers in force."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.cli.examine import capture, pressure
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.errors import OperatorError, Unavailable
from tocsin.settings import Settings
from tocsin.sql import load_queries
from tocsin.stack import running

PART: Final = "source"
SETTING: Final = "TOCSIN_DATABASE_URL"
OLDEST: Final = 140000
MERGE_FIXED: Final = {15: 16, 16: 12, 17: 8, 18: 2}
"""From these minor versions on, triggers are given every row of a MERGE; before, not those of a MERGE in WITH, or into a table that refers to itself."""
_SQL: Final = load_queries("tocsin.cli.examine", "source.sql")


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    url = running.source_url(settings)
    if url is None:
        yield bad(PART, f"{SETTING} is not set, and no `tocsin up` runs here", f"export {SETTING}=postgresql://user@host:5432/name, or: tocsin up")
        return
    try:
        connection = await postgres.connect(url, setting=SETTING, application="tocsin doctor")
    except OperatorError as error:
        yield bad(PART, str(error), error.fix)
        return
    except Unavailable as error:
        yield bad(PART, str(error), f"start that server, or correct {SETTING}")
        return
    try:
        yield good(PART, f"{postgres.without_password(url)} answers" + ("" if settings.database_url else " (embedded)"))
        async for finding in _server(connection):
            yield finding
        async for finding in capture.examine(connection):
            yield finding
        async for finding in pressure.examine(connection):
            yield finding
    except asyncpg.PostgresError as error:
        yield bad(PART, f"a question to the source failed: {error}", f"let the user in {SETTING} own the schema tocsin, or look at the server's log")
    finally:
        await postgres.close(connection)


def merge_loses_rows(number: int) -> bool:
    """Whether this server_version_num is one whose statement triggers miss rows of some MERGEs."""
    major, minor = divmod(number, 10000)
    return minor < MERGE_FIXED.get(major, 0)


async def _server(connection: asyncpg.Connection) -> AsyncIterator[Finding]:
    server = await connection.fetchrow(_SQL["server"])
    assert server is not None, "the query gives one row"
    if server["number"] < OLDEST:
        yield bad(PART, f"PostgreSQL {server['version']}", "upgrade to PostgreSQL 14 or later")
    elif merge_loses_rows(server["number"]):
        fixed = f"{server['number'] // 10000}.{MERGE_FIXED[server['number'] // 10000]}"
        lost = "those of a MERGE in a WITH, or into a table with a foreign key to itself"
        yield bad(
            PART,
            f"PostgreSQL {server['version']} keeps rows from triggers, so they become no event: {lost}",
            f"upgrade this server to PostgreSQL {fixed} or later (a restart)",
        )
    else:
        yield good(PART, f"PostgreSQL {server['version']}")
    if server["in_recovery"]:
        yield bad(PART, "it is a standby, which can't be written", f"point {SETTING} at the primary")
    yield await _pooler(connection)
    if server["wal_level"] == "logical":
        yield good(PART, "wal_level is logical: it can be replicated")
    else:
        yield bad(
            PART,
            f"wal_level is {server['wal_level']}: no logical replication, live updates alone",
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
        )
    if server["kept"] == "-1":
        fix = "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();"
        yield bad(PART, "max_slot_wal_keep_size is unlimited: a replica that stays away fills this server's disk", fix)
    else:
        yield good(PART, f"max_slot_wal_keep_size is {server['kept']}: a replica that stays away can't fill the disk")
    silent_roles = await connection.fetch(_SQL["silent_roles"])
    if server["role"] == "replica" and not silent_roles:
        yield bad(
            PART,
            "session_replication_role is 'replica' for the whole server: what is written is not captured",
            "ALTER SYSTEM RESET session_replication_role; SELECT pg_reload_conf();   -- or take it out of postgresql.conf",
        )
    for role in silent_roles:
        scope = f"ALTER ROLE {role['role'] or 'ALL'}" + (f" IN DATABASE {role['database']}" if role["database"] else "")
        yield bad(
            PART,
            f"session_replication_role is 'replica' by default for {role['role'] or 'everybody'}: such writes are not captured",
            f"{scope} RESET session_replication_role;",
        )
    for slot in await connection.fetch(_SQL["slots"]):
        yield _slot(slot)


async def _pooler(connection: asyncpg.Connection) -> Finding:
    fix = f"point {SETTING} at PostgreSQL itself, not at the pooler; applications may go on using it"
    try:
        first = await connection.fetchrow(_SQL["bell"])
        assert first is not None, "the query gives one row"
        if not first["locked"] or not await connection.fetchval(_SQL["bell_held"], first["pid"]):
            return bad(PART, "a pooler stands in between: a session's locks and LISTEN do not last", fix)
        await connection.execute(_SQL["release"])
    except asyncpg.PostgresError as error:
        return bad(PART, f"a pooler seems to stand in between: {error}", fix)
    return good(PART, "a session of its own: no transaction pooler in between")


def _slot(slot: asyncpg.Record) -> Finding:
    name, state = slot["slot_name"], slot["wal_status"]
    if state in ("lost", "unreserved"):
        fix = f"the replica has to be copied again: drop its subscription, SELECT pg_drop_replication_slot('{name}'); then tocsin replicate"
        return bad(PART, f"the slot {name} is {state}: its replica can't catch up", fix)
    if not slot["active"]:
        return bad(
            PART, f"nobody reads the slot {name}, which keeps {slot['behind']} of WAL", f"start its replica, or: SELECT pg_drop_replication_slot('{name}');"
        )
    return good(PART, f"the slot {name} is read; {slot['behind']} behind")
