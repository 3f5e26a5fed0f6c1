"""`tocsin uninstall`: leave the source database as it was."""

from __future__ import annotations

from rich.console import Console

from tocsin.cli.source import DatabaseUrl, with_source


def command(database_url: DatabaseUrl = None) -> None:
    """Remove the schema `tocsin` with the journal, and every trigger on watched tables. Your tables and their rows stay as they are.

    Example: `tocsin uninstall --database-url postgresql://postgres@localhost/shop`
    """
    from tocsin_listener.install import uninstall

    there = with_source(database_url, uninstall)
    Console().print("removed; nothing of Tocsin is left in the database" if there else "there was nothing of Tocsin in the database")
