"""`tocsin why`: where the events of a table are, and what they wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Final

import asyncpg
import typer

from tocsin.cli.doctor import show
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.cli.source import DatabaseUrl, with_source
from tocsin.sql import load_queries

_SQL: Final = load_queries("tocsin", "cli/examine/why.sql")


def command(
    table: Annotated[str, typer.Argument(help="A table as `orders` or `sales.orders`.")],
    key: Annotated[str | None, typer.Argument(help="One row's key, as the event's `subject` has it.")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Say why no event of a table, or of one row, arrived: not watched, left out, not committed, not yet sent, or refused.

    Example: `tocsin why orders 42`
    """

    async def work(connection: asyncpg.Connection) -> list[Finding]:
        return [finding async for finding in explain(connection, table, key)]

    found = with_source(database_url, work)
    show(found)
    raise typer.Exit(0 if all(finding.ok for finding in found) else 1)


async def explain(connection: asyncpg.Connection, table: str, key: str | None) -> AsyncIterator[Finding]:
    """From the writer to the stream, in the order in which an event goes. Raises OperatorError where Tocsin is not installed."""
    from tocsin_listener.install import require_installed
    from tocsin_listener.leader import LOCK

    await require_installed(connection)
    what = table if key is None else f"{table} {key}"
    watch = await connection.fetchrow(_SQL["watch"], table)
    if watch is None:
        there = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
        if there:
            yield bad(what, f"{table} is not watched", f"tocsin watch {table}")
        else:
            yield bad(what, f"there is no table {table} in this database", "name its schema, as in sales.orders; the database is TOCSIN_DATABASE_URL's")
        return
    condition = f", of rows for which {watch['condition']}" if watch["condition"] else ""
    yield good(what, f"watched: {', '.join(watch['ops'])}{condition}")
    for writer in await connection.fetch(_SQL["writers"], table):
        age = f"for {writer['age']:.0f} s" if writer["age"] is not None else "and is prepared"
        end = (
            f"commit it, or: SELECT pg_terminate_backend({writer['pid']});" if writer["pid"] else "COMMIT PREPARED, or ROLLBACK PREPARED; see pg_prepared_xacts"
        )
        yield bad(what, f"a transaction that wrote it is open {age} (pid {writer['pid']}): its events come with its commit", end)
    last = await connection.fetchrow(_SQL["last"], watch["root"], key)
    if last is None:
        fix = "commit a change that the watch lets through; `tocsin doctor` says whether its triggers fire"
        yield bad(what, "the journal has no event of it, at least none that it still keeps", fix)
        return
    told = f"the last event in the journal is {last['seq']} ({last['type']}, {last['age']:.0f} s ago, txid {last['xid']})"
    if last["refused"] is not None:
        yield bad(what, f"{told}; NATS refused it: {last['refused']}", f"mend that, then: tocsin retry {last['seq']}")
    elif last["passed"]:
        yield good(what, f"{told}; it was given to the stream")
    elif await connection.fetchval(_SQL["leader"], LOCK) is None:
        yield bad(what, f"{told}; no listener leads, so nobody sends it", "tocsin listener")
    else:
        yield bad(what, f"{told}; the listener has not sent it yet", "see why in its log, and whether NATS takes messages: tocsin doctor")
