"""Reads from both catalogs what is replicated, how it stands, and how each table can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from tocsin.errors import OperatorError
from tocsin.sql import load_queries
from tocsin_check.catalog.coverage import ColumnFacts, Facts, Published, Slot, Subscribed, Subscription, TableFacts
from tocsin_check.catalog.table import Comparable, Unauditable, compare_table
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.hashing import BYTES_SINCE, self_test
from tocsin_check.rows.names import TableName

_SQL: Final = load_queries("tocsin_check", "sql/inventory.sql")
NATIVE_SINCE: Final = 14


class Held(OperatorError):  # noqa: N818  # a state of a table, not a fault
    """A table can't be read, because somebody keeps it locked."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """`tables` are those that the replica subscribes to or the source publishes to it, in the order of their names."""

    facts: Facts
    tables: tuple[Comparable | Unauditable, ...]
    native: bool


async def take(source: asyncpg.Connection, replica: asyncpg.Connection, hashable: dict[str, bool], *, exact: bool = False) -> Inventory:
    """`exact` compares bit for bit. `hashable` remembers, from call to call, which types have a hash; sessions must be pinned (tocsin_check.sessions)."""
    slots = {row["name"]: Slot(**dict(row)) for row in await source.fetch(_SQL["slots"])}
    subscriptions = await _subscriptions(replica, slots)
    names = sorted({publication for s in subscriptions for publication in s.publications})
    published = [_published(row) for row in await source.fetch(_SQL["published"], names)]
    subscribed = [Subscribed(row["subscription"], TableName(row["schema"], row["name"]), row["state"]) for row in await replica.fetch(_SQL["subscribed"])]
    ours = {s.oid for s in subscriptions}
    tables = sorted({p.table for p in published} | {s.table for s in subscribed if s.subscription in ours})
    on_source, on_replica = await _tables(source, tables), await _tables(replica, tables)
    facts = Facts(
        subscriptions=tuple(subscriptions),
        slots=slots,
        published=tuple(published),
        subscribed=tuple(s for s in subscribed if s.subscription in ours),
        source=on_source,
        replica=on_replica,
        versions=(await _version(source), await _version(replica)),
        writers=await _writers(replica, tables, subscriptions),
        partial_publications=tuple(row["name"] for row in await source.fetch(_SQL["publications"], names) if not row["all_ops"]),
    )
    await _probe(source, replica, [*on_source.values(), *on_replica.values()], hashable)
    native = await _same_hashes(source, replica)
    compared = [compare_table(table, facts, hashable, native=native, exact=exact) for table in tables if table.schema != "tocsin_check"]
    return Inventory(facts, tuple(compared), native)


async def stamps(sides: Sides, table: TableName) -> tuple[str, str]:
    """What Comparable.stamps would be now; empty where a side has no such table."""
    rows = [await side.fetch(_SQL["tables"], [table.sql]) for side in (sides.source, sides.replica)]
    ours, theirs = (found[0]["stamp"] if found else "" for found in rows)
    return ours, theirs


async def held(sides: Sides, table: TableName | None = None) -> Held:
    """Who keeps a table from being read, first of all this one."""
    for side, where in ((sides.source, "source"), (sides.replica, "replica")):
        row = await side.fetchrow(_SQL["holders"], table.sql if table is not None else None)
        if row is not None:
            who = f"{row['who'] or 'another session'}, process {row['pid']}" if row["pid"] is not None else "a prepared transaction"
            fix = (
                f"SELECT pg_terminate_backend({row['pid']})" if row["pid"] is not None else "COMMIT PREPARED or ROLLBACK PREPARED what pg_prepared_xacts shows"
            )
            return Held(f"{row['table']} can't be read on the {where}: {who}, holds it", f"wait until that has ended; or there: {fix}")
    return Held("a lock was held for too long; it is free by now", "nothing: it is tried again")


async def _subscriptions(replica: asyncpg.Connection, slots: dict[str, Slot]) -> list[Subscription]:
    """Those that read from this source; where none has its slot here, all of them, so that the lost slot is told."""
    rows = await replica.fetch(_SQL["subscriptions" if replica.get_server_version().major >= 15 else "subscriptions_14"])
    found = []
    for row in rows:
        counters = json.loads(row["counters"]) if row["counters"] else {}
        errors = {name: value for name, value in counters.items() if name.startswith("confl_") or name.endswith("_error_count")}
        found.append(
            Subscription(
                row["oid"], row["name"], row["enabled"], row["worker"], row["slot"], tuple(row["publications"]), errors, row["skip_lsn"] or "0/0", row["owner"]
            )
        )
    here = [s for s in found if s.slot in slots]
    return here or found


async def _version(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT current_setting('server_version_num')"))


async def _writers(replica: asyncpg.Connection, tables: Sequence[TableName], subscriptions: Sequence[Subscription]) -> dict[str, tuple[TableName, ...]]:
    rows = await replica.fetch(_SQL["tables"], [table.sql for table in tables if table.schema != "tocsin_check"])
    names = {row["oid"]: next(table for table in tables if table.sql == row["asked"]) for row in rows}
    found = await replica.fetch(_SQL["writers"], list(names), [s.owner for s in subscriptions])
    return {row["role"]: tuple(sorted(names[oid] for oid in row["tables"])) for row in found if row["tables"]}


def _published(row: Any) -> Published:
    columns = tuple(json.loads(row["columns"])) if row["columns"] else None
    return Published(row["publication"], TableName(row["schema"], row["name"]), columns, row["filter"])


async def _tables(connection: asyncpg.Connection, tables: Sequence[TableName]) -> dict[TableName, TableFacts]:
    by_name = {table.sql: table for table in tables}
    rows = await connection.fetch(_SQL["tables"], list(by_name))
    oids = [row["oid"] for row in rows]
    columns: dict[int, dict[str, ColumnFacts]] = {oid: {} for oid in oids}
    for row in await connection.fetch(_SQL["columns"], oids):
        values = dict(row)
        table = values.pop("table")
        columns[table][row["name"]] = ColumnFacts(**values)
    keys = {row["table"]: tuple(row["columns"]) for row in await connection.fetch(_SQL["keys"], oids)}
    sequences: dict[int, dict[str, int | None]] = {oid: {} for oid in oids}
    for row in await connection.fetch(_SQL["sequences"], oids):
        sequences[row["table"]][f"{row['schema']}.{row['name']}"] = row["last_value"]
    return {
        by_name[row["asked"]]: TableFacts(
            kind=row["kind"],
            identity=row["identity"],
            has_primary_key=row["has_primary_key"],
            readable=row["readable"],
            partitions=tuple(row["partitions"]),
            required=tuple(row["required"]),
            firing=tuple(row["firing"]),
            stamp=row["stamp"],
            columns=columns[row["oid"]],
            key=keys.get(row["oid"], ()),
            sequences=sequences[row["oid"]],
        )
        for row in rows
    }


async def _probe(source: asyncpg.Connection, replica: asyncpg.Connection, tables: Iterable[TableFacts], hashable: dict[str, bool]) -> None:
    """Ask PostgreSQL itself which types it can hash: elements of arrays and ranges count, too."""
    for base in {column.base for table in tables for column in table.columns.values() if column.native} - hashable.keys():
        hashable[base] = await _can_hash(source, base) and await _can_hash(replica, base)


async def _can_hash(connection: asyncpg.Connection, base: str) -> bool:
    try:
        await connection.execute(_SQL["has_hash"].format(type=base))
    except asyncpg.UndefinedFunctionError:
        return False
    return True


async def _same_hashes(source: asyncpg.Connection, replica: asyncpg.Connection) -> bool:
    if min(source.get_server_version().major, replica.get_server_version().major) < NATIVE_SINCE:
        return False
    sql = self_test(by_bytes=min(await _version(source), await _version(replica)) >= BYTES_SINCE)
    return tuple(await source.fetchrow(sql) or ()) == tuple(await replica.fetchrow(sql) or (None,))
