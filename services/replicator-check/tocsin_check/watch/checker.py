"""The checker at work: it keeps its sessions, takes stock, audits what is due, and tells what it found."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import asyncpg
import structlog

from tocsin import postgres, retry
from tocsin.errors import OperatorError, Unavailable
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog import inventory
from tocsin_check.catalog.findings import CounterWatch
from tocsin_check.catalog.table import Comparable, Unauditable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.pulse import Pulse
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.watch import report
from tocsin_check.watch.asked import Asked, Audit
from tocsin_check.watch.auditor import Auditor
from tocsin_check.watch.block_map import BlockMap, BlockReport
from tocsin_check.watch.changes import Changes, Stream
from tocsin_check.watch.incremental import Incremental
from tocsin_check.watch.ledger import REST, Ledger
from tocsin_check.watch.report import Report
from tocsin_check.watch.unfinished import Unfinished

EVERY: Final = timedelta(seconds=10)
SHARE: Final = 0.05
STALE_AFTER: Final = 6
"""A proof is stale once it is older than so many intervals."""
REST_BEFORE_FOLLOWED: Final = 1
"""A full audit may follow at once where it is the last one for long: from it on the event stream tells what to read."""

log = structlog.get_logger("tocsin.check")


class Checker:
    """`run_audits` and `run_pulse` belong into the service's TaskGroup; everything else reads or asks.

    With `changes` and `stream` (tocsin_check.watch.feed) tables whose changes the event stream tells are audited incrementally.
    """

    def __init__(
        self,
        source_url: str,
        replica_url: str,
        *,
        every: timedelta = EVERY,
        pace: Pace | None = None,
        on_audit: Callable[[str, Outcome], None] | None = None,
        publishing: bool = True,
        followed: tuple[Changes, Stream] | None = None,
        exact: bool = False,
        unfinished: Unfinished | None = None,
    ) -> None:
        self._source_url = source_url
        self._replica_url = replica_url
        self._every = every
        self.pace = pace or Pace(share=SHARE)
        self._exact = exact
        self._asked = Asked()
        self._hashable: dict[str, bool] = {}
        self._replication = report.ReplicationReport()
        self._counters = CounterWatch()
        self._pulse = Pulse()
        self._swept = False
        self._trouble: str | None = "the first audit has not begun"
        self._tables: tuple[Comparable | Unauditable, ...] = ()
        self._unfinished = unfinished or Unfinished()
        self.ledger = Ledger()
        self.blocks = BlockMap()
        self.incremental = Incremental(*followed, self.ledger, self.blocks) if followed is not None else None
        self.auditor = Auditor(
            self.ledger,
            self.blocks,
            self.incremental,
            self.pace,
            on_audit=on_audit or (lambda _table, _outcome: None),
            saw=self._pulse.saw,
            publishing=publishing,
            unfinished=self._unfinished,
        )

    @property
    def lag(self) -> float | None:
        """Seconds: the age of the oldest marker that the replica does not show, else what the last one took."""
        return self._pulse.lag

    @property
    def alive(self) -> bool:
        """Whether both servers have answered within the last 10 s and one round is complete."""
        return self._swept and self._pulse.alive

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
        checked = max((entry.checked for t in tables if (entry := self.ledger.get(t.table)) and entry.checked), default=None)
        status = report.overall(tables, self._replication.findings)
        return Report(status=status, checked_at=checked, lag_seconds=self.lag, reason=self._trouble, replication=self._replication, tables=tables)

    def block_reports(self, name: str) -> list[BlockReport]:
        """The map of a table's blocks, with what changed since they were read."""
        table = next((t for t in self._tables if str(t.name) == name and isinstance(t, Comparable)), None)
        entry = self.ledger.get(name)
        dirty = self.incremental.changed_keys(table) if self.incremental is not None and isinstance(table, Comparable) else []
        return self.blocks.blocks(name, dirty, entry.rows if entry is not None else ())

    def ask(self, tables: tuple[str, ...] | None) -> Audit:
        """Queue an audit; it comes before what is due."""
        return self._asked.add(tables)

    def audits(self) -> list[Audit]:
        """Those that were asked for, the newest first."""
        return self._asked.all()

    def audit(self, id_: str) -> Audit | None:
        return self._asked.get(id_)

    async def run_pulse(self) -> None:
        """Measure the lag every second, on sessions of its own."""
        async for attempt in self._forever():
            with attempt:
                async with open_sides(self._source_url, self._replica_url) as sides:
                    await self._pulse.run(sides)

    async def run_audits(self) -> None:
        """Audit without end. A lost server is waited for; what was asked for meanwhile is done when it is back."""
        while True:
            async for attempt in self._forever():
                with attempt:
                    await self._session()

    def _forever(self) -> Any:
        return retry.forever(*postgres.TRANSIENT, asyncpg.PostgresError, Unavailable, OperatorError, on_retry=self._on_trouble)

    def _on_trouble(self, attempt: int, error: BaseException | None, pause: float) -> None:
        text = str(error) or type(error).__name__
        self._trouble = f"{text}; {error.fix}" if isinstance(error, OperatorError) else text
        self._pulse.lost()
        if attempt in (1, 5) or attempt % 60 == 0:
            log.warning("can't check", reason=self._trouble, attempt=attempt, pause=round(pause, 2))

    async def run_unfinished(self) -> None:
        """Keep what is under way for the next process."""
        await self._unfinished.run(self._asked)

    async def _session(self) -> None:
        await self._unfinished.loaded.wait()
        async with open_sides(self._source_url, self._replica_url) as sides:
            await self._unfinished.meet(sides)
            while True:
                tables = await self._stock_or_last(sides)
                await self._serve_asked(sides, tables)
                with contextlib.suppress(Lagging):
                    await self._one_round(sides, [table for table in tables if isinstance(table, Comparable)])
                self._swept = True
                await self._pause()

    async def _stock_or_last(self, sides: Sides) -> tuple[Comparable | Unauditable, ...]:
        """One table that somebody keeps locked does not end the audits of all others: they go on as they were known."""
        try:
            return await self.take_stock(sides)
        except inventory.Held as held:
            if not self._tables:
                raise
            log.warning("what is replicated can't be read anew", reason=str(held), fix=held.fix)
            return self._tables

    async def _one_round(self, sides: Sides, tables: list[Comparable]) -> None:
        moment = report.now()
        for table in tables:
            if self.incremental is not None and self.incremental.obstacle(table) is None:
                await self.auditor.audit_part(sides, table, self.incremental)
            elif self.ledger.due(str(table.name), moment, self._every, rest=self._rest_of(table)):
                await self.auditor.audit_table(sides, table, begun=self._unfinished.begun(table))
            if self._asked:
                return

    def _rest_of(self, table: Comparable) -> int:
        return REST_BEFORE_FOLLOWED if self.incremental is not None and self.incremental.awaits_whole(table) else REST

    async def _pause(self) -> None:
        self._asked.arrived.clear()
        if self._asked:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._every.total_seconds(), 5.0)):
                await self._asked.arrived.wait()

    async def take_stock(self, sides: Sides) -> tuple[Comparable | Unauditable, ...]:
        """Read both catalogs; afterwards the report has the findings, and an entry for each replicated table.

        Raises inventory.Held where somebody keeps a table locked, which PostgreSQL opens to say what is published.
        """
        try:
            taken = await inventory.take(sides.source, sides.replica, self._hashable, exact=self._exact)
        except asyncpg.LockNotAvailableError as error:
            raise await inventory.held(sides) from error
        self._trouble = None
        self._replication = report.replication_report(taken.facts, self._counters.look(taken.facts, time.monotonic()))
        self._tables = taken.tables
        self.ledger.keep(str(table.name) for table in taken.tables)
        for table in taken.tables:
            if isinstance(table, Unauditable):
                self.ledger.set_status(str(table.name), "pending" if table.pending else "unauditable", table.reason)
        if self.incremental is not None:
            await self.incremental.look(sides)
            for table in taken.tables:
                if isinstance(table, Comparable):
                    self.incremental.stock(table)
                else:
                    self.incremental.cut_off(str(table.name))
        return taken.tables

    async def _serve_asked(self, sides: Sides, tables: tuple[Comparable | Unauditable, ...]) -> None:
        while (audit := self._asked.next()) is not None:
            chosen = [t for t in tables if isinstance(t, Comparable) and (audit.tables is None or str(t.name) in audit.tables)]
            audit.status, audit.total, audit.done = "running", len(chosen), len(audit.did)
            try:
                for table in (table for table in chosen if str(table.name) not in audit.did):
                    audit.table = str(table.name)

                    async def on_block(outcome: Outcome, *, audit: Audit = audit, before: int = audit.rows) -> None:
                        audit.rows = before + outcome.rows

                    await self.auditor.audit_table(sides, table, on_block, self._unfinished.begun(table, audit.asked))
                    audit.did.append(str(table.name))
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
