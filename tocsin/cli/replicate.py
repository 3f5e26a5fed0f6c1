"""`tocsin replicate`: logical replication of tables, set up and copied."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from tocsin.settings import Settings, load_settings
from tocsin_check.replicate import Progress, Replicated, replicate

_PHASES = {
    "schema": "copying the tables' schema",
    "publication": "publishing",
    "slot": "making the replication slot",
    "subscription": "subscribing",
    "copy": "copying rows",
    "done": "done",
}


def command(
    tables: Annotated[list[str] | None, typer.Argument(metavar="[TABLE]…", help="Tables such as orders or sales.orders, or sales.\\*; none means all.")] = None,
    database_url: Annotated[str | None, typer.Option(help="The source database; else TOCSIN_DATABASE_URL.")] = None,
    replica_url: Annotated[str | None, typer.Option(help="The replica database; else TOCSIN_REPLICA_URL.")] = None,
    source_url_from_replica: Annotated[
        str | None, typer.Option(help="The source's URL as the replica's server reaches it, where that differs from the source's URL here.")
    ] = None,
) -> None:
    """Set up logical replication of tables from the source to the replica, and wait for the initial copy.

    It checks first, and says all that would fail before anything is changed. Run it again to add tables; what is replicated already stays as it is.

    Example: `tocsin replicate orders customers`
    """
    settings = load_settings(database_url=database_url, replica_url=replica_url)
    done = asyncio.run(_run(settings, tables or [], source_url_from_replica))
    console = Console(highlight=False, soft_wrap=True)
    added = ", ".join(done.added) or "nothing new"
    console.print(f"[green]replicating[/] {len(done.tables)} table{'s' * (len(done.tables) != 1)} (new: {added}), by the slot {done.slot}")
    for note in done.left_out:
        console.print(f"[yellow]left out[/] {note}")
    console.print("prove that the replica is equal: [bold]tocsin drift[/]")


async def _run(settings: Settings, tables: list[str], source_url_from_replica: str | None) -> Replicated:
    source_url, replica_url = settings.require_database_url(), settings.require_replica_url()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        whole = bars.add_task("checking", total=None, unit="tables")
        copies: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            note = f": {progress.table}" if progress.phase == "slot" and progress.table else ""
            bars.update(whole, description=_PHASES[progress.phase] + note, completed=progress.tables_done, total=progress.tables)
            if progress.phase == "copy" and progress.table:
                if progress.table not in copies:
                    copies[progress.table] = bars.add_task(progress.table, total=None, unit="rows")
                bars.update(copies[progress.table], completed=progress.rows, total=max(progress.estimate, progress.rows) or None)

        return await replicate(source_url=source_url, replica_url=replica_url, tables=tables, source_url_from_replica=source_url_from_replica, on_progress=show)
