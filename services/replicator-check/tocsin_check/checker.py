"""The checker at work: it keeps its sessions, takes stock, audits what is due, and tells what it found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal

import asyncpg
import structlog

from tocsin import postgres, retry
from tocsin.errors import OperatorError, Unavailable
from tocsin_check import inventory, report, sessions
from tocsin_check.audit import OnBlock, Outcome, Sides, TableAudit
from tocsin_check.block_map import BlockMap
from tocsin_check.fence import Fence, Lagging
from tocsin_check.findings import CounterWatch
from tocsin_check.ledger import Ledger
from tocsin_check.report import Report
from tocsin_check.table import Comparable, Unauditable

EVERY: Final = timedelta(seconds=10)
PULSE: Final = 1.0
PATIENCE: Final = 5.0
SHARE: Final = 0.25
STALE_AFTER: Final = 6
"""A proof is stale once it is older than so many intervals."""
_FORGOTTEN_AFTER: Final = 100

log = structlog.get_logger("tocsin.check")

_ONE_TABLE: Final = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedObjectError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.DataError,
)
"""What concerns one table and not the session: changed, dropped, locked or forbidden during its audit."""


@dataclass(slots=True)
class Audit:
    """An audit that somebody asked for; `tables` is None for all."""

    id: str
    tables: tuple[str, ...] | None
    status: Literal["queued", "running", "done", "failed"] = "queued"
    done: int = 0
    total: int = 0
    table: str | None = None
    rows: int = 0
    error: str | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def open_sides(source_url: str, replica_url: str) -> AsyncIterator[Sides]:
    """Sessions of their own and a fence over them. Raises OperatorError, Unavailable."""
    opened: list[asyncpg.Connection] = []
    try:
        opened.append(await sessions.open_reader(source_url, sessions.SOURCE_SETTING))
        opened.append(await sessions.open_reader(replica_url, sessions.REPLICA_SETTING))
        opened.append(await sessions.open_marker(source_url))
        source, replica, marker = opened
        fence = Fence(marker, source, replica)
        try:
            yield Sides(source, replica, fence)
        finally:
            await fence.forget()
    finally:
        for connection in opened:
            await postgres.close(connection)


class Checker:
    """`run_audits` and `run_pulse` belong into the service's TaskGroup; everything else reads or asks."""

    def __init__(
        self,
        source_url: str,
        replica_url: str,
        *,
        every: timedelta = EVERY,
        share: float = SHARE,
        on_audit: Callable[[str, Outcome], None] | None = None,
        publishing: bool = True,
    ) -> None:
        self._source_url = source_url
        self._replica_url = replica_url
        self._every = every
        self._share = share
        self._on_audit = on_audit or (lambda _table, _outcome: None)
        self._publishing = publishing
        self._asked = asyncio.Event()
        self._queue: list[Audit] = []
        self._audits: dict[str, Audit] = {}
        self._hashable: dict[str, bool] = {}
        self._replication = report.ReplicationReport()
        self._counters = CounterWatch()
        self._waiting_since: float | None = None
        self._last_lag: float | None = None
        self._beat: float | None = None
        self._swept = False
        self._trouble: str | None = "the first audit has not begun"
        self.ledger = Ledger()
        self.blocks = BlockMap()

    @property
    def lag(self) -> float | None:
        """Seconds: the age of the oldest marker that the replica does not show, else what the last one took."""
        if self._waiting_since is not None:
            return max(time.monotonic() - self._waiting_since, self._last_lag or 0.0)
        return self._last_lag

    @property
    def alive(self) -> bool:
        """Whether both servers have answered within the last 10 s and one sweep is complete."""
        return self._swept and self._beat is not None and time.monotonic() - self._beat < 10

    @property
    def trouble(self) -> str | None:
        return self._trouble

    def report(self) -> Report:
        moment = report.now()
        reachable = self._trouble is None
        tables = [
            report.aged(
                table,
                now=moment,
                lag=self.lag,
                reachable=reachable,
                reason=self._trouble,
                stale_after=STALE_AFTER * self.ledger.interval(table.table, self._every),
            )
            for table in self.ledger.reports()
        ]
        checked = max((entry.audited for t in tables if (entry := self.ledger.get(t.table)) and entry.audited), default=None)
        status = report.overall(tables, self._replication.findings)
        return Report(status=status, checked_at=checked, lag_seconds=self.lag, reason=self._trouble, replication=self._replication, tables=tables)

    def ask(self, tables: tuple[str, ...] | None) -> Audit:
        """Queue an audit; it comes before what is due."""
        audit = Audit(secrets.token_hex(6), tables)
        self._audits[audit.id] = audit
        for old in list(self._audits)[:-_FORGOTTEN_AFTER]:
            del self._audits[old]
        self._queue.append(audit)
        self._asked.set()
        return audit

    def audits(self) -> list[Audit]:
        """Those that were asked for, the newest first."""
        return list(reversed(self._audits.values()))

    def audit(self, id_: str) -> Audit | None:
        return self._audits.get(id_)

    async def run_pulse(self) -> None:
        """Measure the lag every second, on sessions of its own, so that a long audit does not hide it."""
        async for attempt in self._forever():
            with attempt:
                async with open_sides(self._source_url, self._replica_url) as sides:
                    while True:
                        await self._one_beat(sides)
                        await asyncio.sleep(PULSE)

    async def run_audits(self) -> None:
        """Audit without end. A lost server is waited for; what was asked for meanwhile is done when it is back."""
        while True:
            async for attempt in self._forever():
                with attempt:
                    await self._session()

    def _forever(self) -> Any:
        return retry.forever(*postgres.TRANSIENT, Unavailable, OperatorError, on_retry=self._on_trouble)

    def _on_trouble(self, attempt: int, error: BaseException | None, pause: float) -> None:
        text = str(error) or type(error).__name__
        self._trouble = f"{text}; {error.fix}" if isinstance(error, OperatorError) else text
        self._waiting_since = None
        if attempt in (1, 5) or attempt % 60 == 0:
            log.warning("can't check", reason=self._trouble, attempt=attempt, pause=round(pause, 2))

    async def _one_beat(self, sides: Sides) -> None:
        try:
            mark = await sides.fence.mark()
        except asyncpg.UndefinedTableError:
            self._beat = time.monotonic()  # no marker table yet; the report says what to do
            return
        self._waiting_since = self._waiting_since or mark.written
        while True:
            self._beat = time.monotonic()
            try:
                await sides.fence.arrived(mark, mark.age + PULSE)
            except Lagging:
                continue
            self._waiting_since, self._last_lag = None, sides.fence.lag
            return

    async def _session(self) -> None:
        async with open_sides(self._source_url, self._replica_url) as sides:
            while True:
                tables = await self.take_stock(sides)
                await self._serve_asked(sides, tables)
                moment = report.now()
                due = [t for t in tables if isinstance(t, Comparable) and self.ledger.due(str(t.name), moment, self._every)]
                with contextlib.suppress(Lagging):
                    for table in due:
                        await self.audit_table(sides, table)
                        if self._queue:
                            break
                self._swept = True
                await self._pause()

    async def _pause(self) -> None:
        self._asked.clear()
        if self._queue:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._every.total_seconds(), 5.0)):
                await self._asked.wait()

    async def take_stock(self, sides: Sides) -> tuple[Comparable | Unauditable, ...]:
        """Read both catalogs; afterwards the report has the findings, and an entry for each replicated table."""
        taken = await inventory.take(sides.source, sides.replica, self._hashable)
        self._trouble = None
        self._replication = report.replication_report(taken.facts, self._counters.look(taken.facts, time.monotonic()))
        self.ledger.keep(str(table.name) for table in taken.tables)
        for table in taken.tables:
            if isinstance(table, Unauditable):
                self.ledger.set_status(str(table.name), "pending" if table.pending else "unauditable", table.reason)
        return taken.tables

    async def _serve_asked(self, sides: Sides, tables: tuple[Comparable | Unauditable, ...]) -> None:
        while self._queue:
            audit = self._queue.pop(0)
            chosen = [t for t in tables if isinstance(t, Comparable) and (audit.tables is None or str(t.name) in audit.tables)]
            audit.status, audit.total = "running", len(chosen)
            try:
                for table in chosen:
                    audit.table = str(table.name)

                    async def on_block(outcome: Outcome, *, audit: Audit = audit, before: int = audit.rows) -> None:
                        audit.rows = before + outcome.rows

                    await self.audit_table(sides, table, on_block)
                    audit.done += 1
                audit.status = "done"
            except Lagging as lagging:
                audit.status, audit.error = "failed", str(lagging)
            except BaseException as error:
                audit.status, audit.error = "failed", str(error) or type(error).__name__
                raise
            finally:
                audit.table = None
                audit.finished.set()

    async def audit_table(self, sides: Sides, table: Comparable, on_block: OnBlock | None = None) -> None:
        """One audit; its result stands in the ledger, and news goes into the event stream. Raises Lagging, and what ends the session."""
        name = str(table.name)
        begun = time.monotonic()
        try:
            outcome = await TableAudit(sides, table, patience=PATIENCE, share=self._share, on_block=self.blocks.following(name, on_block)).run()
        except Lagging as lagging:
            self.ledger.set_status(name, "lagging", str(lagging))
            raise
        except _ONE_TABLE as error:
            if sides.source.is_closed() or sides.replica.is_closed():
                raise
            self.ledger.set_status(name, "unauditable", f"it could not be read: {error}")
            return
        if self._waiting_since is None:
            self._last_lag = sides.fence.lag
        self.blocks.complete(name)
        news = self.ledger.proven(table, outcome, time.monotonic() - begun)
        self._on_audit(name, outcome)
        if news is not None and self._publishing:
            log.info(
                "drift" if news["status"] == "drift" else "drift is gone", table=name, missing=news["missing"], extra=news["extra"], different=news["different"]
            )
            await publish(sides.fence, table, news)


async def publish(fence: Fence, table: Comparable, news: dict[str, Any]) -> None:
    """Into the source's journal by tocsin.report_drift, where Tocsin is installed; from there the listener carries it."""
    try:
        await fence.report(table.name.schema, table.name.name, json.dumps(news))
    except asyncpg.InsufficientPrivilegeError as error:
        log.warning("the finding is not published", reason=str(error), fix="GRANT EXECUTE ON FUNCTION tocsin.report_drift TO the checker's user")
