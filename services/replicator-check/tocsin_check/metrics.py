"""The checker's Prometheus metrics; their names begin `tocsin_check_`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tocsin_check.auditing.outcome import Outcome
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.report import WORST_FIRST, Report, now


class Metrics:
    """Counters fed by the audits; `observe` has the shape that Checker calls after each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry: Final = registry
        self._audits = Counter("tocsin_check_audits", "Audits of a table that came to an end", ["table"], registry=registry)
        self._blocks = Counter("tocsin_check_blocks", "Blocks compared", ["table"], registry=registry)
        self._rows = Counter("tocsin_check_rows", "Rows of the source compared", ["table"], registry=registry)
        self._seconds = Counter("tocsin_check_source_seconds", "Time that the source spent on hashing blocks", ["table"], registry=registry)

    def observe(self, table: str, outcome: Outcome) -> None:
        self._audits.labels(table).inc()
        self._blocks.labels(table).inc(outcome.blocks)
        self._rows.labels(table).inc(outcome.rows)
        self._seconds.labels(table).inc(outcome.source_seconds)


class ReportCollector(Collector):
    """The report as gauges, read when it is asked for."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def collect(self) -> Iterator[Metric]:
        report = self._checker.report()
        lag = GaugeMetricFamily("tocsin_check_lag_seconds", "How far the replica is behind, measured by a marker row")
        if report.lag_seconds is not None:
            lag.add_metric([], report.lag_seconds)
        yield lag
        status = GaugeMetricFamily("tocsin_check_status", "1 for the status that the table has", labels=["table", "status"])
        rows = GaugeMetricFamily("tocsin_check_drifted_rows", "Rows proven to differ", labels=["table", "state"])
        age = GaugeMetricFamily("tocsin_check_verified_age_seconds", "Time since everything in the table was last proven", labels=["table"])
        for table in report.tables:
            for name in WORST_FIRST:
                status.add_metric([table.table, name], float(table.status == name))
            for state, count in (("missing", table.missing), ("extra", table.extra), ("different", table.different)):
                rows.add_metric([table.table, state], count)
            if table.verified_at is not None:
                age.add_metric([table.table], (now() - table.verified_at).total_seconds())
        yield from (status, rows, age)
        dirty = GaugeMetricFamily("tocsin_check_dirty_keys", "Changed keys that wait to be read; absent where changes are not followed", labels=["table"])
        for followed, number in ((table.table, table.dirty) for table in report.tables if table.dirty is not None):
            dirty.add_metric([followed], number)
        yield dirty
        found = GaugeMetricFamily("tocsin_check_findings", "Findings about replication itself", labels=["severity"])
        for severity in ("error", "warning", "info"):
            found.add_metric([severity], sum(f.severity == severity for f in report.replication.findings))
        yield found
        codes = GaugeMetricFamily("tocsin_check_finding", "1 for each finding", labels=["code", "severity", "table"])
        for each in {(f.code, f.severity, f.table or "") for f in report.replication.findings}:
            codes.add_metric(each, 1)
        yield codes
        yield self._retained(report)

    def _retained(self, report: Report) -> Metric:
        retained = GaugeMetricFamily("tocsin_check_slot_retained_bytes", "WAL that the replica's slot holds back on the source", labels=["slot"])
        slot = report.replication.slot
        if slot.get("retained_bytes") is not None:
            retained.add_metric([str(slot["name"])], float(slot["retained_bytes"]))
        return retained
