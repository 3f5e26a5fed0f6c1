"""Capture: installed, every watch's triggers in force, nothing in the writers' way, and the user's grants."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.errors import OperatorError, TocsinError
from tocsin.sql import load_queries

PART: Final = "source"
_SQL: Final = load_queries("tocsin.cli.examine", "capture.sql")


async def examine(connection: asyncpg.Connection) -> AsyncIterator[Finding]:
    from tocsin_listener.install import require_installed, require_own_journal

    try:
        await require_installed(connection)
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):  # the grants are looked at below
            await require_own_journal(connection)
    except OperatorError as error:
        yield bad(PART, str(error), error.fix)
        return
    except TocsinError as error:
        yield bad(PART, str(error), "tocsin install")
        return
    yield good(PART, "the schema tocsin is installed, of this version")
    if not await connection.fetchval(_SQL["everybody"]):
        fix = "GRANT USAGE ON SCHEMA tocsin TO PUBLIC; GRANT USAGE ON SEQUENCE tocsin.seq TO PUBLIC;"
        yield bad(PART, "writers may not draw a statement's number: their statements on watched tables fail", fix)
    if await connection.fetchval(_SQL["is_installer"]):
        async for finding in _watches(connection):
            yield finding
    else:
        yield await _grants(connection)
    for trigger in await connection.fetch(_SQL["event_triggers"]):
        yield _event_trigger(trigger)
    if refused := await connection.fetchval(_SQL["lost_to_quarantine"]):
        yield bad(PART, f"NATS refused {refused} events for good; they are in tocsin.quarantine", "mend what `tocsin retry --list` names, then: tocsin retry")


async def _grants(connection: asyncpg.Connection) -> Finding:
    """For a user that is not the installer: what the listener needs."""
    user = await connection.fetchval("SELECT quote_ident(current_user)")
    missing = [row["grants"] for row in await connection.fetch(_SQL["missing_grants"])]
    if missing:
        return bad(
            PART,
            f"the user {user} lacks rights that the listener needs: {'; '.join(missing)}",
            " ".join(f"GRANT {grant} TO {user};" for grant in missing) + "   # or run deploy/postgres/listener.sql again",
        )
    return good(PART, f"the user {user} has the listener's rights; what is watched is shown to who installed Tocsin")


def _event_trigger(trigger: asyncpg.Record) -> Finding:
    name = trigger["name"]
    if trigger["enabled"] is None and not trigger["could"]:
        return good(PART, f"no event trigger {name}, which only a superuser may make: the listener looks every second for tables that changed their shape")
    if trigger["enabled"] is None:
        return bad(PART, f"the event trigger {name} is missing: a table that changes its shape is noticed late", "tocsin install")
    if trigger["enabled"] in ("D", "R"):
        return bad(PART, f"the event trigger {name} is disabled: a table that changes its shape is noticed late", f"ALTER EVENT TRIGGER {name} ENABLE;")
    return good(PART, f"the event trigger {name} notices when a watched table changes its shape")


async def _watches(connection: asyncpg.Connection) -> AsyncIterator[Finding]:
    watched = await connection.fetch(_SQL["watched"])
    if not watched:
        yield bad(PART, "no table is watched", "tocsin watch TABLE")
    for watch in watched:
        yield await _watch(connection, watch)


async def _watch(connection: asyncpg.Connection, watch: asyncpg.Record) -> Finding:
    if watch["table"] is None:
        return bad(PART, f"a watched table is gone (it had the oid {watch['oid']})", f"SELECT tocsin.forget({watch['id']});")
    name = f"{watch['schema']}.{watch['table']}"
    if (found := _bypassed(watch, name) or await triggers(connection, watch["oid"], watch["ops"], watch["id"], name)) is not None:
        return found
    if watch["trouble"] is not None:
        fix = f"tocsin watch {watch['shown']} --when …   # a condition on the columns that the table has now"
        return bad(PART, f"{name}: only keys are told, since its condition ({watch['condition']}) can't be judged: {watch['trouble']}", fix)
    if watch["changed"]:
        return bad(PART, f"{name} has changed its shape since it was watched", "tocsin install   # it makes every watch's functions anew")
    keyless = "; it has no key, so a client can't tell which row changed" if watch["keyless"] else ""
    heir = f"; what is written through {watch['root']}, which it inherits from, is not told here" if watch["root"] else ""
    return good(PART, f"{name} is watched: {', '.join(watch['ops'])}{keyless}{heir}")


def _bypassed(watch: asyncpg.Record, name: str) -> Finding | None:
    """What writes the table without a statement on it that fires its triggers."""
    shown, root = watch["shown"], watch["root"]
    if watch["far"]:
        fix = f"detach them (ALTER TABLE … DETACH PARTITION, or NO INHERIT): {watch['far']}"
        return bad(PART, f"{name}: what is written through it is not told while foreign tables are below it, to which PostgreSQL could not write then", fix)
    if watch["is_partition"]:
        return bad(PART, f"{name} is a partition of {root}: what is written through {root} is not told", f"tocsin unwatch {shown}; tocsin watch {root}")
    if watch["subscriptions"]:
        fix = f"watch it where it is written first: tocsin watch {shown}, with the database that publishes it as TOCSIN_DATABASE_URL"
        return bad(PART, f"{name} is written by a subscription ({watch['subscriptions']}), for which PostgreSQL fires no such triggers: that is not told", fix)
    return None


async def triggers(connection: asyncpg.Connection, oid: int, ops: list[str], watch: int, name: str) -> Finding | None:
    """What of the triggers of the table and everything below it is missing or silent."""
    rows = await connection.fetch(_SQL["triggers"], oid, ops, watch)
    missing = [row for row in rows if row["trigger"] is None]
    silent = [row for row in rows if row["enabled"] in ("D", "R")]
    if missing:
        where = ", ".join(sorted({f"{row['op']} on {row['member']}" for row in missing}))
        return bad(PART, f"{name} is watched, but has no trigger for {where}", "tocsin install   # it makes every watch's triggers anew")
    if silent:
        fix = "; ".join(f'ALTER TABLE {row["member"]} ENABLE TRIGGER "{row["trigger"]}"' for row in silent)
        return bad(PART, f"{name}: triggers that don't fire: {', '.join(row['op'] for row in silent)}", f"{fix};")
    return None
