"""Between full audits: reads again what the event stream shows as changed, and the rest little by little."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import asyncpg

from tocsin.sql import load_queries
from tocsin_check.auditing.audit import OnBlock, TableAudit
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.verdict import Key
from tocsin_check.watch.block_map import BlockMap
from tocsin_check.watch.changes import Changes, EventKey, Moment, Stream, key_of
from tocsin_check.watch.ledger import Entry, Ledger
from tocsin_check.watch.report import Proof, now

_SQL: Final = load_queries("tocsin_check", "sql/changes.sql")
SMALL: Final = 25_000
"""Rows that one look reads as fast as it reads changed keys."""
MANY_DRIFTED: Final = 20_000
SWEEP_SHARE: Final = 0.25
"""Of the time: with the pace of an audit, a share of 0.05, a sweep takes about 1.25 % of one backend."""
SLICE: Final = 2.0
_LONGEST_REST: Final = 3600.0
_NO_LISTENER: Final = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError)

AuditOf = Callable[[Comparable, OnBlock | None], TableAudit]
News = dict[str, Any] | None
OnOutcome = Callable[[str, Outcome], None]


@dataclass(slots=True)
class _Sweep:
    """`next` is where the next slice begins, and when it may, by time.monotonic."""

    started: datetime
    position: str
    next: Key | None = None
    due: float = 0.0
    rows: int = 0
    seconds: float = 0.0


class Incremental:
    """Audits parts of tables whose every change the event stream tells. `look` first, once a turn."""

    def __init__(self, changes: Changes, stream: Stream, ledger: Ledger, blocks: BlockMap) -> None:
        self._changes = changes
        self._stream = stream
        self._ledger = ledger
        self._blocks = blocks
        self._told: Moment | None = None
        self._sweeps: dict[str, _Sweep] = {}
        self._shapes: dict[str, Comparable] = {}

    async def look(self, sides: Sides) -> None:
        """Which tables are followed, and up to which moment the stream has told everything."""
        self._told = None
        try:
            watches = {f"{row['schema']}.{row['name']}": row["watch"] for row in await sides.source.fetch(_SQL["watched"])}
            position = await sides.fence.position()
            moment = Moment(await sides.source.fetchval(_SQL["snapshot"]), position, now())
            reached = await sides.source.fetchval(_SQL["reached"])
        except _NO_LISTENER:
            self._changes.watched({})
            return
        self._changes.watched(watches)
        self._changes.mark(moment)
        # In this order: what the cursor covers is in the stream by now, and what the stream has by now is then noted.
        if reached is not None and await self._stream.arrived():
            self._told = self._changes.told(reached)

    def obstacle(self, table: Comparable) -> str | None:
        """Why the table is read wholly each time; None where changed keys and a sweep do."""
        name = str(table.name)
        entry = self._ledger.get(name)
        if not table.source.unique or not all(part.own for part in table.source.key):
            return "its key is none that an event names"
        if (reason := self._changes.obstacle(name)) is not None:
            return reason
        if entry is None or entry.whole is None:
            return "it was not read wholly yet"
        if (entry.report.rows or 0) <= SMALL:
            return "it is small enough to be read wholly each time"
        drifted = entry.report.missing + entry.report.extra + entry.report.different
        return "too many of its rows have drifted" if drifted + len(entry.open) > MANY_DRIFTED else None

    def awaits_whole(self, table: Comparable) -> bool:
        """Whether one full audit from now on would spare the next ones."""
        entry = self._ledger.get(str(table.name))
        large = entry is not None and (entry.report.rows or 0) > SMALL
        return large and table.source.unique and all(part.own for part in table.source.key) and self._changes.awaits_whole(str(table.name))

    def stock(self, table: Comparable) -> None:
        """Note in the report whether the table is followed."""
        name, entry = str(table.name), self._ledger.get(str(table.name))
        if entry is None:
            return
        if self._shapes.setdefault(name, table) != table:
            # A new column's values or a rewritten table come without events.
            self._changes.spoil(name, "its columns have changed")
            self._sweeps.pop(name, None)
            self._shapes[name] = table
        obstacle = self.obstacle(table)
        sweep = self._sweeps.get(name)
        swept = min(1.0, sweep.rows / entry.report.rows) if sweep and entry.report.rows and obstacle is None else None
        dirty = self._changes.dirty(name) if obstacle is None else None
        entry.report = entry.report.model_copy(update={"dirty": dirty, "unfollowed": obstacle, "swept": swept})

    def cut_off(self, name: str) -> None:
        """Changes may not reach the replica now, or the table is not what it was: what was proven is of no use for the keys that change."""
        self._changes.spoil(name, "it could not be audited for a while")
        self._sweeps.pop(name, None)

    def full_begins(self, name: str) -> None:
        self._changes.whole_begins(name)
        self._sweeps.pop(name, None)

    def full_failed(self, name: str) -> None:
        self._changes.spoil(name, "its last full audit did not come to its end")

    def changed_keys(self, table: Comparable) -> list[Key]:
        """What waits to be read, for the map of blocks."""
        keys = (key_of(table.source.key, key) for key in self._changes.keys(str(table.name)))
        return [key for key in keys if key is not None]

    async def audit_changes(self, table: Comparable, audit_of: AuditOf, on_outcome: OnOutcome) -> News:
        """Judge the changed keys, and those that had drifted or were open. Raises what TableAudit.run_keys raises."""
        name, told = str(table.name), self._told
        entry = self._ledger.get(name)
        assert entry is not None
        taken = self._changes.take(name)
        done = False
        try:
            keys = self._keys(table, taken, entry)
            if keys is None:
                return None
            outcome = await audit_of(table, None).run_keys(keys) if keys else None
            done = True
        except asyncpg.DataError:
            self._changes.spoil(name, "an event has a key that the table can't have")
            return None
        finally:
            if not done:
                self._changes.put_back(name, taken)
        proof = None
        if told is not None and told.at > entry.followed_until:
            proof = Proof(by="incremental", at=told.at, lsn=told.position, rows=outcome.rows if outcome else 0)
        if outcome is None:
            if proof is not None:
                self._ledger.confirmed(name, proof)
            return None
        on_outcome(name, outcome)
        return self._ledger.judged(table, outcome, proof if not outcome.pending else None)

    def _keys(self, table: Comparable, taken: list[EventKey], entry: Entry) -> list[Key] | None:
        keys = []
        for event_key in taken:
            key = key_of(table.source.key, event_key)
            if key is None:
                self._changes.spoil(str(table.name), "its events have another key than the one that is compared")
                return None
            keys.append(key)
        return list(dict.fromkeys([*keys, *entry.known()]))

    async def sweep(self, table: Comparable, audit_of: AuditOf, on_outcome: OnOutcome) -> News:
        """Read the next slice of the table, where its turn has come. Raises what TableAudit.run_from raises."""
        name = str(table.name)
        sweep = self._sweeps.get(name)
        if sweep is None:
            sweep = self._sweeps[name] = self._begun(name)
        if time.monotonic() < sweep.due:
            return None
        begun = time.monotonic()
        on_block = self._blocks.following(name, None, from_row=sweep.rows)
        outcome = await audit_of(table, on_block).run_from(sweep.next, SLICE)
        if sweep.next is None:
            sweep.started, sweep.position = outcome.started, outcome.position
        seconds = time.monotonic() - begun
        sweep.rows, sweep.seconds, sweep.next = sweep.rows + outcome.rows, sweep.seconds + seconds, outcome.reached
        sweep.due = time.monotonic() + seconds * (1 / SWEEP_SHARE - 1)
        on_outcome(name, outcome)
        proof = None
        if outcome.reached is None:
            self._blocks.complete(name)
            proof = Proof(by="sweep", at=sweep.started, lsn=sweep.position, rows=sweep.rows)
            self._sweeps[name] = replace(self._begun(name), due=sweep.due)
        return self._ledger.judged(table, outcome, proof, sweep.seconds)

    def _begun(self, name: str) -> _Sweep:
        """A full audit has just read everything; the first slice comes after the pause that it has earned."""
        entry = self._ledger.get(name)
        rest = entry.seconds * (1 / SWEEP_SHARE - 1) if entry is not None and entry.report.verified_by == "full" else 0.0
        return _Sweep(now(), "0/0", due=time.monotonic() + min(rest, _LONGEST_REST))
