"""What the checker knows between audits: each table's last report and its drifted rows, and what of it is news. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from tocsin_check.audit import Outcome
from tocsin_check.report import SAMPLES, DriftedRow, RowPage, State, Status, TableReport, key_object
from tocsin_check.table import Comparable
from tocsin_check.verdict import Key, Verdict

_STATES: Final[Mapping[Verdict, State]] = {Verdict.MISSING: "missing", Verdict.EXTRA: "extra", Verdict.DIFFERENT: "different"}
ROWS_KEPT: Final = 100_000
"""Drifted rows kept by key for each table; the counts go on beyond it."""


@dataclass(slots=True)
class Entry:
    """`rows` are numbered in the order in which they were found; a number is never used again."""

    report: TableReport
    rows: dict[Key, tuple[int, DriftedRow]] = field(default_factory=dict)
    found: int = 0
    seconds: float = 0.0
    audited: datetime | None = None


class Ledger:
    """One entry a table, by its name `schema.table`."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def reports(self) -> list[TableReport]:
        return [self._entries[name].report for name in sorted(self._entries)]

    def get(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def keep(self, names: Iterable[str]) -> None:
        """Begin entries for new tables, drop those that are no longer replicated."""
        wanted = set(names)
        self._entries = {name: entry for name, entry in self._entries.items() if name in wanted}
        for name in wanted - self._entries.keys():
            self._entries[name] = Entry(TableReport(table=name))

    def proven(self, table: Comparable, outcome: Outcome, seconds: float) -> dict[str, Any] | None:
        """Take an audit's outcome in; what is to be published, if it is news."""
        entry = self._entries.setdefault(str(table.name), Entry(TableReport(table=str(table.name))))
        before = (entry.report.status, set(entry.rows))
        rows: dict[Key, tuple[int, DriftedRow]] = {}
        for case in outcome.drifted[:ROWS_KEPT]:
            assert case.verdict is not None
            row = DriftedRow(key=key_object(table.source.key, case.key), state=_STATES[case.verdict], columns=list(case.columns))
            number = entry.rows[case.key][0] if case.key in entry.rows else entry.found
            entry.found = max(entry.found, number + 1)
            rows[case.key] = (number, row)
        entry.rows, entry.seconds, entry.audited = rows, seconds, outcome.started
        entry.report = _report(table, outcome, [row for _, row in sorted(rows.values(), key=lambda r: r[0])[:SAMPLES]], entry.report)
        return _news(entry, *before)

    def set_status(self, name: str, status: Status, reason: str) -> None:
        """For a table that could not be audited now; proven drift stands until something newer is proven."""
        entry = self._entries.setdefault(name, Entry(TableReport(table=name)))
        if entry.report.status != "drift" or status == "unauditable":
            entry.report = entry.report.model_copy(update={"status": status, "reason": reason})

    def unproven(self, name: str) -> bool:
        """Whether no audit of the table has come to an end yet."""
        entry = self._entries.get(name)
        return entry is None or entry.audited is None

    def page(self, name: str, after: str | None, limit: int) -> RowPage | None:
        """Raises ValueError for an `after` that no page gave."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        last = -1 if after is None else int(after)
        rows = sorted((numbered for numbered in entry.rows.values() if numbered[0] > last), key=lambda r: r[0])
        page = rows[:limit]
        return RowPage(rows=[row for _, row in page], next=str(page[-1][0]) if len(rows) > limit else None)

    def due(self, name: str, now: datetime, every: timedelta) -> bool:
        """Whether a table's next audit is due: a large one's takes at most a twentieth of the time."""
        entry = self._entries.get(name)
        if entry is None or entry.audited is None:
            return True
        return now - entry.audited >= self.interval(name, every)

    def interval(self, name: str, every: timedelta) -> timedelta:
        entry = self._entries.get(name)
        return max(every, timedelta(seconds=entry.seconds * 20)) if entry else every


def _report(table: Comparable, outcome: Outcome, sample: list[DriftedRow], before: TableReport) -> TableReport:
    status: Status = "drift" if outcome.drifted else "pending" if outcome.pending else "in_sync"
    reason = None
    if outcome.pending:
        count = len(outcome.pending)
        reason = f"{count} row{'s' * (count != 1)} not proven yet: {outcome.pending[0].reason}"
    whole = not outcome.pending
    return TableReport(
        table=str(table.name),
        status=status,
        rows=outcome.rows,
        missing=outcome.count(Verdict.MISSING),
        extra=outcome.count(Verdict.EXTRA),
        different=outcome.count(Verdict.DIFFERENT),
        verified_at=outcome.started if whole else before.verified_at,
        verified_lsn=outcome.position if whole else before.verified_lsn,
        reason=reason,
        sample=sample,
    )


def _news(entry: Entry, status: Status, keys: set[Key]) -> dict[str, Any] | None:
    """Drift that is new, has changed or is gone."""
    report = entry.report
    if report.status == "drift" and (status != "drift" or keys != set(entry.rows)):
        return {"previous": status, **report.model_dump(mode="json")}
    if report.status == "in_sync" and (status == "drift" or keys):
        return {"previous": "drift", **report.model_dump(mode="json")}
    return None
