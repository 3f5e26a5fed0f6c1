"""Sets up logical replication of tables: schema, publication, subscription, initial copy. Safe to run again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.errors import OperatorError
from tocsin.sql import load_queries
from tocsin_check import sessions
from tocsin_check.replication import preflight, schema_copy, selection
from tocsin_check.replication.selection import ALL, Selection
from tocsin_check.rows.names import TableName, literal, quoted

FAILOVER_SINCE: Final = 17
NAME: Final = "tocsin"
"""The publication's and the subscription's name."""
MARKER_TABLE: Final = TableName("tocsin_check", "marker")

_SQL: Final = load_queries("tocsin_check", "sql/replication.sql")
_CATALOG: Final = load_queries("tocsin_check", "sql/catalog.sql")
_MARKER: Final = load_queries("tocsin_check", "sql/marker.sql")
_HISTORY: Final = load_queries("tocsin_check", "sql/history.sql")
_UNFINISHED: Final = load_queries("tocsin_check", "sql/unfinished.sql")
_POLL: Final = 0.1
_ERRORS_TOLERATED: Final = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """`phase` is schema, publication, slot, subscription, copy or done. In copy: rows of `table` so far, about how many there are, and which are complete."""

    phase: str
    table: str | None = None
    rows: int = 0
    estimate: int = 0
    tables_done: int = 0
    tables: int = 0
    copied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Replicated:
    """What is replicated now, what was added by this run, what was left out and why: parts of the schema, unlogged tables."""

    tables: tuple[str, ...]
    added: tuple[str, ...]
    left_out: tuple[str, ...]
    slot: str


OnProgress = Callable[[Progress], None]


async def replicate(
    *,
    source_url: str,
    replica_url: str,
    tables: Sequence[str] = (),
    source_url_from_replica: str | None = None,
    on_progress: OnProgress | None = None,
    patience: float | None = None,
    where: str | None = None,
    columns: Sequence[str] | None = None,
) -> Replicated:
    """Replicate `tables` (names as people type them; `schema.*` for all of a schema; none for every table of the database).

    `where` (a condition in SQL) and `columns` choose what of a table is replicated; they need exactly one table.

    Returns when every table's initial copy is complete. What is replicated already stays as it is. Raises OperatorError, before
    anything is changed, with all that would fail; Unavailable for a server that does not answer; TimeoutError after
    `patience` seconds, with the copy going on by itself.
    """
    report = on_progress or (lambda _progress: None)
    source = await sessions.open_builder(source_url, sessions.SOURCE_SETTING)
    try:
        replica = await sessions.open_builder(replica_url, sessions.REPLICA_SETTING)
        try:
            async with asyncio.timeout(patience):
                return await _replicate(
                    source, replica, tables, source_url_from_replica or source_url, report, Selection(where, tuple(columns) if columns is not None else None)
                )
        finally:
            await postgres.close(replica)
    finally:
        await postgres.close(source)


async def _replicate(
    source: asyncpg.Connection, replica: asyncpg.Connection, wanted: Sequence[str], address: str, report: OnProgress, selected: Selection
) -> Replicated:
    # Subscribing needs every published table on the replica, so those of earlier runs are looked after, too.
    published = [TableName(*row) for row in await source.fetch(_SQL["published"], NAME)]
    asked = await resolve(source, wanted)
    if selected and len(asked) != 1:
        raise OperatorError(
            f"--where and --columns need exactly one table; {len(asked)} are named", "tocsin replicate TABLE --where … --columns …, once for each"
        )
    selections = {asked[0]: selected} if selected else {}
    tables = list(dict.fromkeys([*asked, *(table for table in published if table != MARKER_TABLE)]))
    plan = await preflight.check(source, replica, tables, address, NAME, selections)
    report(Progress("schema", tables=len(tables)))
    for connection in (source, replica):
        await connection.execute(_MARKER["create"])
    reader = preflight.user_of(address)
    if reader is not None and not await source.fetchval(_MARKER["may_read"], reader):
        await source.execute(f"GRANT USAGE ON SCHEMA tocsin_check TO {quoted(reader)}; GRANT SELECT ON tocsin_check.marker TO {quoted(reader)}")
    await replica.execute(_HISTORY["create"])
    await replica.execute(_UNFINISHED["create"])
    listed = await selection.published_columns(source, NAME) | {table: chosen.columns for table, chosen in selections.items() if chosen.columns is not None}
    copied = await schema_copy.copy_tables(source, replica, tables, listed)
    report(Progress("publication", tables=len(tables)))
    await _publish(source, [MARKER_TABLE, *tables], plan, selections)
    if plan.has_subscription:
        # The source may have moved; the worker goes on undisturbed where the address is the same.
        await replica.execute(f"ALTER SUBSCRIPTION {quoted(NAME)} CONNECTION {literal(address)}")
        await replica.execute(f"ALTER SUBSCRIPTION {quoted(NAME)} REFRESH PUBLICATION")
    else:
        await _make_slot(source, plan.slot, report, len(tables))
        report(Progress("subscription", tables=len(tables)))
        await replica.execute(
            f"CREATE SUBSCRIPTION {quoted(NAME)} CONNECTION {literal(address)} PUBLICATION {quoted(NAME)}"
            f" WITH (create_slot = false, slot_name = {literal(plan.slot)}, copy_data = true{', failover = true' if _fails_over(source, replica) else ''})"
        )
    await _until_copied(source, replica, report)
    report(Progress("done", tables_done=len(tables), tables=len(tables)))
    unlogged = [f"{table}: it is unlogged, so its changes leave no trace" for table in await _unlogged(source, wanted)]
    return Replicated(tuple(map(str, tables)), tuple(map(str, plan.new)), (*copied.left_out, *unlogged), plan.slot)


async def _unlogged(source: asyncpg.Connection, wanted: Sequence[str]) -> list[TableName]:
    """What is no part of "every table" though people may think so."""
    schemas = [text[:-2] for text in wanted if text.endswith(".*")] if wanted else [None]
    return [TableName(*row) for schema in schemas for row in await source.fetch(_CATALOG["unlogged_tables"], schema)]


async def resolve(source: asyncpg.Connection, wanted: Sequence[str]) -> list[TableName]:
    """Names as people type them to tables of the source, each once, in the order given. Raises OperatorError."""
    if not wanted:
        found = [TableName(*row) for row in await source.fetch(_CATALOG["user_tables"], None)]
        if not found:
            raise OperatorError("the source has no tables to replicate", "create one, or name the right database in TOCSIN_DATABASE_URL")
        return found
    found = []
    for text in wanted:
        if text.endswith(".*"):
            rows = await source.fetch(_CATALOG["user_tables"], text[:-2])
            if not rows:
                raise OperatorError(f"the source has no tables in a schema {text[:-2]!r}", "correct the schema's name")
            found += [TableName(*row) for row in rows]
        else:
            found.append(await _resolve_one(source, text))
    return list(dict.fromkeys(found))


async def _resolve_one(source: asyncpg.Connection, text: str) -> TableName:
    """By the database's own search path and quoting first; then as a plain schema.table, for names that would need quotes."""
    try:
        async with source.transaction():
            await source.execute("SELECT set_config('search_path', reset_val, true) FROM pg_settings WHERE name = 'search_path'")
            row = await source.fetchrow(_CATALOG["find_by_search_path"], text)
    except (asyncpg.InvalidNameError, asyncpg.PostgresSyntaxError, asyncpg.FeatureNotSupportedError):
        row = None
    if row is not None:
        return TableName(*row)
    schema, dot, name = text.partition(".")
    return TableName(schema, name) if dot else TableName("public", text)


async def _publish(source: asyncpg.Connection, tables: list[TableName], plan: preflight.Plan, selections: Mapping[TableName, Selection]) -> None:
    if not plan.has_publication:
        listed = ", ".join(selections.get(table, ALL).sql(table) for table in tables)
        await source.execute(f"CREATE PUBLICATION {quoted(NAME)} FOR TABLE {listed} WITH (publish_via_partition_root = true)")
        return
    missing = [selections.get(table, ALL).sql(table) for table in tables if table not in plan.published]
    if missing:
        await source.execute(f"ALTER PUBLICATION {quoted(NAME)} ADD TABLE {', '.join(missing)}")


async def _make_slot(source: asyncpg.Connection, slot: str, report: OnProgress, tables: int) -> None:
    """Made by the source itself, before the subscription: CREATE SUBSCRIPTION would wait for its own transaction on one server."""
    left = await source.fetchrow(_SQL["slot"], slot)
    if left is not None and left["active"]:
        raise OperatorError(
            f"the replication slot {slot} is in use, though the replica has no subscription {NAME!r}",
            "another replica seems to use it; end that one, or drop the slot: SELECT pg_drop_replication_slot('" + slot + "');",
        )
    if left is not None:
        # An earlier run left it behind; it stands at a place from before the publication was as it is.
        await source.execute("SELECT pg_drop_replication_slot($1)", slot)
    waiting_for = await source.fetchrow(_SQL["open_transactions"])
    note = (
        f"waiting for process {waiting_for['pid']} ({waiting_for['application']}), whose transaction is open for {waiting_for['seconds']} s"
        if waiting_for
        else None
    )
    report(Progress("slot", table=note, tables=tables))
    options = ", failover => true" if _fails_over(source) else ""
    await source.execute(f"SELECT pg_create_logical_replication_slot($1, 'pgoutput'{options})", slot)


def _fails_over(*connections: asyncpg.Connection) -> bool:
    """Whether all know slots that a physical standby may keep in step, so that the replica goes on after a failover. It costs nothing where there is none."""
    return all(connection.get_server_version().major >= FAILOVER_SINCE for connection in connections)


async def _until_copied(source: asyncpg.Connection, replica: asyncpg.Connection, report: OnProgress) -> None:
    errors_at_start = await _sync_errors(replica)
    estimates: dict[TableName, int] = {}
    started = time.monotonic()
    while True:
        states = {TableName(row["nspname"], row["relname"]): row["state"] for row in await replica.fetch(_SQL["subscribed_by"]) if row["subname"] == NAME}
        open_ = [table for table, state in states.items() if state != "r"]
        if not open_:
            return
        rows = {row["oid"]: row["tuples_processed"] for row in await replica.fetch(_SQL["copy_progress"])}
        for table in open_:
            if table not in estimates:
                estimates[table] = max(0, await source.fetchval("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass($1)", table.sql) or 0)
            oid = await replica.fetchval("SELECT to_regclass($1)::oid", table.sql)
            copied = frozenset(str(name) for name, state in states.items() if state == "r")
            report(Progress("copy", str(table), rows.get(oid, 0), estimates[table], len(copied), len(states), copied))
        errors = await _sync_errors(replica) - errors_at_start
        if errors > _ERRORS_TOLERATED:
            raise OperatorError(
                f"the initial copy failed {errors} times in {time.monotonic() - started:.0f} s and goes on failing; not complete: {', '.join(map(str, open_))}",
                "the replica's server log says why (a constraint, a trigger, the disk); mend it, and the copy goes on by itself",
            )
        await asyncio.sleep(_POLL)


async def _sync_errors(replica: asyncpg.Connection) -> int:
    if replica.get_server_version().major < 15:
        return 0
    row = await replica.fetchrow(_SQL["subscription_errors"], NAME)
    return row["apply_error_count"] + row["sync_error_count"] if row else 0
