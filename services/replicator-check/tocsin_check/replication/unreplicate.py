"""Takes replication down again: the subscription, its slot, the publication, the checker's own schema. Rows stay unless told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.errors import OperatorError, Unavailable
from tocsin.sql import load_queries
from tocsin_check import sessions
from tocsin_check.replication import preflight
from tocsin_check.replication.replicate import MARKER_TABLE, NAME, resolve
from tocsin_check.rows.names import TableName, quoted

_SQL: Final = load_queries("tocsin_check", "sql/replication.sql")
_SLOT_PATIENCE: Final = 20.0


@dataclass(slots=True)
class Dropped:
    """`done` says what was removed, `left` what was not, and why; in the order in which it was done."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


async def unreplicate(*, source_url: str, replica_url: str, tables: Sequence[str] = (), with_data: bool = False) -> Dropped:
    """Stop replicating `tables`, or, without any, everything that tocsin replicate has set up.

    `with_data` also drops the tables on the replica. A source that does not answer keeps its part, which is told. Running it
    again finishes what is left. Raises OperatorError, Unavailable (the replica).
    """
    dropped = Dropped()
    replica = await sessions.open_builder(replica_url, sessions.REPLICA_SETTING)
    try:
        try:
            source = await sessions.open_builder(source_url, sessions.SOURCE_SETTING)
        except Unavailable as error:
            if tables:
                raise
            await _everything(None, replica, dropped, with_data=with_data)
            dropped.left.append(
                f"the publication and the slot on the source, which does not answer ({error}); run this again when it does, or its WAL piles up"
            )
            return dropped
        try:
            if tables:
                await _some(source, replica, tables, dropped, with_data=with_data)
            else:
                await _everything(source, replica, dropped, with_data=with_data)
        finally:
            await postgres.close(source)
    finally:
        await postgres.close(replica)
    return dropped


async def _some(source: asyncpg.Connection, replica: asyncpg.Connection, wanted: Sequence[str], dropped: Dropped, *, with_data: bool) -> None:
    published = {TableName(*row) for row in await source.fetch(_SQL["published"], NAME)} - {MARKER_TABLE}
    tables = await resolve(source, wanted)
    if unknown := [str(table) for table in tables if table not in published]:
        known = ", ".join(sorted(map(str, published))) or "none"
        raise OperatorError(f"{', '.join(unknown)} is not replicated by Tocsin; there are: {known}", "name those, or none to drop all of it")
    await source.execute(f"ALTER PUBLICATION {quoted(NAME)} DROP TABLE {', '.join(table.sql for table in tables)}")
    dropped.done += [f"{table} from the publication {NAME}" for table in tables]
    if await replica.fetchrow(_SQL["subscription"], NAME) is not None:
        await replica.execute(f"ALTER SUBSCRIPTION {quoted(NAME)} REFRESH PUBLICATION")
        dropped.done += [f"{table} from the subscription {NAME}; its rows stay" for table in tables if not with_data]
    if with_data:
        await _drop_tables(replica, tables, dropped)


async def _everything(source: asyncpg.Connection | None, replica: asyncpg.Connection, dropped: Dropped, *, with_data: bool) -> None:
    slot = await _drop_subscription(source, replica, dropped, with_data=with_data)
    if source is not None:
        await _drop_publication(source, slot, dropped)
    if await _drop_schema(replica):
        dropped.done.append("the schema tocsin_check on the replica")


async def _drop_subscription(source: asyncpg.Connection | None, replica: asyncpg.Connection, dropped: Dropped, *, with_data: bool) -> str:
    """The name of its slot, which is dropped, too, where the source answers."""
    subscription = await replica.fetchrow(_SQL["subscription"], NAME)
    if subscription is None:
        # An earlier run may have come only half way.
        slot = await preflight.slot_of(replica)
        if source is not None:
            await _drop_slot(source, slot, dropped)
        return slot
    fed = [TableName(row["nspname"], row["relname"]) for row in await replica.fetch(_SQL["subscribed_by"]) if row["subname"] == NAME]
    # The replica's own way would dial the source from there; like this it ends even where that can't work any more.
    for clause in ("DISABLE", "SET (slot_name = NONE)"):
        await replica.execute(f"ALTER SUBSCRIPTION {quoted(NAME)} {clause}")
    await replica.execute(f"DROP SUBSCRIPTION {quoted(NAME)}")
    dropped.done.append(f"the subscription {NAME} on the replica")
    if source is not None:
        halves = [row["slot_name"] for row in await source.fetch(_SQL["sync_slots"], str(subscription["oid"]))]
        for slot in [subscription["subslotname"], *halves]:
            if slot is not None:
                await _drop_slot(source, slot, dropped)
    if with_data:
        await _drop_tables(replica, [table for table in fed if table != MARKER_TABLE], dropped)
    return str(subscription["subslotname"])


async def _drop_slot(source: asyncpg.Connection, slot: str, dropped: Dropped) -> None:
    try:
        async with asyncio.timeout(_SLOT_PATIENCE):
            while (row := await source.fetchrow(_SQL["slot"], slot)) is not None:
                if not row["active"]:
                    try:
                        await source.execute("SELECT pg_drop_replication_slot($1)", slot)
                    except asyncpg.ObjectInUseError:
                        continue
                    dropped.done.append(f"the slot {slot} on the source")
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        dropped.left.append(f"the slot {slot} on the source is still in use; run this again, or: SELECT pg_drop_replication_slot('{slot}');")


async def _drop_publication(source: asyncpg.Connection, slot: str, dropped: Dropped) -> None:
    """Other replicas may read the same publication; then it stays with the markers."""
    others = [row["slot_name"] for row in await source.fetch(_SQL["other_slots"], slot)]
    if others:
        dropped.left.append(f"the publication {NAME} and the schema tocsin_check on the source, for another replica: slot {', '.join(others)}")
        return
    if await source.fetchrow(_SQL["publication"], NAME) is not None:
        await source.execute(f"DROP PUBLICATION {quoted(NAME)}")
        dropped.done.append(f"the publication {NAME} on the source")
    if await _drop_schema(source):
        dropped.done.append("the schema tocsin_check on the source")


async def _drop_schema(connection: asyncpg.Connection) -> bool:
    if not await connection.fetchval("SELECT to_regnamespace('tocsin_check') IS NOT NULL"):
        return False
    await connection.execute("SET client_min_messages = warning; DROP SCHEMA tocsin_check CASCADE")
    return True


async def _drop_tables(replica: asyncpg.Connection, tables: Sequence[TableName], dropped: Dropped) -> None:
    for table in tables:
        try:
            await replica.execute(f"DROP TABLE IF EXISTS {table.sql}")
        except asyncpg.DependentObjectsStillExistError as error:
            dropped.left.append(f"{table} on the replica: {error}")
        else:
            dropped.done.append(f"{table} on the replica, with its rows")


async def replication_left(source: asyncpg.Connection) -> list[str]:
    """What tocsin replicate made in a source database and is still there, in words; empty where nothing is."""
    row = await source.fetchrow(_SQL["leftovers"], NAME)
    assert row is not None
    named = [f"the publication {NAME}"] * row["publication"] + ["the schema tocsin_check"] * row["markers"]
    return [*named, *(f"the replication slot {slot}" for slot in row["slots"])]
