"""Audits that have not come to their end: noted block by block, so that they go on where they were after a restart.

The service keeps them in the replica's table tocsin_check.unfinished, beside its history; `tocsin drift --state` keeps its own in a file.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import asyncpg
import structlog
from pydantic import BaseModel, ValidationError

from tocsin import postgres, retry
from tocsin.errors import OperatorError, Unavailable
from tocsin.sql import load_queries
from tocsin_check import sessions
from tocsin_check.auditing.outcome import CASES_KEPT, Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.verdict import Case, Stage, Verdict
from tocsin_check.watch.asked import Asked, Audit

_SQL: Final = load_queries("tocsin_check", "sql/unfinished.sql")
WRITE_EVERY: Final = 2.0
MOST_CASES: Final = 10_000
"""Rows that a note names, so that it stays small; its counts are of all."""

log = structlog.get_logger("tocsin.check")


class KeptCase(BaseModel):
    """A row that was judged."""

    key: list[str]
    verdict: Verdict
    count: int
    columns: list[str]
    reason: str


class Begun(BaseModel):
    """An audit that has not come to its end. `shape` tells whether the table is still compared in the same way, between the same databases."""

    shape: str
    started: datetime
    position: str
    rows: int
    blocks: int
    reached: list[str]
    counts: dict[Verdict, int]
    cases: list[KeptCase]

    def outcome(self) -> Outcome:
        """To go on with it."""
        outcome = Outcome(self.started, self.position, self.rows, self.blocks, reached=tuple(self.reached))
        for kept in self.cases:
            case = Case(tuple(kept.key), Stage.DONE, kept.verdict, kept.reason, kept.count, columns=tuple(kept.columns))
            (outcome.pending if kept.verdict is Verdict.PENDING else outcome.drifted).append(case)
        outcome.counts = Counter(self.counts)
        return outcome


class KeptAudit(BaseModel):
    """An audit that somebody asked for; `did` are the tables that it is done with."""

    tables: list[str] | None
    asked: datetime
    did: list[str]


@dataclass(frozen=True, slots=True)
class Reached:
    """How far an audit was after a block. The outcome goes on changing within the next one; its lists only grow."""

    table: Comparable
    outcome: Outcome
    then: Outcome
    cases: tuple[int, int]
    pair: str

    @staticmethod
    def of(table: Comparable, outcome: Outcome, pair: str = "", most: int = CASES_KEPT) -> Reached:
        """The first `most` drifted rows by key."""
        return Reached(table, outcome, replace(outcome, counts=Counter(outcome.counts)), (min(len(outcome.drifted), most), len(outcome.pending)), pair)

    def begun(self) -> Begun:
        drifted, pending = self.cases
        assert self.then.reached is not None
        cases = [
            KeptCase(key=list(case.key), verdict=case.verdict, count=case.count, columns=list(case.columns), reason=case.reason)
            for case in (*self.outcome.drifted[:drifted], *self.outcome.pending[:pending])
            if case.verdict is not None
        ]
        return Begun(
            shape=shape_of(self.table, self.pair),
            started=self.then.started,
            position=self.then.position,
            rows=self.then.rows,
            blocks=self.then.blocks,
            reached=list(self.then.reached),
            counts=dict(self.then.counts),
            cases=cases,
        )


def shape_of(table: Comparable, pair: str = "") -> str:
    return hashlib.sha256(f"{pair} {table!r}".encode()).hexdigest()


class Unfinished:
    """What is under way. Without a URL it is remembered in this process alone; with one, `run` belongs into the service's TaskGroup.

    `loaded` is set once it is known what an earlier process left.
    """

    def __init__(self, replica_url: str | None = None) -> None:
        self._replica_url = replica_url
        self._begun: dict[str, Begun | Reached] = {}
        self._written: dict[str, object] = {}
        self._pair = ""
        self.loaded = asyncio.Event()
        if replica_url is None:
            self.loaded.set()

    async def meet(self, sides: Sides) -> None:
        """Nothing goes on between other databases, nor after one was restored or promoted: what was read may be gone."""
        self._pair = " ".join([str(await side.fetchval(_SQL["identity"])) for side in (sides.source, sides.replica)])

    def begun(self, table: Comparable, since: datetime | None = None) -> Outcome | None:
        """Where an audit of the table stopped, if it was begun after `since`; None where it has to be read from its beginning."""
        kept = self._begun.get(str(table.name))
        if kept is None:
            return None
        begun = kept.begun() if isinstance(kept, Reached) else kept
        return begun.outcome() if begun.shape == shape_of(table, self._pair) and (since is None or begun.started >= since) else None

    def note(self, table: Comparable, outcome: Outcome) -> None:
        """After a block. Where too many rows are pending, each of which has to be named, the audit would go on where it was before."""
        if outcome.reached is None:
            self.forget(str(table.name))
        elif len(outcome.pending) <= MOST_CASES:
            self._begun[str(table.name)] = Reached.of(table, outcome, self._pair, MOST_CASES)

    def forget(self, name: str) -> None:
        """The audit of the table has come to its end."""
        self._begun.pop(name, None)

    async def run(self, asked: Asked) -> None:
        """Read what an earlier process left, and write down what changes; where the table is not there or forbidden, do without."""
        assert self._replica_url is not None
        async for attempt in retry.forever(*postgres.TRANSIENT, Unavailable, OperatorError, asyncpg.PostgresError):
            with attempt:
                connection = await sessions.open_builder(self._replica_url, sessions.REPLICA_SETTING)
                try:
                    await self._keep(connection, asked)
                finally:
                    await postgres.close(connection)

    async def _keep(self, connection: asyncpg.Connection, asked: Asked) -> None:
        while True:
            if await connection.fetchval(_SQL["exists"]):
                if not self.loaded.is_set():
                    self._restore(await connection.fetch(_SQL["left"]), asked)
                await self._write(connection, asked)
            self.loaded.set()
            await asyncio.sleep(WRITE_EVERY)

    def _restore(self, rows: Iterable[asyncpg.Record], asked: Asked) -> None:
        for row in rows:
            kind, _, name = row["what"].partition(" ")
            self._written[row["what"]] = None
            try:
                if kind == "table":
                    self._begun[name] = Begun.model_validate_json(row["state"])
                elif kind == "asked":
                    kept = KeptAudit.model_validate_json(row["state"])
                    asked.restore(Audit(name, tuple(kept.tables) if kept.tables is not None else None, asked=kept.asked, did=kept.did))
            except ValidationError:
                continue  # another version wrote it; `_write` removes it
            log.info("goes on with an audit that was under way", what=row["what"])

    async def _write(self, connection: asyncpg.Connection, asked: Asked) -> None:
        now: dict[str, tuple[object, BaseModel]] = {}
        for name, kept in self._begun.items():
            now[f"table {name}"] = (kept, kept.begun() if isinstance(kept, Reached) else kept)
        for audit in asked.open():
            state = KeptAudit(tables=list(audit.tables) if audit.tables is not None else None, asked=audit.asked, did=audit.did)
            now[f"asked {audit.id}"] = (len(audit.did), state)
        gone = self._written.keys() - now.keys()
        changed = [what for what, (mark, _) in now.items() if self._written.get(what) is not mark and self._written.get(what) != mark]
        if gone or changed:
            async with connection.transaction():
                await connection.execute(_SQL["forget"], list(gone))
                for what in changed:
                    await connection.execute(_SQL["note"], what, now[what][1].model_dump_json())
            self._written = {what: mark for what, (mark, _) in now.items()}
