"""Copies the shape of a table from the source to the replica: types, sequences, columns, partitions, constraints, indexes.

The definitions are PostgreSQL's own words (format_type, pg_get_expr, pg_get_constraintdef …), so no pg_dump is needed.
Foreign keys and triggers are left out: applying replicated rows never fires them, and a copy of some of the tables could
not have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from tocsin.errors import OperatorError
from tocsin.sql import load_queries
from tocsin_check.rows.names import TableName, literal, quoted

_SQL: Final = load_queries("tocsin_check", "sql/catalog.sql")


@dataclass(slots=True)
class Copied:
    """`made` are the tables that were created (partitions included); `left_out` says what the replica can't have, and why."""

    made: list[TableName] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    columns: dict[TableName, frozenset[str]] = field(default_factory=dict)

    def has(self, table: TableName, column: str) -> bool:
        return table not in self.columns or column in self.columns[table]


async def copy_tables(
    source: asyncpg.Connection, replica: asyncpg.Connection, tables: list[TableName], columns: Mapping[TableName, Sequence[str]] | None = None
) -> Copied:
    """Create what is missing on the replica, all of it or nothing. Raises OperatorError with PostgreSQL's reason.

    `columns` names, for tables that are not replicated whole, the columns that the replica gets.
    """
    copied = Copied(columns={table: frozenset(names) for table, names in (columns or {}).items()})
    async with replica.transaction():
        for table in tables:
            oid = await source.fetchval("SELECT to_regclass($1)::oid", table.sql)
            try:
                await _copy(source, replica, table, oid, "", copied)
            except (
                asyncpg.UndefinedObjectError,
                asyncpg.UndefinedFunctionError,
                asyncpg.InsufficientPrivilegeError,
                asyncpg.FeatureNotSupportedError,
            ) as error:
                raise OperatorError(
                    f"{table} can't be created on the replica: {error}",
                    "create on the replica what it needs, or the table itself, and run tocsin replicate again",
                ) from error
    return copied


async def _copy(source: asyncpg.Connection, replica: asyncpg.Connection, table: TableName, oid: int, partition_of: str, copied: Copied) -> None:
    if await replica.fetchval("SELECT to_regclass($1)", table.sql) is None:
        await replica.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.schema)}")
        await _types(source, replica, oid)
        await _sequences(source, replica, oid)
        await replica.execute(await _definition(source, table, oid, partition_of, copied))
        copied.made.append(table)
        await _additions(source, replica, table, oid, copied)
    for child in await source.fetch(_SQL["partitions"], oid):
        name = TableName(child["nspname"], child["relname"])
        await _copy(source, replica, name, child["oid"], f"PARTITION OF {table.sql} {child['bound']}", copied)
    if table in copied.made and not partition_of:
        await _indexes(source, replica, table, oid, copied)


async def _definition(source: asyncpg.Connection, table: TableName, oid: int, partition_of: str, copied: Copied) -> str:
    key = await source.fetchval(_SQL["partition_key"], oid)
    partitioned = f" PARTITION BY {key}" if key else ""
    if partition_of:
        return f"CREATE TABLE {table.sql} {partition_of}{partitioned}"
    columns = [_column(row) for row in await source.fetch(_SQL["columns"], oid) if copied.has(table, row["attname"])]
    return f"CREATE TABLE {table.sql} ({', '.join(columns)}){partitioned}"


def _column(row: asyncpg.Record) -> str:
    parts = [quoted(row["attname"]), row["type"]]
    if row["collation"]:
        parts.append(f"COLLATE {row['collation']}")
    if row["attnotnull"]:
        parts.append("NOT NULL")
    if row["attgenerated"]:
        parts.append(f"GENERATED ALWAYS AS ({row['expression']}) {'STORED' if row['attgenerated'] == 's' else 'VIRTUAL'}")
    if row["attidentity"]:
        parts.append(f"GENERATED {'ALWAYS' if row['attidentity'] == 'a' else 'BY DEFAULT'} AS IDENTITY")
    return " ".join(parts)


async def _additions(source: asyncpg.Connection, replica: asyncpg.Connection, table: TableName, oid: int, copied: Copied) -> None:
    """Constraints and defaults. A replica works without a default or a check, so one that it can't have is only noted."""
    for row in await source.fetch(_SQL["constraints"], oid):
        statement = f"ALTER TABLE {table.sql} ADD CONSTRAINT {quoted(row['conname'])} {row['definition']}"
        if row["contype"] == "p" or (row["contype"] == "u" and table not in copied.columns):
            await replica.execute(statement)
        else:
            await _attempt(replica, statement, f"constraint {row['conname']} of {table}", copied)
    for row in await source.fetch(_SQL["columns"], oid):
        if row["expression"] and not row["attgenerated"] and copied.has(table, row["attname"]):
            statement = f"ALTER TABLE {table.sql} ALTER COLUMN {quoted(row['attname'])} SET DEFAULT {row['expression']}"
            await _attempt(replica, statement, f"default of {table}.{row['attname']}", copied)


async def _indexes(source: asyncpg.Connection, replica: asyncpg.Connection, table: TableName, oid: int, copied: Copied) -> None:
    for row in await source.fetch(_SQL["indexes"], oid):
        await _attempt(replica, row["definition"].replace(" ON ONLY ", " ON ", 1), f"index {row['name']}", copied)
    identity = await source.fetchval("SELECT relreplident::text FROM pg_class WHERE oid = $1::oid", oid)
    if identity == "f":
        await replica.execute(f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL")
    elif identity == "i":
        index = await source.fetchval(_SQL["identity_index"], oid)
        await _attempt(replica, f"ALTER TABLE {table.sql} REPLICA IDENTITY USING INDEX {quoted(index)}", f"replica identity of {table}", copied)


async def _attempt(replica: asyncpg.Connection, statement: str, what: str, copied: Copied) -> None:
    try:
        async with replica.transaction():
            await replica.execute(statement)
    except asyncpg.PostgresError as error:
        copied.left_out.append(f"{what}: {error}")


async def _types(source: asyncpg.Connection, replica: asyncpg.Connection, oid: int) -> None:
    for row in await source.fetch(_SQL["column_types"], oid):
        if await replica.fetchval(_SQL["type_exists"], row["nspname"], row["typname"]):
            continue
        if row["extname"]:
            await replica.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(row['extschema'])}")
            await replica.execute(f"CREATE EXTENSION IF NOT EXISTS {quoted(row['extname'])} SCHEMA {quoted(row['extschema'])}")
            continue
        await replica.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(row['nspname'])}")
        await replica.execute(await _type_definition(source, row))


async def _type_definition(source: asyncpg.Connection, row: asyncpg.Record) -> str:
    name = TableName(row["nspname"], row["typname"])
    if row["typtype"] == "e":
        return f"CREATE TYPE {name.sql} AS ENUM ({', '.join(literal(label) for label in row['labels'])})"
    if row["typtype"] == "d":
        default = f" DEFAULT {row['typdefault']}" if row["typdefault"] else ""
        return f"CREATE DOMAIN {name.sql} AS {row['base']}{default}{' NOT NULL' if row['typnotnull'] else ''} {' '.join(row['checks'])}"
    if row["typtype"] == "c":
        columns = [f"{quoted(column['attname'])} {column['type']}" for column in await source.fetch(_SQL["columns"], row["typrelid"])]
        return f"CREATE TYPE {name.sql} AS ({', '.join(columns)})"
    raise OperatorError(f"the type {name} has to exist on the replica, and tocsin replicate can't copy a type of its kind", "create it there by hand")


async def _sequences(source: asyncpg.Connection, replica: asyncpg.Connection, oid: int) -> None:
    for row in await source.fetch(_SQL["default_sequences"], oid):
        name = TableName(row["nspname"], row["relname"])
        await replica.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(name.schema)}")
        await replica.execute(
            f"CREATE SEQUENCE IF NOT EXISTS {name.sql} AS {row['type']} INCREMENT {row['seqincrement']} MINVALUE {row['seqmin']} MAXVALUE {row['seqmax']}"
            f" START {row['seqstart']} CACHE {row['seqcache']}{' CYCLE' if row['seqcycle'] else ''}"
        )
