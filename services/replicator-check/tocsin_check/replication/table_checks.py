"""What would make the replication of one table fail: on the source, and in the table that the replica has already."""

from __future__ import annotations

import re
from typing import Any, Final

import asyncpg

from tocsin.sql import load_queries
from tocsin_check.replication.problems import Problems
from tocsin_check.replication.selection import Selection
from tocsin_check.rows.names import TableName, quoted

_SQL: Final = load_queries("tocsin_check", "sql/replication.sql")
_CATALOG: Final = load_queries("tocsin_check", "sql/catalog.sql")
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
_WIDENS: Final = {
    "smallint": {"integer", "bigint", "numeric"},
    "integer": {"bigint", "numeric"},
    "bigint": {"numeric"},
    "real": {"double precision"},
    "date": {"timestamp without time zone", "timestamp with time zone"},
}
"""Of which types every value, as text, is one of which others. Text takes all."""
_MODIFIER: Final = re.compile(r"\((\d+)[^)]*\)")


async def check_source(source: asyncpg.Connection, table: TableName, reader: str, selected: Selection, problems: Problems) -> None:
    """Whether the source can publish it, and `reader`, as whom the replica dials, may read all of it."""
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
    if row is not None:
        await _check_reader(source, table, row["oid"], reader, selected, problems)


async def _check_reader(source: asyncpg.Connection, table: TableName, oid: int, reader: str, selected: Selection, problems: Problems) -> None:
    row = await source.fetchrow(_SQL["may_copy"], oid, selected.columns, reader)
    if row is None:
        return  # no such role: said by whoever asks whether it may replicate
    if not row["may_enter"]:
        problems.add(
            f"the user {reader} may not use the schema {table.schema} of {table}", f"GRANT USAGE ON SCHEMA {quoted(table.schema)} TO {quoted(reader)};"
        )
    if row["hidden"]:
        problems.add(
            f"the user {reader} may not read {', '.join(row['hidden'])} of {table}, so the initial copy would fail",
            f"GRANT SELECT ON {table.sql} TO {quoted(reader)};",
        )
    elif row["filtered"]:
        problems.add(
            f"row security on {table} hides rows from the user {reader}, so the initial copy would leave them out",
            f"run on the source as a superuser: ALTER ROLE {quoted(reader)} BYPASSRLS;",
        )


def _has_identity(row: Any) -> bool:
    identity = row["relreplident"]
    return bool(identity == "f" or (identity == "d" and row["has_primary_key"]) or (identity == "i" and row["has_identity_index"]))


async def check_replica(source: asyncpg.Connection, replica: asyncpg.Connection, table: TableName, selected: Selection, problems: Problems) -> None:
    """A table that the replica already has must take the rows: every column there, and nothing in it."""
    theirs = await replica.fetchrow(_CATALOG["resolve_table"], *table)
    ours = await source.fetchrow(_CATALOG["resolve_table"], *table)
    if theirs is None or ours is None:
        return
    if theirs["relkind"] not in "rp":
        problems.add(f"{table} is {_KINDS.get(theirs['relkind'], 'not a table')} on the replica", "rename it there; a table has to take its place")
        return
    there = {row["attname"]: row["type"] for row in await replica.fetch(_CATALOG["columns"], theirs["oid"])}
    columns = {row["attname"]: row["type"] for row in await source.fetch(_CATALOG["columns"], ours["oid"]) if not row["attgenerated"]}
    wanted = [name for name in columns if selected.columns is None or name in selected.columns]
    missing = [name for name in wanted if name not in there]
    required = [row["attname"] for row in await replica.fetch(_SQL["required_columns"], theirs["oid"]) if row["attname"] not in wanted]
    if required:
        problems.add(
            f"{table} on the replica demands a value for {', '.join(required)}, which is not replicated",
            f"ALTER TABLE {table.sql} ALTER COLUMN {quoted(required[0])} DROP NOT NULL; on the replica, or give it a default",
        )
    for name in wanted:
        if name in there and not _takes(columns[name], there[name]):
            problems.add(
                f"{table}.{name} is {columns[name]} on the source and {there[name]} on the replica, which does not take every value",
                f"run on the replica: ALTER TABLE {table.sql} ALTER COLUMN {quoted(name)} TYPE {columns[name]}; or drop the table there to have it copied",
            )
    if missing:
        problems.add(
            f"{table} on the replica lacks {', '.join(missing)}",
            f"ALTER TABLE {table.sql} ADD COLUMN … on the replica, or drop the table there to have it copied",
        )
    elif await replica.fetchval(f"SELECT EXISTS (SELECT FROM {table.sql})"):
        problems.add(f"{table} on the replica already has rows, which the initial copy would meet", f"run on the replica: TRUNCATE {table.sql};")


def _takes(ours: str, theirs: str) -> bool:
    """Whether a column of the replica's type takes every value of the source's."""
    if theirs in (ours, "text", "character varying"):
        return True
    kind, length = _MODIFIER.sub("", ours), _MODIFIER.search(theirs)
    if length is None:
        return theirs == kind or theirs in _WIDENS.get(kind, set())
    shorter = _MODIFIER.search(ours)
    return kind == "character varying" == _MODIFIER.sub("", theirs) and shorter is not None and int(shorter[1]) <= int(length[1])
