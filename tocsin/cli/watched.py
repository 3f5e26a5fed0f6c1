"""`tocsin watched`: which tables ring, and how."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from tocsin.cli.source import DatabaseUrl, with_source


def command(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List the watched tables.

    Example: `tocsin watched --json`
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tocsin_listener.watch import watched

    entries = with_source(database_url, watched)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(entries)))
        return
    console = Console()
    if not entries:
        console.print("no table is watched yet: [bold]tocsin watch TABLE[/]")
        return
    table = Table("table", "subject", "ops", "columns", "route", "old", "when", "numbers", "key")
    for e in entries:
        cells = (e.relation, e.subject, " ".join(e.ops), " ".join(e.columns or ["all"]), " ".join(e.route) or "-", e.old, e.when or "-")
        table.add_row(*map(Text, cells), "exact" if e.exact_numbers else "JSON", Text(" ".join(e.key)) if e.key else Text("none", style="yellow"))
    console.print(table)
