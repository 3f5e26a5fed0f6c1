"""The drift report in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tocsin_check.auditing.repair import Repair
from tocsin_check.auditing.values import Pair
from tocsin_check.watch.report import Report, Status

COLOURS: Final[dict[Status, str]] = {
    "in_sync": "green",
    "drift": "bold red",
    "lagging": "yellow",
    "pending": "yellow",
    "stale": "yellow",
    "unauditable": "red",
    "unknown": "red",
}
_SHOWN: Final = 60
Values = dict[tuple[str, str], dict[str, Pair]]
"""By the table's name and the row's key as JSON."""
Repairs = dict[str, list[Repair]]
"""By the table's name."""


def show(report: Report, shown: Values, *, as_json: bool, repairs: Repairs | None = None, aside: bool = False) -> None:
    """Print it; `aside` to the standard error, where the output is something else."""
    if as_json:
        sys.stdout.write(json.dumps(_document(report, shown, repairs), indent=2, ensure_ascii=False) + "\n")
        return
    console = Console(highlight=False, stderr=aside)
    whole = [Column(name, no_wrap=True, overflow="fold") for name in ("table", "status", "rows", "missing", "extra", "different")]
    why = ["reason"] if any(t.reason for t in report.tables) else []
    grid = Table(*whole, Column("verified up to", min_width=10), *why, box=None, header_style="dim")
    for t in report.tables:
        counts = (f"{n:,}" if n else "" for n in (t.missing, t.extra, t.different))
        rows = f"{t.rows:,}" if t.rows is not None else ""
        grid.add_row(escape(t.table), f"[{COLOURS[t.status]}]{t.status}[/]", rows, *counts, t.verified_lsn or "", *[escape(t.reason or "") for _ in why])
    console.print(grid)
    for t in report.tables:
        for row in t.sample:
            columns = f" in {', '.join(row.columns)}" if row.columns else ""
            console.print(f"  {escape(t.table)} {escape(str(row.key))} [red]{row.state}[/]{escape(columns)}", soft_wrap=True)
            for name, (ours, theirs) in shown.get((t.table, json.dumps(row.key)), {}).items():
                console.print(f"    {name}: source {_cut(ours)}, replica {_cut(theirs)}", soft_wrap=True, markup=False)
    for finding in report.replication.findings:
        colour = {"error": "red", "warning": "yellow", "info": "dim"}[finding.severity]
        console.print(f"[{colour}]{finding.severity}[/] {escape(finding.message)}", soft_wrap=True)
        console.print(f"   fix: {finding.fix}", soft_wrap=True, markup=False)
    console.print(f"[{COLOURS[report.status]}]{report.status}[/]", end="")
    console.print(f", {report.lag_seconds:.3f} s behind" if report.lag_seconds is not None else "")


def _document(report: Report, shown: Values, repairs: Repairs | None) -> dict[str, Any]:
    document = report.model_dump(mode="json")
    for table in document["tables"]:
        for row in table["sample"]:
            pairs = shown.get((table["table"], json.dumps(row["key"])))
            if pairs is not None:
                row["values"] = {name: {"source": ours, "replica": theirs} for name, (ours, theirs) in pairs.items()}
    if repairs is not None:
        document["repairs"] = [
            {"table": table, "state": repair.state, "statement": repair.statement, "left": repair.left} for table, done in repairs.items() for repair in done
        ]
    return document


def show_repairs(repairs: Repairs, *, applied: bool, unfinished: Collection[str]) -> None:
    """How many, and why some were left alone; to the standard error. `unfinished`: tables of which more rows have drifted."""
    console = Console(highlight=False, stderr=True, soft_wrap=True)
    for table, done in repairs.items():
        left = [repair for repair in done if repair.left is not None]
        word = "repaired" if applied else "to repair"
        console.print(f"{escape(table)} [green]{len(done) - len(left)} row{'s' * (len(done) - len(left) != 1)} {word}[/]")
        if table in unfinished:
            console.print("  more rows have drifted: run this, then tocsin drift --repair again; or tocsin drift --repair --apply, which goes on by itself")
        _show_left(console, left)


def _show_left(console: Console, left: Sequence[Repair]) -> None:
    for repair in left[:20]:
        console.print(f"  [yellow]left alone[/] {escape(', '.join(repair.key))}: {escape(repair.left or '')}")
    if len(left) > 20:
        console.print(f"  and {len(left) - 20} more left alone")


def _cut(text: str | None) -> str:
    """As a constant, so that NULL, an empty string and a trailing space can be told apart."""
    if text is None:
        return "NULL"
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
