"""Which rows and columns of a table go to the replica, and what PostgreSQL would object to, tried before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg

from tocsin.sql import load_queries
from tocsin_check.rows.names import TableName, quoted

if TYPE_CHECKING:
    from tocsin_check.replication.problems import Problems

_SQL: Final = load_queries("tocsin_check", "sql/replication.sql")
FILTERS_SINCE: Final = 15
_PROBE: Final = "tocsin_probe"


@dataclass(frozen=True, slots=True)
class Selection:
    """`where` is a condition in SQL, `columns` the names; None of either means all."""

    where: str | None = None
    columns: tuple[str, ...] | None = None

    def __bool__(self) -> bool:
        return self.where is not None or self.columns is not None

    def sql(self, table: TableName) -> str:
        """The table as CREATE and ALTER PUBLICATION take it."""
        listed = f" ({', '.join(map(quoted, self.columns))})" if self.columns is not None else ""
        return f"{table.sql}{listed}{f' WHERE ({self.where})' if self.where is not None else ''}"


ALL: Final = Selection()


async def published_columns(source: asyncpg.Connection, publication: str) -> dict[TableName, tuple[str, ...]]:
    """The tables that are published with a list of columns, and the list."""
    if source.get_server_version().major < FILTERS_SINCE:
        return {}
    return {TableName(row["nspname"], row["relname"]): tuple(row["columns"]) for row in await source.fetch(_SQL["column_lists"], publication)}


async def check(
    source: asyncpg.Connection, selections: Mapping[TableName, Selection], published: Sequence[TableName], publication: str, problems: Problems
) -> None:
    """Adds what PostgreSQL would refuse, now or at the first UPDATE."""
    for table, selection in selections.items():
        if not selection:
            continue
        if source.get_server_version().major < FILTERS_SINCE:
            problems.add(f"{table}: row filters and column lists need PostgreSQL 15 on the source", "leave out --where and --columns, or upgrade the source")
        else:
            await _check_one(source, table, selection, table in published, publication, problems)


async def _check_one(source: asyncpg.Connection, table: TableName, selection: Selection, published: bool, publication: str, problems: Problems) -> None:
    """By a publication that is rolled back: PostgreSQL itself parses the condition, and records the columns that it reads."""
    if await source.fetchval("SELECT to_regclass($1)", table.sql) is None:
        return  # said by whoever looks at the tables
    transaction = source.transaction()
    await transaction.start()
    try:
        # Prepared, so that it is one statement and no more.
        await source.fetch(f"CREATE PUBLICATION {_PROBE} FOR TABLE {selection.sql(table)}")
        row = await source.fetchrow(_SQL["selection_facts"], _PROBE, publication, *table)
    except asyncpg.PostgresError as error:
        what = "--where " + repr(selection.where) if selection.where is not None else "--columns " + ",".join(selection.columns or ())
        problems.add(
            f"{table}: PostgreSQL refuses {what}: {error}", "correct it; a condition may use the table's columns, constants and immutable built-in functions"
        )
        return
    finally:
        await transaction.rollback()
    if row is None:
        return
    if row["tables"] > 1:
        problems.add(f"{table}: --where {selection.where!r} names more than one table", "give a condition on the table's own columns")
    if published and not row["unchanged"]:
        problems.add(
            f"{table} is replicated already, with other rows or columns than asked for now",
            f"tocsin replicate --drop --with-data {table}, and then as now",
        )
    if lacking := sorted(set(row["filtered_by"]) - set(row["identity"])):
        problems.add(
            f"{table}: --where reads {', '.join(lacking)}, which the replica identity lacks, so the source would refuse every UPDATE and DELETE of the table",
            f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL; or filter by the primary key",
        )
    if selection.columns is not None and (lacking := sorted(set(row["identity"]) - set(selection.columns))):
        problems.add(
            f"{table}: --columns leaves out {', '.join(lacking)}, which the replica identity needs",
            f"--columns {','.join([*selection.columns, *lacking])}",
        )
