"""What the checker knows between audits: each table's last report and its drifted rows, and what of it is news. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.rows.verdict import Key, Verdict
from tocsin_check.watch.report import SAMPLES, DriftedRow, Proof, RowPage, State, Status, TableReport, key_object

_STATES: Final[Mapping[Verdict, State]] = {Verdict.MISSING: "missing", Verdict.EXTRA: "extra", Verdict.DIFFERENT: "different"}
ROWS_KEPT: Final = 100_000
"""Drifted rows kept by key for each table; the counts go on beyond it."""
REST: Final = 4
"""From the beginning of a full audit to that of the next, in the time that the first one took: it takes a fourth of the time at most."""


@dataclass(slots=True)
class Entry:
    """`rows` are numbered in the order in which they were found; a number is never used again. `open`: keys that could not be judged.

    `whole` is the last proof that read every row; it counts once nothing is open any more.
    """

    report: TableReport
    rows: dict[Key, tuple[int, DriftedRow]] = field(default_factory=dict)
    found: int = 0
    seconds: float = 0.0
    audited: datetime | None = None
    checked: datetime | None = None
    open: dict[Key, str] = field(default_factory=dict)
    whole: Proof | None = None

    @property
    def followed_until(self) -> datetime:
        """When the last incremental proof was begun."""
        return max((proof.at for proof in self.report.proofs if proof.by == "incremental"), default=datetime.min.replace(tzinfo=UTC))

    def known(self) -> list[Key]:
        """Keys that an incremental audit has to look at in any case."""
        return [*self.rows, *(key for key in self.open if key not in self.rows)]


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
        """Take a full audit's outcome in; what is to be published, if it is news."""
        entry = self._entry(table)
        before = (entry.report.status, set(entry.rows))
        entry.rows = _numbered(entry, table, outcome, {})
        entry.open = {case.key: case.reason for case in outcome.pending}
        entry.seconds, entry.audited = seconds, outcome.started
        entry.whole = Proof(by="full", at=outcome.started, lsn=outcome.position, rows=outcome.rows)
        counts = {state: outcome.count(verdict) for verdict, state in _STATES.items()}
        entry.report = _report(entry, counts, outcome.rows)
        return _news(entry, *before)

    def judged(self, table: Comparable, outcome: Outcome, proof: Proof | None, seconds: float = 0.0) -> dict[str, Any] | None:
        """Take in what an audit of a part found: of changed keys, or a sweep's slice. `proof` is what it completes, `seconds` what a whole sweep took."""
        entry = self._entry(table)
        before = (entry.report.status, set(entry.rows))
        kept = {key: row for key, row in entry.rows.items() if key not in outcome.keys}
        entry.rows = _numbered(entry, table, outcome, kept)
        entry.open = {key: reason for key, reason in entry.open.items() if key not in outcome.keys} | {case.key: case.reason for case in outcome.pending}
        rows = entry.report.rows
        if proof is not None and proof.by == "incremental":
            entry.report = entry.report.model_copy(update={"proofs": _with(entry.report.proofs, proof)})
        elif proof is not None:
            entry.whole, entry.audited, entry.seconds, rows = proof, proof.at, seconds, proof.rows
        counts = Counter(row.state for _, row in entry.rows.values())
        entry.report = _report(entry, counts, rows)
        return _news(entry, *before)

    def drifted(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and bool(entry.rows)

    def keys(self, name: str) -> list[Key]:
        """Of the drifted rows that are known by key."""
        entry = self._entries.get(name)
        return list(entry.rows) if entry is not None else []

    def knows_all(self, name: str) -> bool:
        """Whether every drifted row is known by its key."""
        report = self._entries[name].report
        return len(self._entries[name].rows) >= report.missing + report.extra + report.different

    def checked(self, name: str, at: datetime) -> None:
        """An audit of all or a part of it began then."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.checked = at

    def confirmed(self, name: str, proof: Proof) -> None:
        """Nothing has changed since the proof before."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.report = entry.report.model_copy(update={"proofs": _with(entry.report.proofs, proof)})

    def _entry(self, table: Comparable) -> Entry:
        return self._entries.setdefault(str(table.name), Entry(TableReport(table=str(table.name))))

    def set_status(self, name: str, status: Status, reason: str) -> None:
        """For a table that could not be audited now; proven drift stands until something newer is proven."""
        entry = self._entries.setdefault(name, Entry(TableReport(table=name)))
        if entry.report.status != "drift" or status == "unauditable":
            entry.report = entry.report.model_copy(update={"status": status, "reason": reason})

    def under_way(self, name: str, rows: int) -> None:
        """Of a table's first audit, which may take hours: how far it is."""
        entry = self._entries.get(name)
        if entry is not None and entry.audited is None and entry.report.status == "unknown":
            entry.report = entry.report.model_copy(update={"reason": f"its first audit is under way: {rows:,} rows are read"})

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

    def due(self, name: str, now: datetime, every: timedelta, *, rest: int = REST) -> bool:
        """Whether a table's next audit is due: `every` after the last one began, and not before `rest` times as long as that one took."""
        entry = self._entries.get(name)
        if entry is None or entry.audited is None:
            return True
        return now - entry.audited >= self.interval(name, every, rest=rest)

    def interval(self, name: str, every: timedelta, *, rest: int = REST) -> timedelta:
        entry = self._entries.get(name)
        return max(every, timedelta(seconds=entry.seconds * rest)) if entry else every


def _numbered(entry: Entry, table: Comparable, outcome: Outcome, kept: dict[Key, tuple[int, DriftedRow]]) -> dict[Key, tuple[int, DriftedRow]]:
    """The drifted rows of an outcome, beside those that are kept; a row that was known keeps its number."""
    rows = kept
    for case in outcome.drifted:
        if len(rows) >= ROWS_KEPT:
            break
        assert case.verdict is not None
        row = DriftedRow(key=key_object(table.source.key, case.key), state=_STATES[case.verdict], columns=list(case.columns))
        number = entry.rows[case.key][0] if case.key in entry.rows else entry.found
        entry.found = max(entry.found, number + 1)
        rows[case.key] = (number, row)
    return rows


def _report(entry: Entry, counts: Mapping[State, int], rows: int | None) -> TableReport:
    before = entry.report
    status: Status = "drift" if any(counts.values()) else "pending" if entry.open else "in_sync"
    reason = None
    if entry.open:
        number = len(entry.open)
        reason = f"{number} row{'s' * (number != 1)} not proven yet: {next(iter(entry.open.values()))}"
    proof = entry.whole if entry.whole is not None and not entry.open else None
    return before.model_copy(
        update={
            "status": status,
            "rows": rows,
            **{state: counts.get(state, 0) for state in _STATES.values()},
            "reason": reason,
            "sample": [row for _, row in sorted(entry.rows.values(), key=lambda r: r[0])[:SAMPLES]],
            **({"verified_at": proof.at, "verified_lsn": proof.lsn, "verified_by": proof.by, "proofs": _with(before.proofs, proof)} if proof else {}),
        }
    )


def _with(proofs: list[Proof], proof: Proof) -> list[Proof]:
    """The last of each kind."""
    return [*(other for other in proofs if other.by != proof.by), proof]


def _news(entry: Entry, status: Status, keys: set[Key]) -> dict[str, Any] | None:
    """Drift that is new, has changed or is gone."""
    report = entry.report
    if report.status == "drift" and (status != "drift" or keys != set(entry.rows)):
        return {"previous": status, **report.model_dump(mode="json")}
    if report.status == "in_sync" and (status == "drift" or keys):
        return {"previous": "drift", **report.model_dump(mode="json")}
    return None
