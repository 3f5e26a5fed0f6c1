"""What would make replication fail, found before anything is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import asyncpg

from tocsin.errors import OperatorError
from tocsin.postgres import without_password
from tocsin.sql import load_queries
from tocsin_check import selection
from tocsin_check.names import TableName, literal, quoted, slot_name
from tocsin_check.selection import ALL, Selection

_SQL: Final = load_queries("tocsin_check", "replication.sql")
_CATALOG: Final = load_queries("tocsin_check", "catalog.sql")
OLDEST_VERSION: Final = 140000
_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a composite type",
    "t": "a TOAST table",
}


@dataclass(slots=True)
class Problems:
    """Each with its fix; `raise_any` shows all of them at once, so that nobody mends one to meet the next."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, message: str, fix: str) -> None:
        self.found.append((message, fix))

    def raise_any(self) -> None:
        if len(self.found) == 1:
            raise OperatorError(*self.found[0])
        if self.found:
            raise OperatorError(
                f"{len(self.found)} things stand in the way:\n" + "\n".join(f"  {i}. {message}" for i, (message, _) in enumerate(self.found, 1)),
                "\n".join(f"{i}. {fix}" for i, (_, fix) in enumerate(self.found, 1)),
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What was learnt on the way: the slot's name, whether publication and subscription exist, which tables are new."""

    slot: str
    published: frozenset[TableName]
    has_publication: bool
    has_subscription: bool
    same_server: bool
    new: tuple[TableName, ...]


async def identity_of(connection: asyncpg.Connection) -> str:
    """Text that is the same for two sessions exactly if they are on the same server."""
    try:
        return str(await connection.fetchval(_SQL["system_identifier"]))
    except asyncpg.InsufficientPrivilegeError:
        return str(await connection.fetchval("SELECT pg_postmaster_start_time()::text || current_setting('port')"))


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
    same_server = await identity_of(source) == await identity_of(replica)
    if same_server and facts["database"] == copy_facts["database"]:
        problems.add("the source and the replica are the same database", "point TOCSIN_REPLICA_URL at the copy")
        problems.raise_any()
    slot = await slot_of(replica)
    has_subscription = await replica.fetchrow(_SQL["subscription"], name) is not None
    has_slot = await source.fetchrow(_SQL["slot"], slot) is not None
    await _source(source, facts, problems, address, needs_slot=not has_slot)
    _replica(copy_facts, problems, has_subscription=has_subscription)
    published = frozenset(TableName(*row) for row in await source.fetch(_SQL["published"], name))
    subscribed = {TableName(row["nspname"], row["relname"]): row["subname"] for row in await replica.fetch(_SQL["subscribed_by"])}
    for table in tables:
        await _table(source, table, problems)
        if table not in subscribed:
            await _copy(source, replica, table, selections.get(table, ALL), problems)
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


async def _source(source: asyncpg.Connection, facts: Any, problems: Problems, address: str, *, needs_slot: bool) -> None:
    if facts["version"] < OLDEST_VERSION:
        problems.add(f"the source is PostgreSQL {facts['version'] // 10000}; 14 or later is needed", "upgrade the source")
    if facts["in_recovery"]:
        problems.add("the source is a standby, which can't publish", "point TOCSIN_DATABASE_URL at its primary")
    if facts["wal_level"] != "logical":
        problems.add(
            f"wal_level is {facts['wal_level']} on the source; logical replication needs logical",
            "run on the source: ALTER SYSTEM SET wal_level = 'logical'; then restart that server (a reload is not enough)",
        )
    user = unquote(urlsplit(address).username or "") or facts["user"]
    if not await source.fetchval(_SQL["may_replicate"], user):
        problems.add(f"the user {user} may not replicate from the source", f"run on the source as a superuser: ALTER ROLE {quoted(user)} REPLICATION;")
    if needs_slot and facts["max_slots"] - facts["slots"] < 2:
        problems.add(
            f"all but {facts['max_slots'] - facts['slots']} of the source's {facts['max_slots']} replication slots are taken; the copy needs two",
            f"run on the source: ALTER SYSTEM SET max_replication_slots = {facts['max_slots'] + 10}; and restart it, or drop a slot that nobody uses",
        )
    if needs_slot and facts["max_senders"] - facts["senders"] < 2:
        problems.add(
            f"all but {facts['max_senders'] - facts['senders']} of the source's {facts['max_senders']} WAL senders are busy; the copy needs two",
            f"run on the source: ALTER SYSTEM SET max_wal_senders = {facts['max_senders'] + 10}; and restart it",
        )
    if not facts["may_create"]:
        database = quoted(facts["database"])
        problems.add(
            f"the user {facts['user']} may not create a schema or a publication in the source",
            f"GRANT CREATE ON DATABASE {database} TO {quoted(facts['user'])};",
        )


def _replica(facts: Any, problems: Problems, *, has_subscription: bool) -> None:
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
    if not has_subscription and facts["max_workers"] - facts["workers"] < 2:
        problems.add(
            f"only {facts['max_workers'] - facts['workers']} of the replica's {facts['max_workers']} logical replication workers are free; the copy needs two",
            "run on the replica: ALTER SYSTEM SET max_logical_replication_workers = 10; and restart it",
        )


async def _table(source: asyncpg.Connection, table: TableName, problems: Problems) -> None:
    row = await source.fetchrow(_CATALOG["resolve_table"], *table)
    if row is None:
        problems.add(f"the source has no table {table}", "correct the name; `tocsin replicate` without a name takes every table")
    elif row["relkind"] not in "rp":
        problems.add(f"{table} is {_KINDS.get(row['relkind'], 'not a table')}, which can't be replicated", "name a table")
    elif row["relpersistence"] != "p":
        problems.add(
            f"{table} is {'unlogged' if row['relpersistence'] == 'u' else 'temporary'}, so it leaves no trace in the WAL",
            f"ALTER TABLE {table.sql} SET LOGGED;",
        )
    elif not row["is_ours"]:
        problems.add(
            f"only the owner of {table}, {row['owner']}, may publish it",
            f"GRANT {quoted(row['owner'])} TO the user in TOCSIN_DATABASE_URL, or run this as {row['owner']}",
        )
    elif not _has_identity(row):
        problems.add(
            f"{table} has no primary key, so PostgreSQL can't tell the replica which row an UPDATE or DELETE means (its replica identity is empty, "
            "and once published the table would refuse both)",
            f"ALTER TABLE {table.sql} ADD PRIMARY KEY (…); or, slower, ALTER TABLE {table.sql} REPLICA IDENTITY FULL;",
        )


def _has_identity(row: Any) -> bool:
    identity = row["relreplident"]
    return bool(identity == "f" or (identity == "d" and row["has_primary_key"]) or (identity == "i" and row["has_identity_index"]))


async def _copy(source: asyncpg.Connection, replica: asyncpg.Connection, table: TableName, selected: Selection, problems: Problems) -> None:
    """A table that the replica already has must take the rows: every column there, and nothing in it."""
    theirs = await replica.fetchrow(_CATALOG["resolve_table"], *table)
    ours = await source.fetchrow(_CATALOG["resolve_table"], *table)
    if theirs is None or ours is None:
        return
    if theirs["relkind"] not in "rp":
        problems.add(f"{table} is {_KINDS.get(theirs['relkind'], 'not a table')} on the replica", "rename it there; a table has to take its place")
        return
    there = {row["attname"] for row in await replica.fetch(_CATALOG["columns"], theirs["oid"])}
    columns = [row["attname"] for row in await source.fetch(_CATALOG["columns"], ours["oid"]) if not row["attgenerated"]]
    wanted = [name for name in columns if selected.columns is None or name in selected.columns]
    missing = [name for name in wanted if name not in there]
    required = [row["attname"] for row in await replica.fetch(_SQL["required_columns"], theirs["oid"]) if row["attname"] not in wanted]
    if required:
        problems.add(
            f"{table} on the replica demands a value for {', '.join(required)}, which is not replicated",
            f"ALTER TABLE {table.sql} ALTER COLUMN {quoted(required[0])} DROP NOT NULL; on the replica, or give it a default",
        )
    if missing:
        problems.add(
            f"{table} on the replica lacks {', '.join(missing)}",
            f"ALTER TABLE {table.sql} ADD COLUMN … on the replica, or drop the table there to have it copied",
        )
    elif await replica.fetchval(f"SELECT EXISTS (SELECT FROM {table.sql})"):
        problems.add(f"{table} on the replica already has rows, which the initial copy would meet", f"run on the replica: TRUNCATE {table.sql};")


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
