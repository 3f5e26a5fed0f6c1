"""`tocsin uninstall`: leave the source database as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from tocsin.cli.source import DatabaseUrl, with_source

if TYPE_CHECKING:
    import asyncpg


def command(database_url: DatabaseUrl = None) -> None:
    """Remove the schema `tocsin` with the journal, and every trigger on watched tables. Your tables and their rows stay as they are.

    What `tocsin replicate` has set up stays while a replica may need it, and is named; `tocsin replicate --drop` removes that.

    Example: `tocsin uninstall --database-url postgresql://postgres@localhost/shop`
    """
    from tocsin_check.replication.unreplicate import replication_left
    from tocsin_listener.install import uninstall

    async def remove(connection: asyncpg.Connection) -> tuple[bool, list[str]]:
        return await uninstall(connection), await replication_left(connection)

    there, left = with_source(database_url, remove)
    console = Console(highlight=False, soft_wrap=True)
    if left:
        console.print(f"{'removed' if there else 'there was nothing to remove'}; left for the replica: {', '.join(left)}")
        console.print("remove that, too: [bold]tocsin replicate --drop[/]")
    else:
        console.print("removed; nothing of Tocsin is left in the database" if there else "there was nothing of Tocsin in the database")
