"""`tocsin replicate`: logical replication of tables, set up and copied, or taken down again."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from tocsin.errors import OperatorError
from tocsin.settings import Settings, load_settings
from tocsin.stack.running import here
from tocsin_check.replication.replicate import Progress, Replicated, replicate
from tocsin_check.replication.unreplicate import Dropped, unreplicate

_PHASES = {
    "schema": "copying the tables' schema",
    "publication": "publishing",
    "slot": "making the replication slot",
    "subscription": "subscribing",
    "copy": "copying rows",
    "done": "done",
}
_INTERRUPTED = 130
_NAMED = 10


def command(
    tables: Annotated[list[str] | None, typer.Argument(metavar="[TABLE]…", help="Tables such as orders or sales.orders, or sales.\\*; none means all.")] = None,
    where: Annotated[str | None, typer.Option(help="Only the rows of one table that fulfil this condition, as in: customer < 100")] = None,
    columns: Annotated[str | None, typer.Option(help="Only these columns of one table, separated by commas.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Take replication down: of the tables named, or of everything. Rows stay.")] = False,
    with_data: Annotated[bool, typer.Option("--with-data", help="With --drop: also drop the tables on the replica.")] = False,
    database_url: Annotated[str | None, typer.Option(help="The source database; else TOCSIN_DATABASE_URL.")] = None,
    replica_url: Annotated[str | None, typer.Option(help="The replica database; else TOCSIN_REPLICA_URL.")] = None,
    source_url_from_replica: Annotated[
        str | None, typer.Option(help="The source's URL as the replica's server reaches it, where that differs from the source's URL here.")
    ] = None,
) -> None:
    """Set up logical replication of tables from the source to the replica, and wait for the initial copy.

    It checks first, and says all that would fail before anything is changed. Run it again to add tables, or after the source
    has moved to another address; what is replicated already stays as it is.

    Example: `tocsin replicate orders customers`

    Example: `tocsin replicate orders --where "customer < 100" --columns id,customer,total`

    Example: `tocsin replicate --drop`
    """
    settings = here(load_settings(database_url=database_url, replica_url=replica_url))
    if with_data and not drop:
        raise OperatorError("--with-data goes with --drop only", "tocsin replicate --drop --with-data", exit_code=2)
    if drop and (where or columns):
        raise OperatorError("--where and --columns don't go with --drop", "tocsin replicate --drop TABLE", exit_code=2)
    console = Console(highlight=False, soft_wrap=True)
    if drop:
        _show_dropped(console, asyncio.run(_drop(settings, tables or [], with_data=with_data)))
        return
    chosen = [name.strip() for name in columns.split(",") if name.strip()] if columns is not None else None
    try:
        done = asyncio.run(_run(settings, tables or [], source_url_from_replica, where, chosen))
    except KeyboardInterrupt:
        console.print("interrupted; a copy that has begun goes on by itself. Run it again to watch it, or tocsin replicate --drop to take it down")
        raise typer.Exit(_INTERRUPTED) from None
    added = ", ".join(done.added[:_NAMED]) + (f" and {len(done.added) - _NAMED} more" if len(done.added) > _NAMED else "") or "nothing new"
    console.print(f"[green]replicating[/] {len(done.tables)} table{'s' * (len(done.tables) != 1)} (new: {escape(added)}), by the slot {done.slot}")
    for note in done.left_out:
        console.print(f"[yellow]left out[/] {escape(note)}")
    console.print("prove that the replica is equal: [bold]tocsin drift[/]")


async def _drop(settings: Settings, tables: list[str], *, with_data: bool) -> Dropped:
    return await unreplicate(source_url=settings.require_database_url(), replica_url=settings.require_replica_url(), tables=tables, with_data=with_data)


def _show_dropped(console: Console, dropped: Dropped) -> None:
    for what in dropped.done:
        console.print(f"[green]removed[/] {escape(what)}")
    for what in dropped.left:
        console.print(f"[yellow]left[/] {escape(what)}")
    if not dropped.done and not dropped.left:
        console.print("there was no replication by Tocsin")
    if dropped.left:
        raise typer.Exit(1)


async def _run(settings: Settings, tables: list[str], source_url_from_replica: str | None, where: str | None, chosen: list[str] | None) -> Replicated:
    source_url, replica_url = settings.require_database_url(), settings.require_replica_url()
    layout = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    with Bars(*layout, console=Console(stderr=True), transient=True) as bars:
        whole = bars.add_task("checking", total=None, shown="")
        copies: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            note = f": {progress.table}" if progress.phase == "slot" and progress.table else ""
            of = f"{progress.tables_done}/{progress.tables} tables"
            bars.update(whole, description=_PHASES[progress.phase] + note, completed=progress.tables_done, total=progress.tables, shown=of)
            if progress.phase == "copy" and progress.table:
                if progress.table not in copies:
                    copies[progress.table] = bars.add_task(progress.table, total=None, shown="")
                about = f" of about {progress.estimate:,}" if progress.estimate else ""
                total = max(progress.estimate, progress.rows) or None
                bars.update(copies[progress.table], completed=progress.rows, total=total, shown=f"{progress.rows:,}{about} rows")
            for table, task in list(copies.items()):
                if progress.phase == "done" or table in progress.copied:
                    bars.remove_task(task)
                    del copies[table]

        return await replicate(
            source_url=source_url,
            replica_url=replica_url,
            tables=tables,
            source_url_from_replica=source_url_from_replica,
            on_progress=show,
            where=where,
            columns=chosen,
        )
