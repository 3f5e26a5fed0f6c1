"""`tocsin watch`: tables whose changes become events."""

from __future__ import annotations

from typing import Annotated, Literal

import asyncpg
import typer

from tocsin.cli.source import DatabaseUrl, with_source


def command(
    tables: Annotated[list[str], typer.Argument(help="Tables, as `orders` or `sales.orders`.", metavar="TABLE…")],
    ops: Annotated[str, typer.Option(help="Which operations ring, separated by commas.")] = "insert,update,delete,truncate",
    columns: Annotated[str | None, typer.Option(help="Only these columns enter the events, separated by commas; default: all, new ones too.")] = None,
    route: Annotated[list[str] | None, typer.Option(help="Append this column's value to the subject; may be repeated.", metavar="COL")] = None,
    old: Annotated[Literal["changed", "full", "none"], typer.Option(help="What an update tells of the old row.")] = "changed",
    when: Annotated[str | None, typer.Option(help="Only rows for which this holds, new or old, as in WHERE.", metavar="SQL")] = None,
    exact_numbers: Annotated[bool, typer.Option("--exact-numbers", help="bigint and numeric values as strings, exact in any language.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Watch tables: each committed change becomes an event. On a table that is watched already, change how it is.

    Example: `tocsin watch orders --route customer_id --when "status <> 'draft'"`, then `tocsin tail 'pg.shop.change.public.orders.>'`
    """
    from rich.console import Console

    from tocsin_listener.watch import Watched, watch

    async def work(connection: asyncpg.Connection) -> list[Watched]:
        wanted = [column.strip() for column in columns.split(",")] if columns else None
        routes = [part.strip() for given in route or [] for part in given.split(",")]
        chosen = [op.strip() for op in ops.split(",") if op.strip()]
        return await watch(connection, tables, ops=chosen, columns=wanted, route=routes, old=old, when=when, exact_numbers=exact_numbers)

    console = Console(highlight=False, soft_wrap=True)
    for entry in with_source(database_url, work):
        console.print(f"watching {entry.relation}: {entry.subject}.<{' | '.join(entry.ops)}>{''.join(f'.<{column}>' for column in entry.route)}", markup=False)
        if entry.heir_of:
            console.print(
                f"[yellow]warning:[/] {entry.relation} inherits from {entry.heir_of}: what is written through {entry.heir_of} is not told here.\n"
                f"[green]fix:[/] tocsin watch {entry.heir_of}   # which tells it, in the columns that both have"
            )
        if not entry.key:
            console.print(
                f"[yellow]warning:[/] {entry.relation} has no primary key: its events have no key, so a client can't tell which row changed.\n"
                f"[green]fix:[/] ALTER TABLE {entry.relation} ADD PRIMARY KEY (…), then run this again"
            )
