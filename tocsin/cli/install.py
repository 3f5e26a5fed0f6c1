"""`tocsin install`: what Tocsin keeps in the source database."""

from __future__ import annotations

from typing import Annotated

import asyncpg
import typer

from tocsin.cli.source import DatabaseUrl, with_source


def command(
    database_url: DatabaseUrl = None,
    max_event: Annotated[str | None, typer.Option(help="The largest event, such as 900KiB; larger ones carry their key only (TOCSIN_MAX_EVENT).")] = None,
) -> None:
    """Create the schema `tocsin` in the source database, or bring it up to date. Nothing else is touched, and it may be repeated.

    Example: `tocsin install --database-url postgresql://postgres@localhost/shop`, then `tocsin watch orders`
    """
    from rich.console import Console

    from tocsin.settings import load_settings
    from tocsin_listener.install import install

    size = int(load_settings(max_event=max_event).max_event)

    async def work(connection: asyncpg.Connection) -> bool:
        return await install(connection, max_event=size)

    new = with_source(database_url, work)
    Console().print("installed; now watch a table: [bold]tocsin watch TABLE[/]" if new else "up to date")
