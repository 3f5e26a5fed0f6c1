"""Create, upgrade and remove what Tocsin keeps in the source database."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import asyncpg

from tocsin.errors import OperatorError
from tocsin_listener.giving_way import LOCK_TIMEOUT, giving_way
from tocsin_listener.leader import LOCK

VERSION: Final = 5
"""Of what is in the schema; a listener refuses another."""

SCRIPTS: Final = ("schema.sql", "order.sql", "values.sql", "capture.sql", "watch.sql", "alteration.sql")
"""In the order in which they run; upgrade.sql runs before them where an older version is installed."""

PUBLIC_FUNCTIONS: Final = "tocsin.emit(text, jsonb), tocsin.token(text), tocsin.annotate(jsonb), tocsin.annotation(text)"

HEADROOM: Final = 6144
"""Bytes of TOCSIN_MAX_EVENT that the envelope and the headers may take, with an annotation."""

_LOCK: Final = 8390040714906399856
_WRITERS: Final = """SELECT string_agg(format('process %s (%s), open for %s s', pid, application_name, extract(epoch FROM now() - xact_start)::int), '; ')
    FROM (SELECT * FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()
          ORDER BY xact_start LIMIT 3) AS a"""

# By the index's end: a journal without statistics would be read whole, at each start of a leader.
FOREIGN: Final = """SELECT coalesce((SELECT xid FROM tocsin.journal ORDER BY xid DESC, seq DESC LIMIT 1) >= pg_snapshot_xmax(pg_current_snapshot()), false)
    OR EXISTS (SELECT FROM (SELECT reached FROM tocsin.progress ORDER BY n DESC LIMIT 1) AS newest
               WHERE pg_snapshot_xmax(reached) > pg_snapshot_xmax(pg_current_snapshot()))"""

_LEADS: Final = """SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (classid::bigint << 32) + objid::bigint = $1"""


async def install(connection: asyncpg.Connection, *, max_event: int = 900 << 10, patience: float = 30.0) -> bool:
    """Create the schema `tocsin`, or bring an older one up to date; whether it was new. One transaction; may be repeated.

    It may run under load: no writer waits for longer than about a third of a second, and none fails. `max_event` is in bytes,
    envelope and headers included. Raises OperatorError where the user may not create a schema, where a newer version is
    installed, and where a writer's transaction stays open for `patience` seconds.
    """
    try:
        return await giving_way(lambda: _install(connection, max_event), patience)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        who = await connection.fetchval(_WRITERS)
        raise OperatorError(
            f"gave up after {patience:.0f} s, so that no writer waits behind this; nothing is changed. In the way: {who or error}",
            "tocsin install   # again when that transaction has ended, or end it: SELECT pg_terminate_backend(PID);",
        ) from error


async def _install(connection: asyncpg.Connection, max_event: int) -> bool:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT}; SELECT pg_advisory_xact_lock({_LOCK})")
        user = await connection.fetchval("SELECT quote_ident(current_user)")
        database = await connection.fetchval("SELECT quote_ident(current_database())")
        await _check_encoding(connection)
        new = not await installed(connection)
        if not new:
            await _check_not_newer(connection)
            await _check_readers(connection)
        try:
            await connection.execute("SET LOCAL client_min_messages = warning")
            if not new:
                await connection.execute(_script("upgrade.sql"))
            for name in SCRIPTS:
                await connection.execute(_script(name))
                # The generator's functions call one another in any order.
                await connection.execute("SET LOCAL check_function_bodies = off")
            await connection.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tocsin FROM PUBLIC")
            await connection.execute(f"GRANT EXECUTE ON FUNCTION {PUBLIC_FUNCTIONS} TO PUBLIC")
        except asyncpg.InsufficientPrivilegeError as error:
            raise OperatorError(f"the user {user} may not install Tocsin: {error}", f"as a superuser: GRANT CREATE ON DATABASE {database} TO {user}") from error
        await connection.execute(
            """INSERT INTO tocsin.identity (version, max_event) VALUES ($1, $2)
               ON CONFLICT (one) DO UPDATE SET version = excluded.version, max_event = excluded.max_event""",
            VERSION,
            max_event - HEADROOM,
        )
        # What changed its shape while another version was there is announced; then all are written anew.
        await connection.execute("SELECT tocsin.refresh_all() FROM tocsin.watched WHERE form IS NOT NULL LIMIT 1; SELECT tocsin.build(id) FROM tocsin.watched")
    return new


async def uninstall(connection: asyncpg.Connection) -> bool:
    """Remove the schema with everything in it, the triggers on watched tables included; whether there was anything."""
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            await connection.execute("SET LOCAL client_min_messages = warning")
            there = bool(await connection.fetchval("SELECT to_regnamespace('tocsin') IS NOT NULL"))
            await connection.execute("DROP SCHEMA IF EXISTS tocsin CASCADE")
    except asyncpg.InsufficientPrivilegeError as error:
        owner = await connection.fetchval("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'tocsin'")
        raise OperatorError(f"only its owner may remove the schema tocsin: {error}", f"run tocsin uninstall as the user {owner}") from error
    return there


async def installed(connection: asyncpg.Connection) -> bool:
    """Whether the schema is there, of any version."""
    return bool(await connection.fetchval("SELECT to_regclass('tocsin.identity') IS NOT NULL"))


async def require_installed(connection: asyncpg.Connection) -> None:
    """Raises OperatorError, with the command that installs or upgrades."""
    database = await connection.fetchval("SELECT current_database()")
    if not await installed(connection):
        raise OperatorError(f"Tocsin is not installed in the database {database}", "tocsin install")
    try:
        version = await connection.fetchval("SELECT version FROM tocsin.identity")
    except asyncpg.InsufficientPrivilegeError as error:
        owner = await connection.fetchval("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'tocsin'")
        raise OperatorError(
            f"this user may not read the schema tocsin in the database {database}", f"run this as the user {owner}, who installed it"
        ) from error
    if version > VERSION:
        raise _newer(database, version)
    if version != VERSION:
        raise OperatorError(f"the schema tocsin in the database {database} is of version {version}; this program needs {VERSION}", "tocsin install")


async def require_own_journal(connection: asyncpg.Connection) -> None:
    """Raises OperatorError where the schema came with a dump of another server: transactions have other numbers here, so that the cursor
    would pass over new events, and old ones would come again when this server's numbers reach theirs.
    """
    if await connection.fetchval(FOREIGN):
        database = await connection.fetchval("SELECT current_database()")
        raise OperatorError(
            f"the schema tocsin in the database {database} came with a dump of another server, and what it knows of transactions does not hold here",
            "tocsin watched   # note it; then: tocsin uninstall; tocsin install; tocsin watch TABLE… (docs/operations/backup.md)",
        )


async def _check_not_newer(connection: asyncpg.Connection) -> None:
    version = await connection.fetchval("SELECT version FROM tocsin.identity")
    if version is not None and version > VERSION:
        raise _newer(await connection.fetchval("SELECT current_database()"), version)


async def _check_readers(connection: asyncpg.Connection) -> None:
    """Listeners of versions 1 and 2 read the journal's own columns, and would publish what this version writes into them as it stands there."""
    version = await connection.fetchval("SELECT version FROM tocsin.identity")
    if version < 3 and (pid := await connection.fetchval(_LEADS, LOCK)) is not None:
        raise OperatorError(
            f"a listener of version {version} leads (process {pid}), and can't read what this version writes",
            "stop the listeners, then: tocsin install; then start this version's. What is committed meanwhile waits in the journal",
        )


def _newer(database: str, version: int) -> OperatorError:
    return OperatorError(
        f"the schema tocsin in the database {database} is of version {version}, newer than this program, which knows {VERSION}; it is left as it is",
        "pip install --upgrade tocsin   # docs/operations/upgrades.md says how to go back to an older version",
    )


async def _check_encoding(connection: asyncpg.Connection) -> None:
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding == "SQL_ASCII":
        raise OperatorError(
            "the database's encoding is SQL_ASCII, in which text has no defined characters and so no JSON",
            "move the data to a database with encoding UTF8: createdb -E UTF8 -T template0 NAME",
        )


def _script(name: str) -> str:
    return (files("tocsin_listener") / "sql" / name).read_text(encoding="utf-8")
