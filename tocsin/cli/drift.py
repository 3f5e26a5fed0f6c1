"""`tocsin drift`: audit now, from the terminal, without the service."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tocsin.errors import OperatorError
from tocsin.service import configure_logging
from tocsin.settings import Settings, load_settings
from tocsin_check.audit import Outcome, Sides
from tocsin_check.checker import Checker, open_sides
from tocsin_check.fence import Lagging
from tocsin_check.report import EXIT_CODES, Report, Status
from tocsin_check.table import Comparable

_COLOURS: dict[Status, str] = {
    "in_sync": "green",
    "drift": "bold red",
    "lagging": "yellow",
    "pending": "yellow",
    "stale": "yellow",
    "unauditable": "red",
    "unknown": "red",
}
_AGAIN_AFTER = 5.0


def command(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]…", help="Tables such as orders or sales.orders; none means all that are replicated.")
    ] = None,
    once: Annotated[bool, typer.Option("--once/--watch", help="Audit once, or again and again until Ctrl-C.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, as GET /drift has it.")] = False,
    database_url: Annotated[str | None, typer.Option(help="The source database; else TOCSIN_DATABASE_URL.")] = None,
    replica_url: Annotated[str | None, typer.Option(help="The replica database; else TOCSIN_REPLICA_URL.")] = None,
) -> None:
    """Prove that the replica equals the source, row by row, and show what does not.

    Safe on a busy database: a row is called drifted only when lag can't be the reason.

    Exit code: 0 in sync, 1 drift, 2 could not check (unknown, unauditable), 3 lagging, pending or stale.

    Example: `tocsin drift orders --json`
    """
    settings = load_settings(database_url=database_url, replica_url=replica_url)
    configure_logging("warning", settings.log_format)
    try:
        report = asyncio.run(_run(settings, tables or [], once=once, as_json=as_json))
    except OperatorError as error:
        raise OperatorError(str(error), error.fix, exit_code=2) from error
    raise typer.Exit(EXIT_CODES[report.status])


async def _run(settings: Settings, names: list[str], *, once: bool, as_json: bool) -> Report:
    source_url, replica_url = settings.require_database_url(), settings.require_replica_url()
    checker = Checker(source_url, replica_url, share=1, publishing=False)
    async with open_sides(source_url, replica_url) as sides:
        while True:
            with Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeElapsedColumn(),
                console=Console(stderr=True), transient=True,
            ) as bars:  # fmt: skip
                found = await checker.take_stock(sides)
                chosen = [table for table in found if not names or {str(table.name), table.name.name} & set(names)]
                if unknown := [n for n in names if not any(n in (str(t.name), t.name.name) for t in chosen)]:
                    known = ", ".join(str(table.name) for table in found) or "none"
                    raise OperatorError(f"no table {unknown[0]} is replicated; there are: {known}", f"correct the name, or: tocsin replicate {unknown[0]}")
                checker.ledger.keep(str(table.name) for table in chosen)
                await _audit(checker, sides, [table for table in chosen if isinstance(table, Comparable)], bars)
            report = checker.report()
            _print(report, as_json=as_json)
            if once:
                return report
            await asyncio.sleep(_AGAIN_AFTER)


async def _audit(checker: Checker, sides: Sides, tables: list[Comparable], bars: Progress) -> None:
    whole = bars.add_task("tables", total=len(tables), rows=0)
    try:
        for table in tables:
            task = bars.add_task(str(table.name), total=None, rows=0)

            async def on_block(outcome: Outcome, task: TaskID = task) -> None:
                bars.update(task, rows=outcome.rows)

            await checker.audit_table(sides, table, on_block)
            bars.update(task, total=1, completed=1)
            bars.advance(whole)
    except Lagging as lagging:
        for table in tables:
            if checker.ledger.unproven(str(table.name)):
                checker.ledger.set_status(str(table.name), "lagging", str(lagging))


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
        return
    console = Console(highlight=False)
    grid = Table("table", "status", "rows", "missing", "extra", "different", "verified up to", "reason", box=None, header_style="dim")
    for t in report.tables:
        counts = (str(n) if n else "" for n in (t.missing, t.extra, t.different))
        rows = f"{t.rows:,}" if t.rows is not None else ""
        grid.add_row(escape(t.table), f"[{_COLOURS[t.status]}]{t.status}[/]", rows, *counts, t.verified_lsn or "", escape(t.reason or ""))
    console.print(grid)
    for t in report.tables:
        for row in t.sample:
            columns = f" in {', '.join(row.columns)}" if row.columns else ""
            console.print(f"  {escape(t.table)} {escape(str(row.key))} [red]{row.state}[/]{escape(columns)}", soft_wrap=True)
    for finding in report.replication.findings:
        colour = {"error": "red", "warning": "yellow", "info": "dim"}[finding.severity]
        console.print(f"[{colour}]{finding.severity}[/] {escape(finding.message)}", soft_wrap=True)
        console.print(f"   fix: {finding.fix}", soft_wrap=True, markup=False)
    console.print(f"[{_COLOURS[report.status]}]{report.status}[/]", end="")
    console.print(f", {report.lag_seconds:.3f} s behind" if report.lag_seconds is not None else "")
