"""Audits of single tables: what came of each stands in the ledger, and news goes into the event stream."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import structlog

from tocsin import postgres
from tocsin_check.auditing.audit import OnBlock, TableAudit
from tocsin_check.auditing.outcome import Changed, Outcome
from tocsin_check.catalog import inventory
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Fence, Lagging
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import Sides
from tocsin_check.watch.block_map import BlockMap
from tocsin_check.watch.incremental import AuditOf, Incremental
from tocsin_check.watch.ledger import Ledger
from tocsin_check.watch.report import Status
from tocsin_check.watch.unfinished import Unfinished

PATIENCE: Final = 5.0

_NEEDS_A_KEY: Final = (
    "without a key it has to be read in one statement, and that takes longer than the time-out of a minute; "
    "give it one on both sides: ALTER TABLE … ADD PRIMARY KEY (…)"
)

log = structlog.get_logger("tocsin.check")


class Auditor:
    """`on_audit` and `saw` are called after each audit, with its outcome and with the lag that its last fence measured."""

    def __init__(
        self,
        ledger: Ledger,
        blocks: BlockMap,
        incremental: Incremental | None,
        pace: Pace,
        *,
        on_audit: Callable[[str, Outcome], None],
        saw: Callable[[float | None], None],
        publishing: bool,
        unfinished: Unfinished,
    ) -> None:
        self._ledger = ledger
        self._blocks = blocks
        self._incremental = incremental
        self._pace = pace
        self._on_audit = on_audit
        self._saw = saw
        self._publishing = publishing
        self._unfinished = unfinished

    async def audit_table(self, sides: Sides, table: Comparable, on_block: OnBlock | None = None, begun: Outcome | None = None) -> None:
        """One full audit, or the rest of one that was `begun`; its result stands in the ledger, and news goes into the event stream.

        Raises Lagging, and what ends the session.
        """
        name = str(table.name)
        started = time.monotonic()
        complete = False
        if self._incremental is not None and begun is None:
            # What changed before an audit goes on is not known, so that only one from the beginning lets the table be followed.
            self._incremental.full_begins(name)

        async def noted(outcome: Outcome) -> None:
            self._unfinished.note(table, outcome)
            self._ledger.under_way(name, outcome.rows)
            if on_block is not None:
                await on_block(outcome)

        try:
            async with self._one_table(sides, table):
                outcome = await self.audit_of(sides)(table, self._blocks.following(name, noted, begun=begun)).run(begun)
                self._blocks.complete(name)
                self._unfinished.forget(name)
                seconds = time.monotonic() - started if begun is None else (datetime.now(UTC) - outcome.started).total_seconds()
                news = self._ledger.proven(table, outcome, seconds)
                self._took(sides, name, outcome)
                complete = True
                await self._tell(sides, table, news)
        finally:
            if not complete and self._incremental is not None:
                self._incremental.full_failed(name)

    async def audit_again(self, sides: Sides, table: Comparable, *, whole: bool) -> None:
        """Look at the rows that had drifted once more, or at the whole table. Raises as audit_table."""
        if whole:
            await self.audit_table(sides, table)
            return
        name = str(table.name)
        entry = self._ledger.get(name)
        async with self._one_table(sides, table):
            outcome = await self.audit_of(sides)(table, None).run_keys(entry.known() if entry is not None else [])
            await self._tell(sides, table, self._ledger.judged(table, outcome, None))

    async def audit_part(self, sides: Sides, table: Comparable, incremental: Incremental) -> None:
        """What changed, and a slice of what did not. Raises Lagging, and what ends the session."""

        def took(name: str, outcome: Outcome) -> None:
            self._took(sides, name, outcome)

        async with self._one_table(sides, table):
            for part in (incremental.audit_changes, incremental.sweep):
                await self._tell(sides, table, await part(table, self.audit_of(sides), took))
            incremental.stock(table)

    def audit_of(self, sides: Sides) -> AuditOf:
        """How a table is audited at this checker's pace."""
        return lambda table, on_block: TableAudit(sides, table, patience=PATIENCE, pace=self._pace, on_block=on_block)

    def _took(self, sides: Sides, name: str, outcome: Outcome) -> None:
        self._saw(sides.fence.lag)
        self._ledger.checked(name, outcome.started)
        self._on_audit(name, outcome)

    @contextlib.asynccontextmanager
    async def _one_table(self, sides: Sides, table: Comparable) -> AsyncIterator[None]:
        """What concerns this table alone becomes its status. Raises Lagging, and what ends the session."""
        name = str(table.name)
        try:
            yield
        except Lagging as lagging:
            self._ledger.set_status(name, "lagging", str(lagging))
            raise
        except Changed as changed:
            self._unfinished.forget(name)
            self._ledger.set_status(name, "pending", str(changed))
        except asyncpg.PostgresError as error:
            # Changed, dropped, locked, forbidden or damaged: that concerns this table and not the session.
            if isinstance(error, postgres.TRANSIENT) or sides.source.is_closed() or sides.replica.is_closed():
                raise
            self._ledger.set_status(name, *await _obstacle(sides, table, error))

    async def _tell(self, sides: Sides, table: Comparable, news: dict[str, Any] | None) -> None:
        if news is None or not self._publishing:
            return
        what = "drift" if news["status"] == "drift" else "drift is gone"
        log.info(what, table=str(table.name), missing=news["missing"], extra=news["extra"], different=news["different"])
        await publish(sides.fence, table, news)


async def _obstacle(sides: Sides, table: Comparable, error: asyncpg.PostgresError) -> tuple[Status, str]:
    """Why a table could not be read, and whether that passes by itself."""
    if isinstance(error, asyncpg.LockNotAvailableError):
        locked = await inventory.held(sides, table.name)
        return "pending", f"{locked}; {locked.fix}"
    if await inventory.stamps(sides, table.name) != table.stamps:
        return "pending", str(Changed())
    if isinstance(error, asyncpg.QueryCanceledError) and not table.source.unique:
        return "unauditable", _NEEDS_A_KEY
    return "unauditable", f"it could not be read: {error}"


async def publish(fence: Fence, table: Comparable, news: dict[str, Any]) -> None:
    """Into the source's journal by tocsin.report_drift, where Tocsin is installed; from there the listener carries it."""
    try:
        await fence.report(table.name.schema, table.name.name, json.dumps(news))
    except asyncpg.InsufficientPrivilegeError as error:
        log.warning("the finding is not published", reason=str(error), fix="GRANT EXECUTE ON FUNCTION tocsin.report_drift TO the checker's user")
