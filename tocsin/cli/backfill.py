"""`tocsin backfill`: the present rows of a table as events."""

from __future__ import annotations

from typing import Annotated

import asyncpg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tocsin.cli.source import DatabaseUrl, with_source


def command(
    table: Annotated[str, typer.Argument(help="A watched table, as `orders` or `sales.orders`.")],
    rate: Annotated[float, typer.Option(min=1, help="At most so many rows a second.")] = 5000.0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, though an unfinished backfill could go on.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Emit every present row of a watched table as an event of op `read`, in its right place among the live changes.

    After Ctrl-C, the same command goes on where it stopped. Example: `tocsin backfill orders --rate 2000`
    """
    from tocsin_listener.backfill import Done, backfill

    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(table, total=None)

        async def work(connection: asyncpg.Connection) -> Done:
            return await backfill(
                connection, table, rate=rate, restart=restart, on_progress=lambda done: bar.update(task, completed=done.rows, total=done.total)
            )

        done = with_source(database_url, work)
    console.print(f"{table}: {done.rows} rows read, {done.written} events written in this run", markup=False)
