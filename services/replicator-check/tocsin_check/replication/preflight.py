"""What would make replication fail, found before anything is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import asyncpg

from tocsin.errors import OperatorError
from tocsin.postgres import without_password
from tocsin.sql import load_queries
from tocsin_check.replication import selection, table_checks
from tocsin_check.replication.problems import Problems
from tocsin_check.replication.selection import ALL, Selection
from tocsin_check.rows.names import TableName, literal, quoted, slot_name

_SQL: Final = load_queries("tocsin_check", "sql/replication.sql")
OLDEST_VERSION: Final = 140000
_ORIGINS_COUNTED_APART: Final = 180000
_THIS_DATABASE: Final = "SELECT row(extract(epoch FROM pg_postmaster_start_time()), current_setting('port'), current_database())::text"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was learnt on the way: the slot's name, whether publication and subscription exist, which tables are new."""

    slot: str
    published: frozenset[TableName]
    has_publication: bool
    has_subscription: bool
    same_server: bool
    new: tuple[TableName, ...]


def user_of(address: str) -> str | None:
    """The user in a URL."""
    return unquote(urlsplit(address).username or "") or None


async def identity_of(connection: asyncpg.Connection) -> str:
    """Text that is the same for two sessions exactly if they are on the same server."""
    try:
        return str(await connection.fetchval(_SQL["system_identifier"]))
    except asyncpg.InsufficientPrivilegeError:
        return str(await connection.fetchval("SELECT pg_postmaster_start_time()::text || current_setting('port')"))


async def check_apart(source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    """Raises OperatorError where both are the same database. A replica that began as a copy of the source's files is another one."""
    if await source.fetchval(_THIS_DATABASE) == await replica.fetchval(_THIS_DATABASE):
        raise OperatorError("the source and the replica are the same database", "point TOCSIN_REPLICA_URL at the copy")


async def slot_of(replica: asyncpg.Connection) -> str:
    """The slot's name for this replica: the same from run to run, another for every other database."""
    database = await replica.fetchval("SELECT current_database()")
    return slot_name(database, hashlib.sha256(f"{await identity_of(replica)}/{database}".encode()).hexdigest())


async def check(
    source: asyncpg.Connection, replica: asyncpg.Connection, tables: list[TableName], address: str, name: str, selections: Mapping[TableName, Selection]
) -> Plan:
    """Raises OperatorError that lists everything that would fail. `address` is the source's URL as the replica dials it."""
    problems = Problems()
    facts, copy_facts = await source.fetchrow(_SQL["source_facts"]), await replica.fetchrow(_SQL["replica_facts"])
    assert facts is not None
    assert copy_facts is not None
    await check_apart(source, replica)
    same_server = await identity_of(source) == await identity_of(replica)
    slot = await slot_of(replica)
    has_subscription = await replica.fetchrow(_SQL["subscription"], name) is not None
    has_slot = await source.fetchrow(_SQL["slot"], slot) is not None
    published = frozenset(TableName(*row) for row in await source.fetch(_SQL["published"], name))
    subscribed = {TableName(row["nspname"], row["relname"]): row["subname"] for row in await replica.fetch(_SQL["subscribed_by"])}
    # One slot, sender, worker and origin for the subscription, and another of each for the copy of a table.
    needed = (not has_slot, not has_subscription, any(table not in subscribed for table in tables))
    await _source(source, facts, problems, address, needed=needed[0] + needed[2])
    _replica(copy_facts, problems, has_subscription=has_subscription, needed=needed[1] + needed[2])
    reader = user_of(address) or facts["user"]
    for table in tables:
        await table_checks.check_source(source, table, reader, selections.get(table, ALL), problems)
        if table not in subscribed:
            await table_checks.check_replica(source, replica, table, selections.get(table, ALL), problems)
        elif subscribed[table] != name:
            problems.add(
                f"{table} already comes to the replica by the subscription {subscribed[table]}",
                f'leave it out, or: ALTER SUBSCRIPTION "{subscribed[table]}" … without it',
            )
    await selection.check(source, selections, list(published), name, problems)
    problems.raise_any()
    if not has_subscription:
        await _reachable(replica, address, name)
    publication = await source.fetchrow(_SQL["publication"], name)
    return Plan(slot, published, publication is not None, has_subscription, same_server, tuple(t for t in tables if t not in subscribed))


async def _source(source: asyncpg.Connection, facts: Any, problems: Problems, address: str, *, needed: int) -> None:
    if facts["version"] < OLDEST_VERSION:
        problems.add(f"the source is PostgreSQL {facts['version'] // 10000}; 14 or later is needed", "upgrade the source")
    if facts["in_recovery"]:
        problems.add("the source is a standby, which can't publish", "point TOCSIN_DATABASE_URL at its primary")
    if facts["wal_level"] != "logical":
        problems.add(
            f"wal_level is {facts['wal_level']} on the source; logical replication needs logical",
            "run on the source: ALTER SYSTEM SET wal_level = 'logical'; then restart that server (a reload is not enough)",
        )
    user = user_of(address) or facts["user"]
    may = await source.fetchval(_SQL["may_replicate"], user)
    if may is None:
        problems.add(f"the source has no user {user}", f"run on the source: CREATE ROLE {quoted(user)} LOGIN REPLICATION PASSWORD '…'; or correct the address")
    elif not may:
        problems.add(f"the user {user} may not replicate from the source", f"run on the source as a superuser: ALTER ROLE {quoted(user)} REPLICATION;")
    if facts["max_slots"] - facts["slots"] < needed:
        problems.add(
            f"{facts['slots']} of the source's {facts['max_slots']} replication slots are taken; the copy needs {needed} more",
            f"run on the source: ALTER SYSTEM SET max_replication_slots = {facts['max_slots'] + 10}; and restart it, or drop a slot that nobody uses",
        )
    if facts["max_senders"] - facts["senders"] < needed:
        problems.add(
            f"{facts['senders']} of the source's {facts['max_senders']} WAL senders are busy; the copy needs {needed} more",
            f"run on the source: ALTER SYSTEM SET max_wal_senders = {facts['max_senders'] + 10}; and restart it",
        )
    if not facts["may_create"]:
        database = quoted(facts["database"])
        problems.add(
            f"the user {facts['user']} may not create a schema or a publication in the source",
            f"GRANT CREATE ON DATABASE {database} TO {quoted(facts['user'])};",
        )


def _replica(facts: Any, problems: Problems, *, has_subscription: bool, needed: int) -> None:
    if facts["version"] < OLDEST_VERSION:
        problems.add(f"the replica is PostgreSQL {facts['version'] // 10000}; 14 or later is needed", "upgrade the replica")
    if facts["in_recovery"]:
        problems.add("the replica is a physical standby, which can't subscribe", "point TOCSIN_REPLICA_URL at a server that accepts writes")
    user = quoted(facts["user"])
    if not facts["may_create"]:
        problems.add(f"the user {facts['user']} may not create schemas on the replica", f"GRANT CREATE ON DATABASE {quoted(facts['database'])} TO {user};")
    if not has_subscription and not facts["may_subscribe"]:
        problems.add(
            f"the user {facts['user']} may not create a subscription on the replica",
            f"GRANT pg_create_subscription TO {user}; (PostgreSQL 16 and later; before, a superuser)",
        )
    if facts["max_workers"] - facts["workers"] < needed:
        problems.add(
            f"{facts['workers']} of the replica's {facts['max_workers']} logical replication workers are busy; the copy needs {needed} more",
            f"run on the replica: ALTER SYSTEM SET max_logical_replication_workers = {facts['max_workers'] + 10}; and restart it",
        )
    if facts["max_origins"] - facts["origins"] < needed:
        setting = "max_active_replication_origins" if facts["version"] >= _ORIGINS_COUNTED_APART else "max_replication_slots"
        problems.add(
            f"{facts['origins']} of the replica's {facts['max_origins']} replication origins ({setting}) are in use; the copy needs {needed} more",
            f"run on the replica: ALTER SYSTEM SET {setting} = {facts['max_origins'] + 10}; and restart it",
        )
    if facts["max_copies"] < 1:
        problems.add(
            "max_sync_workers_per_subscription is 0 on the replica, so no table would ever be copied",
            "run on the replica: ALTER SYSTEM SET max_sync_workers_per_subscription = 2; SELECT pg_reload_conf();",
        )


async def _reachable(replica: asyncpg.Connection, address: str, name: str) -> None:
    """Let the replica dial the source, by a subscription that is rolled back.

    It names a publication that does not exist, which is only warned of: an existing one's tables would have to exist on the replica by now.
    """
    probe = f"CREATE SUBSCRIPTION {quoted(name)} CONNECTION {literal(address)} PUBLICATION {quoted(name + '_probe')}"
    transaction = replica.transaction()
    await transaction.start()
    try:
        await replica.execute(f"{probe} WITH (connect = true, create_slot = false, slot_name = NONE, enabled = false)")
    except asyncpg.InsufficientPrivilegeError as error:
        raise OperatorError(f"the replica refuses the subscription: {error}", "run tocsin replicate with a replica user that may create it") from error
    except asyncpg.PostgresError as error:
        parts = urlsplit(address)
        raise OperatorError(
            f"the replica can't reach the source at {without_password(address)}: {str(error).replace(chr(10), ' ')}",
            "give the source's address as the replica's server sees it with --source-url-from-replica, and let it in by a line in the source's pg_hba.conf: "
            f"host {parts.path.lstrip('/') or 'all'} {parts.username or 'all'} <the replica's address> scram-sha-256",
        ) from error
    finally:
        await transaction.rollback()
