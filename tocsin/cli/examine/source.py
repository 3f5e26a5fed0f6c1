"""The source database: reachable without a pooler, installed, and every watched table's triggers in force."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.errors import OperatorError, TocsinError, Unavailable
from tocsin.settings import Settings
from tocsin.sql import load_queries
from tocsin.stack.plan import DATABASE
from tocsin.stack.process import port_is_open

PART: Final = "source"
SETTING: Final = "TOCSIN_DATABASE_URL"
OLDEST: Final = 140000
_SQL: Final = load_queries("tocsin.cli.examine", "source.sql")


def url_of(settings: Settings) -> str | None:
    """The source's URL: as set, else the embedded one's where `tocsin up` seems to run."""
    if settings.database_url is not None:
        return settings.database_url
    port = settings.embedded_source_port
    return f"postgresql://postgres@127.0.0.1:{port}/{DATABASE}" if port_is_open(port) else None


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    url = url_of(settings)
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
        async for finding in _installation(connection):
            yield finding
    except asyncpg.PostgresError as error:
        yield bad(PART, f"a question to the source failed: {error}", f"let the user in {SETTING} own the schema tocsin, or look at the server's log")
    finally:
        await postgres.close(connection)


async def _server(connection: asyncpg.Connection) -> AsyncIterator[Finding]:
    server = await connection.fetchrow(_SQL["server"])
    assert server is not None, "the query gives one row"
    if server["number"] < OLDEST:
        yield bad(PART, f"PostgreSQL {server['version']}", "upgrade to PostgreSQL 14 or later")
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
    if server["role"] == "replica":
        yield bad(
            PART,
            "session_replication_role is 'replica' for this user: its writes are not captured",
            f'ALTER ROLE "{server["user"]}" RESET session_replication_role;',
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


async def _installation(connection: asyncpg.Connection) -> AsyncIterator[Finding]:
    from tocsin_listener.install import require_installed

    try:
        await require_installed(connection)
    except OperatorError as error:
        yield bad(PART, str(error), error.fix)
        return
    except TocsinError as error:
        yield bad(PART, str(error), "tocsin install")
        return
    yield good(PART, "the schema tocsin is installed, of this version")
    watched = await connection.fetch(_SQL["watched"])
    if not watched:
        yield bad(PART, "no table is watched", "tocsin watch TABLE")
    for watch in watched:
        yield await _triggers(connection, watch)
    if refused := await connection.fetchval(_SQL["lost_to_quarantine"]):
        yield bad(PART, f"NATS refused {refused} events for good; they are in tocsin.quarantine", "mend what `tocsin retry --list` names, then: tocsin retry")


async def _triggers(connection: asyncpg.Connection, watch: asyncpg.Record) -> Finding:
    if watch["table"] is None:
        return bad(PART, f"a watched table is gone (it had the oid {watch['oid']})", f"DELETE FROM tocsin.watched WHERE id = {watch['id']};")
    name = f"{watch['schema']}.{watch['table']}"
    rows = await connection.fetch(_SQL["triggers"], watch["oid"], watch["ops"], watch["id"])
    missing = [row for row in rows if row["enabled"] is None]
    silent = [row for row in rows if row["enabled"] in ("D", "R")]
    if missing:
        where = ", ".join(sorted({f"{row['op']} on {row['member']}" for row in missing}))
        return bad(PART, f"{name} is watched, but has no trigger for {where}", "tocsin install   # it makes every watch's triggers anew")
    if silent:
        fix = "; ".join(f"ALTER TABLE {row['member']} ENABLE TRIGGER tocsin_{watch['id']}_{row['op']}" for row in silent)
        return bad(PART, f"{name}: triggers that don't fire: {', '.join(row['op'] for row in silent)}", f"{fix};")
    return good(PART, f"{name} is watched: {', '.join(watch['ops'])}")
