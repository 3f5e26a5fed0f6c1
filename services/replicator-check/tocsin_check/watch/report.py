"""The report: what is known of each table, and what may be said of the whole. Pure; the shapes are the public contract's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from tocsin_check.catalog.coverage import Facts
from tocsin_check.catalog.findings import Finding, Rising, findings
from tocsin_check.rows.reading import KeyPart
from tocsin_check.rows.verdict import Key

Status = Literal["in_sync", "lagging", "pending", "drift", "stale", "unauditable", "unknown"]
State = Literal["missing", "extra", "different"]

WORST_FIRST: Final[Sequence[Status]] = ("drift", "unknown", "unauditable", "stale", "lagging", "pending", "in_sync")
LAGGING_AFTER: Final = 5.0
"""Seconds that the replica may be behind before nothing is called in sync any more."""
SAMPLES: Final = 5
SUMMED_TABLES: Final = 200

EXIT_CODES: Final[dict[Status, int]] = {"in_sync": 0, "drift": 1, "unknown": 2, "unauditable": 2, "lagging": 3, "pending": 3, "stale": 3}


class DriftedRow(BaseModel):
    """A row that was proven to differ. `columns` are the columns that differ, where state is different."""

    key: dict[str, Any]
    state: State
    columns: list[str] = []


class RowPage(BaseModel):
    """Drifted rows in the order in which they were found; pass `next` as `after` to read on."""

    rows: list[DriftedRow]
    next: str | None = None


class FindingReport(BaseModel):
    """Something that counting rows can't see, and what to do about it."""

    severity: Literal["error", "warning", "info"]
    code: str
    message: str
    fix: str
    table: str | None = None


class ReplicationReport(BaseModel):
    """`slot` and `subscription` are those that carry the checker's marker; empty where there is none."""

    slot: dict[str, Any] = {}
    subscription: dict[str, Any] = {}
    uncovered: list[str] = []
    findings: list[FindingReport] = []


class Proof(BaseModel):
    """What was compared, up to which position, begun when.

    full: every row, in one go. sweep: every row, little by little. incremental: every row that changed since, as the event stream tells it;
    that can't show what somebody wrote on the replica, nor what was written past the capture triggers.
    """

    by: Literal["full", "sweep", "incremental"]
    at: datetime
    lsn: str
    rows: int


class TableReport(BaseModel):
    """Everything the source showed as committed up to `verified_lsn` was compared, each row of it read; `missing` is on the source only,
    `extra` on the replica only. `proofs` has the last of each kind, and `verified_by` says which one `verified_at` is from.

    `dirty`: changed keys that wait for the next audit; null where the stream does not tell them, and then `unfollowed` says why.
    """

    table: str
    status: Status = "unknown"
    rows: int | None = None
    missing: int = 0
    extra: int = 0
    different: int = 0
    verified_at: datetime | None = None
    verified_lsn: str | None = None
    verified_by: Literal["full", "sweep"] | None = None
    reason: str | None = None
    sample: list[DriftedRow] = []
    proofs: list[Proof] = []
    swept: Annotated[float | None, Field(description="How far the sweep under way is, 0 to 1")] = None
    dirty: int | None = None
    unfollowed: str | None = None


class Report(BaseModel):
    """The whole: its status is the worst of its tables', and never better than what replication itself allows."""

    status: Status = "unknown"
    checked_at: datetime | None = None
    lag_seconds: float | None = None
    reason: str | None = Field(None, description="Why nothing newer is known, where that is so")
    replication: ReplicationReport = ReplicationReport()
    tables: list[TableReport] = []


def overall(tables: Iterable[TableReport], found: Iterable[FindingReport]) -> Status:
    """The worst status; an error in replication itself never leaves it at in_sync."""
    statuses: list[Status] = [table.status for table in tables]
    if not statuses:
        return "unknown"
    worst = min(statuses, key=WORST_FIRST.index)
    if worst == "in_sync" and any(f.severity == "error" for f in found):
        return "unauditable"
    return worst


def aged(table: TableReport, *, now: datetime, lag: float | None, reachable: bool, reason: str | None, stale_after: timedelta) -> TableReport:
    """What may still be said of a table: old proofs become lagging or stale; proven drift stays until something newer is proven."""
    if table.status not in ("in_sync", "pending", "lagging"):
        return table
    if table.verified_at is not None and (not reachable or now - table.verified_at > stale_after):
        why = reason or table.reason or "the last proof is older than the audits should leave it"
        return table.model_copy(update={"status": "stale" if not (lag is not None and lag > LAGGING_AFTER and reachable) else "lagging", "reason": why})
    if lag is not None and lag > LAGGING_AFTER and table.status == "in_sync":
        return table.model_copy(update={"status": "lagging", "reason": f"the replica is {lag:.0f} s behind"})
    return table


def replication_report(facts: Facts | None, rising: Rising | None = None) -> ReplicationReport:
    if facts is None:
        return ReplicationReport()
    subscription = next(iter(facts.subscriptions), None)
    slot = facts.slots.get(subscription.slot or "") if subscription else None
    return ReplicationReport(
        slot=asdict(slot) if slot else {},
        subscription={k: v for k, v in asdict(subscription).items() if k not in ("oid", "owner")} if subscription else {},
        uncovered=list(facts.uncovered),
        findings=[_finding(f) for f in findings(facts, rising)],
    )


def _finding(found: Finding) -> FindingReport:
    return FindingReport(severity=found.severity, code=found.code, message=found.message, fix=found.fix, table=found.table)


def key_object(parts: Sequence[KeyPart], key: Key) -> dict[str, Any]:
    """A key as JSON: integers and booleans as such, everything else as PostgreSQL's text."""
    return {part.name: _value(part.kind, text) for part, text in zip(parts, key, strict=True)}


def _value(kind: str, text: str) -> Any:
    if kind == "int":
        return int(text)
    return text in ("t", "true") if kind == "bool" else text


def now() -> datetime:
    return datetime.now(UTC)


def summary(report: Report, *, ready: bool) -> dict[str, Any]:
    """The report for the service protocol: no row's key is in it, and of many tables only the worst."""
    worst = sorted(report.tables, key=lambda table: WORST_FIRST.index(table.status))[:SUMMED_TABLES]
    return {
        "ready": ready,
        **report.model_dump(mode="json", include={"status", "checked_at", "lag_seconds", "reason"}),
        "tables": [table.model_dump(mode="json", include={"table", "status", "rows", "missing", "extra", "different", "reason"}) for table in worst],
        "more_tables": len(report.tables) - len(worst),
        "findings": [finding.model_dump(mode="json", exclude={"code"}) for finding in report.replication.findings],
    }
