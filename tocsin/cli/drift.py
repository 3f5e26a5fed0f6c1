"""`tocsin drift`: audit now, from the terminal, without the service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Final

import asyncpg
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from tocsin import postgres
from tocsin.cli.drift_repair import Mending
from tocsin.cli.drift_report import COLOURS, Repairs, Values, show, show_repairs
from tocsin.cli.drift_state import KEPT, State, check_writable
from tocsin.errors import OperatorError, Unavailable
from tocsin.service import configure_logging
from tocsin.settings import Settings, load_settings
from tocsin.stack.running import here
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.auditing.repair import Repair
from tocsin_check.auditing.values import values
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.report import EXIT_CODES, Report

_AGAIN_AFTER: Final = 5.0
_INTERRUPTED: Final = 130


def command(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]…", help="Tables such as orders or sales.orders; none means all that are replicated.")
    ] = None,
    *,
    once: Annotated[bool, typer.Option("--once/--watch", help="Audit once, or again and again until Ctrl-C.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, as GET /drift has it.")] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="Show what the columns that differ hold on both sides; hidden otherwise.")] = False,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Note here how far the run is: within a day the same command goes on from there after Ctrl-C.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Equal means bit for bit: 1.0 and 1.00, or 0 and -0, differ. Otherwise it means what SQL calls equal.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Print SQL that makes the replica equal; the report goes to the standard error. Nothing is changed.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="With --repair: change the replica at once, each row only if it is still as it was proven.")] = False,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="With --repair: write the SQL to this file, readable by you alone.")] = None,
    max_load: Annotated[float, typer.Option(min=0.01, max=1, help="The share of one backend of the source that the audit may take.")] = 1.0,
    max_rows: Annotated[int | None, typer.Option(min=1, help="How many rows a second it may read at most.")] = None,
    database_url: Annotated[str | None, typer.Option(help="The source database; else TOCSIN_DATABASE_URL.")] = None,
    replica_url: Annotated[str | None, typer.Option(help="The replica database; else TOCSIN_REPLICA_URL.")] = None,
) -> None:
    """Prove that the replica equals the source, row by row, and show what does not.

    Safe on a busy database: a row is called drifted only when lag can't be the reason.

    Exit code: 0 in sync, 1 drift, 2 could not check (unknown, unauditable), 3 lagging, pending or stale, 130 interrupted.

    Example: `tocsin drift orders --json`

    Example: `tocsin drift --state audit.json`, and the same again after an interruption

    Example: `tocsin drift orders --repair > repair.sql`, or `tocsin drift orders --repair --apply`
    """
    if (apply or output) and not repair:
        raise OperatorError("--apply and --output go with --repair only", "tocsin drift --repair --apply", exit_code=2)
    if repair and (not once or (apply and output)):
        raise OperatorError("--repair is done once, either with --apply or as SQL", "tocsin drift --repair --output repair.sql", exit_code=2)
    if output is not None:
        check_writable(output, "--output")
    settings = here(load_settings(database_url=database_url, replica_url=replica_url))
    configure_logging("warning", settings.log_format)
    mending = Mending(settings.require_replica_url(), apply=apply, output=output, to_stdout=not as_json) if repair else None
    pace = Pace(share=max_load, rows_per_second=max_rows)
    run = _Run(settings, tables or [], as_json=as_json, show_values=show_values, state=state, pace=pace, exact=exact, mending=mending)
    try:
        report = asyncio.run(run.run(once=once))
    except OperatorError as error:
        raise OperatorError(str(error), error.fix, exit_code=2) from error
    except asyncpg.InsufficientPrivilegeError as error:
        fix = "GRANT what is missing to the users in TOCSIN_DATABASE_URL and TOCSIN_REPLICA_URL; deploy/postgres has roles with the least rights"
        raise OperatorError(f"PostgreSQL does not let this user compare: {error}", fix, exit_code=2) from error
    except (Unavailable, *postgres.TRANSIENT, asyncpg.PostgresError) as error:
        run.show_interrupted()
        text = str(error) if isinstance(error, Unavailable) else f"a server was lost: {error or type(error).__name__}"
        raise OperatorError(text, "run it again when both servers answer", exit_code=2) from error
    except KeyboardInterrupt:
        run.show_interrupted()
        raise typer.Exit(_INTERRUPTED) from None
    raise typer.Exit(EXIT_CODES[report.status])


class RowsPerSecond(ProgressColumn):
    """How fast a table goes by."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed or not task.fields.get("counts") else f"{speed:,.0f} rows/s", style="cyan")


class _Run:
    def __init__(
        self,
        settings: Settings,
        names: list[str],
        *,
        as_json: bool,
        show_values: bool,
        state: Path | None,
        pace: Pace,
        exact: bool,
        mending: Mending | None,
    ) -> None:
        self._urls = (settings.require_database_url(), settings.require_replica_url())
        self._names = names
        self._as_json = as_json
        self._show_values = show_values
        self._path = state
        self._state = State(state, exact=exact)
        # One run may take hours, and what it proved first is still the result of this run.
        self._checker = Checker(*self._urls, pace=pace, publishing=False, every=KEPT, exact=exact)
        self._mending = mending
        self._repairs: Repairs = {}
        self._left: list[str] = []

    async def run(self, *, once: bool) -> Report:
        self._state.check()
        async with open_sides(*self._urls) as sides:
            await self._state.restore(sides)
            while True:
                shown = await self._pass(sides)
                report = self._checker.report()
                if self._mending is not None:
                    self._mending.finish()
                    show_repairs(self._repairs, applied=self._mending.applies, unfinished=self._mending.unfinished)
                aside = self._mending is not None and self._mending.prints
                show(report, shown, as_json=self._as_json, repairs=self._repairs if self._mending is not None else None, aside=aside)
                self._state.clear()
                if once:
                    return report
                await asyncio.sleep(_AGAIN_AFTER)

    async def _pass(self, sides: Sides) -> Values:
        layout = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[shown]}"),
            RowsPerSecond(), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*layout, console=Console(stderr=True), transient=True) as bars:
            found = await self._checker.take_stock(sides)
            names = self._names
            chosen = [table for table in found if not names or {str(table.name), table.name.name} & set(names)]
            if unknown := [n for n in names if not any(n in (str(t.name), t.name.name) for t in chosen)]:
                known = ", ".join(str(table.name) for table in found) or "none"
                raise OperatorError(f"no table {unknown[0]} is replicated; there are: {known}", f"correct the name, or: tocsin replicate {unknown[0]}")
            self._checker.ledger.keep(str(table.name) for table in chosen)
            return await self._audit(sides, [table for table in chosen if isinstance(table, Comparable)], bars)

    async def _audit(self, sides: Sides, tables: list[Comparable], bars: Progress) -> Values:
        whole = bars.add_task("tables", total=len(tables), shown="")
        shown: Values = {}
        self._left = [str(table.name) for table in tables]
        try:
            for table in tables:
                name = str(table.name)
                if not self._take_over(name):
                    await self._audit_one(sides, table, bars)
                    if self._show_values:
                        shown |= await self._values(sides, table)
                    if self._mending is not None and self._checker.ledger.drifted(name):
                        self._repairs[name] = await self._mend(sides, table, self._mending, bars)
                    if (entry := self._checker.ledger.get(name)) is not None:
                        self._state.note_done(name, entry.report)
                self._left.remove(name)
                bars.update(whole, advance=1, shown=f"{len(tables) - len(self._left)}/{len(tables)}")
        except Lagging as lagging:
            for table in tables:
                if self._checker.ledger.unproven(str(table.name)):
                    self._checker.ledger.set_status(str(table.name), "lagging", str(lagging))
        return shown

    async def _audit_one(self, sides: Sides, table: Comparable, bars: Progress) -> None:
        estimate = max(0, await sides.source.fetchval("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass($1)", table.name.sql) or 0)
        task: TaskID = bars.add_task(str(table.name), total=estimate or None, shown="0 rows", counts=True)

        async def on_block(outcome: Outcome) -> None:
            self._state.note_begun(table, outcome)
            bars.update(task, completed=outcome.rows, total=max(estimate, outcome.rows) or None, shown=f"{outcome.rows:,} rows")

        try:
            await self._checker.auditor.audit_table(sides, table, on_block, self._state.begun(table))
        except BaseException:
            self._state.interrupted()
            raise
        bars.remove_task(task)

    async def _mend(self, sides: Sides, table: Comparable, mending: Mending, bars: Progress) -> list[Repair]:
        task = bars.add_task(f"repair of {table.name}", total=None, shown="0 rows", counts=True)

        def on_rows(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, shown=f"{done:,} rows")

        repairs = await mending.mend(sides, table, self._checker, on_rows)
        bars.remove_task(task)
        return repairs

    async def _values(self, sides: Sides, table: Comparable) -> Values:
        entry = self._checker.ledger.get(str(table.name))
        if entry is None:
            return {}
        sample = [row.key for row in entry.report.sample]
        wanted = {key: row.columns for key, (_, row) in entry.rows.items() if row.key in sample}
        found = await values(sides, table, wanted)
        return {(str(table.name), json.dumps(entry.rows[key][1].key)): pairs for key, pairs in found.items()}

    def _take_over(self, name: str) -> bool:
        """Whether an earlier run has done the table already."""
        entry, report = self._checker.ledger.get(name), self._state.done(name)
        if entry is None or report is None:
            return False
        entry.report, entry.audited = report, report.verified_at
        return True

    def show_interrupted(self) -> None:
        """What is known so far, and how to go on; nothing where nothing was begun."""
        if not self._left:
            return
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        for table in self._checker.report().tables:
            if table.verified_at is not None:
                console.print(f"{escape(table.table)} [{COLOURS[table.status]}]{table.status}[/]")
        how = f"go on with the same command: --state {self._path}" if self._path is not None else "with --state FILE it can go on where it was"
        console.print(f"interrupted, {len(self._left)} table{'s' * (len(self._left) != 1)} left; {how}")
