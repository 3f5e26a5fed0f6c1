"""`tocsin unwatch`: tables fall silent."""

from __future__ import annotations

from typing import Annotated

import asyncpg
import typer
from rich.console import Console

from tocsin.cli.source import DatabaseUrl, with_source


def command(
    tables: Annotated[list[str], typer.Argument(help="Tables, as `orders` or `sales.orders`.", metavar="TABLE…")],
    database_url: DatabaseUrl = None,
) -> None:
    """Stop watching tables: their triggers are removed. What was written before still becomes events.

    Example: `tocsin unwatch orders`
    """
    from tocsin_listener.watch import unwatch

    async def work(connection: asyncpg.Connection) -> list[str]:
        return await unwatch(connection, tables)

    for name in with_source(database_url, work):
        Console(highlight=False, soft_wrap=True).print(f"no longer watching {name}", markup=False)
