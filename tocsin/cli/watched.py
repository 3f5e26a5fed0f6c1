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
    from rich.table import Column, Table
    from rich.text import Text

    from tocsin_listener.watch import OPS, watched

    entries = with_source(database_url, watched)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(entries)))
        return
    console = Console()
    if not entries:
        console.print("no table is watched yet: [bold]tocsin watch TABLE[/]")
        return
    table = Table(*(Column(name, no_wrap=True, overflow="fold") for name in ("table", "subject")), box=None, header_style="dim")
    said = {
        "ops": ["all" if set(e.ops) == set(OPS) else " ".join(e.ops) for e in entries],
        "columns": [" ".join(e.columns or ["all"]) for e in entries],
        "route": [" ".join(e.route) or "-" for e in entries],
        "old": [e.old for e in entries],
        "when": [e.when or "-" for e in entries],
        "numbers": ["exact" if e.exact_numbers else "JSON" for e in entries],
        "key": [" ".join(e.key) or "none" for e in entries],
    }
    usual = {"columns": {"all"}, "route": {"-"}, "when": {"-"}, "numbers": {"JSON"}}
    shown = {name: cells for name, cells in said.items() if set(cells) != usual.get(name)}
    for name in shown:
        table.add_column(name, overflow="fold")
    for number, e in enumerate(entries):
        table.add_row(Text(e.relation), Text(e.subject), *(Text(cells[number]) for cells in shown.values()))
    console.print(table)
