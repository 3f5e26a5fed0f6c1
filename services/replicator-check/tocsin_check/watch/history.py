"""How each table stood, and since when: kept in the replica's schema tocsin_check. And how far the replica was behind, for an hour.

One row stands for a stretch in which nothing changed, so that months of audits every 10 seconds stay small.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import structlog
from pydantic import BaseModel

from tocsin import postgres, retry
from tocsin.errors import OperatorError, Unavailable
from tocsin.sql import load_queries
from tocsin_check import sessions
from tocsin_check.watch.report import Report, Status, TableReport

_SQL: Final = load_queries("tocsin_check", "sql/history.sql")
LOOK_EVERY: Final = 2.0
WRITE_EVERY: Final = 30.0
SERVED: Final = 5_000
LAG_KEPT: Final = 3600

log = structlog.get_logger("tocsin.check")


class Stretch(BaseModel):
    """From `since` to `until` the table's status and its drifted rows stayed as they are here; `audits` proofs were made meanwhile."""

    table: str
    since: datetime
    until: datetime
    status: Status
    rows: int | None = None
    missing: int = 0
    extra: int = 0
    different: int = 0
    verified_lsn: str | None = None
    audits: int = 0
    reason: str | None = None

    def same(self, report: TableReport) -> bool:
        return (self.status, self.missing, self.extra, self.different) == (report.status, report.missing, report.extra, report.different)


class LagPoint(BaseModel):
    """The greatest lag, in seconds, of the interval that ends `at`; null where it was not known."""

    at: datetime
    lag_seconds: float | None


class History:
    """`run` belongs into the service's TaskGroup. What is served comes from memory, so it stays there while the replica is away."""

    def __init__(self, replica_url: str, report: Callable[[], Report]) -> None:
        self._replica_url = replica_url
        self._report = report
        self._stretches: deque[Stretch] = deque(maxlen=SERVED)
        self._open: dict[str, Stretch] = {}
        self._ids: dict[str, int] = {}
        self._verified: dict[str, datetime] = {}
        self._loaded = False
        self._lag: deque[tuple[float, float | None]] = deque(maxlen=LAG_KEPT)

    def stretches(self, table: str | None = None, limit: int = 100) -> list[Stretch]:
        """Those that began last come first."""
        found = [s for s in reversed(self._stretches) if table is None or s.table == table]
        return sorted(found, key=lambda s: s.since, reverse=True)[:limit]

    def lag(self, seconds: float, points: int) -> list[LagPoint]:
        """At most `points` of them over the last `seconds`, the oldest first; each is the worst of its share."""
        first = time.time() - seconds
        width = seconds / points
        shares: dict[int, list[float | None]] = {}
        for at, lag in self._lag:
            if at >= first:
                shares.setdefault(int((at - first) / width), []).append(lag)
        return [LagPoint(at=datetime.fromtimestamp(first + (share + 1) * width, UTC), lag_seconds=_worst(lags)) for share, lags in sorted(shares.items())]

    def look(self, report: Report, now: datetime) -> list[Stretch]:
        """Take in how things stand; the stretches that begin with it."""
        begun = []
        for table in report.tables:
            if table.status == "unknown" and table.verified_at is None:
                continue  # not looked at yet
            stretch = self._open.get(table.table)
            if stretch is None or not stretch.same(table):
                counts = table.model_dump(include={"table", "status", "missing", "extra", "different"})
                stretch = Stretch(since=now, until=now, **counts)
                self._open[table.table] = stretch
                self._stretches.append(stretch)
                begun.append(stretch)
            stretch.until, stretch.rows, stretch.verified_lsn, stretch.reason = now, table.rows, table.verified_lsn, table.reason
            if table.verified_at is not None and self._verified.get(table.table) != table.verified_at:
                self._verified[table.table] = table.verified_at
                stretch.audits += 1
        for gone in self._open.keys() - {table.table for table in report.tables}:
            del self._open[gone]
        return begun

    async def run(self) -> None:
        """Look, and write down what changed; where the table is not there or forbidden, only remember it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._keep())

    async def _watch(self) -> None:
        looked = 0.0
        while True:
            report = self._report()
            self._lag.append((time.time(), report.lag_seconds if report.reason is None else None))
            if time.monotonic() - looked >= LOOK_EVERY:
                looked = time.monotonic()
                self.look(report, datetime.now(UTC))
            await asyncio.sleep(1)

    async def _keep(self) -> None:
        async for attempt in retry.forever(*postgres.TRANSIENT, Unavailable, OperatorError, asyncpg.PostgresError):
            with attempt:
                connection = await sessions.open_builder(self._replica_url, sessions.REPLICA_SETTING)
                try:
                    await self._write_on(connection)
                finally:
                    await postgres.close(connection)

    async def _write_on(self, connection: asyncpg.Connection) -> None:
        written = 0.0
        while True:
            if await connection.fetchval(_SQL["exists"]):
                if not self._loaded:
                    self._restore(await connection.fetch(_SQL["newest"], SERVED))
                if time.monotonic() - written >= WRITE_EVERY or self._unwritten():
                    await self._write(connection)
                    written = time.monotonic()
            await asyncio.sleep(LOOK_EVERY)

    def _restore(self, rows: Iterable[Any]) -> None:
        self._loaded = True
        self._stretches.extendleft(reversed([Stretch(**dict(row)) for row in rows]))

    def _unwritten(self) -> bool:
        return any(self._ids.get(_name(s)) is None for s in self._open.values())

    async def _write(self, connection: asyncpg.Connection) -> None:
        async with connection.transaction():
            ids: dict[str, int] = {}
            for s in list(self._open.values()):  # others are looked at meanwhile
                id_ = self._ids.get(_name(s))
                if id_ is not None:
                    await connection.execute(_SQL["go_on"], id_, s.until, s.rows, s.verified_lsn, s.audits, s.reason)
                else:
                    values = (s.table, s.since, s.until, s.status, s.rows, s.missing, s.extra, s.different, s.verified_lsn, s.audits, s.reason)
                    id_ = await connection.fetchval(_SQL["begin"], *values)
                ids[_name(s)] = id_
            await connection.execute(_SQL["forget"])
        self._ids = ids


def _worst(lags: Iterable[float | None]) -> float | None:
    known = list(lags)
    return None if None in known else max(lag for lag in known if lag is not None)


def _name(stretch: Stretch) -> str:
    return f"{stretch.since.isoformat()} {stretch.table}"
