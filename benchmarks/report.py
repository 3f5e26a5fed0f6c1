"""How every benchmark tells its result: rows for people, then one line of JSON, kept under benchmarks/results/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def report(bench: str, rows: list[dict[str, Any]], figures: dict[str, Any]) -> None:
    """Print `rows` (same keys in each) as a table, and `figures` as the last line."""
    table = Table(title=bench)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console().print(table)
    line = msgspec.json.encode({"bench": bench, **figures}).decode()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{bench}.json").write_text(line + "\n")
    print(line)


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
