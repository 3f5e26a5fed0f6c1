"""Audits one table: by blocks of keys, each under a fence; what differs is judged row by row."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import asyncpg

from tocsin_check.fence import Fence, Mark, Unsettled
from tocsin_check.reading import Reading
from tocsin_check.table import Comparable
from tocsin_check.verdict import DRIFT, Case, Key, Seen, Stage, Verdict, Version, at, same_values

FIRST_BLOCK: Final = 20_000
LARGEST_BLOCK: Final = 1_000_000
SECONDS_PER_BLOCK: Final = 0.35
LISTED: Final = 2_000
"""A block that differs is split until it has at most so many rows; then its rows are listed."""
PARTS: Final = 16
BATCH: Final = 500
"""Keys judged together: they share each fence."""


@dataclass(slots=True)
class Sides:
    """The two reading sessions, and the fence between them."""

    source: asyncpg.Connection
    replica: asyncpg.Connection
    fence: Fence


@dataclass(slots=True)
class Outcome:
    """What an audit of one table proved. `started` and `position` are from before its first read: everything up to there is covered."""

    started: datetime
    position: str
    rows: int = 0
    blocks: int = 0
    source_seconds: float = 0.0
    drifted: list[Case] = field(default_factory=list)
    pending: list[Case] = field(default_factory=list)

    def count(self, verdict: Verdict) -> int:
        return sum(case.count for case in self.drifted if case.verdict is verdict)


OnBlock = Callable[[Outcome], Awaitable[None]]


class TableAudit:
    """One pass over a table. `share` is how much of one source backend's time it may take; 1 does not pause."""

    def __init__(self, sides: Sides, table: Comparable, *, patience: float = 5.0, share: float = 1.0, on_block: OnBlock | None = None) -> None:
        self._sides = sides
        self._table = table
        self._patience = patience
        self._share = share
        self._on_block = on_block
        self._block = FIRST_BLOCK

    async def run(self) -> Outcome:
        """Raises Lagging where a fence does not come through, and asyncpg's errors."""
        outcome = Outcome(datetime.now(UTC), await self._sides.fence.position())
        low: Key | None = None
        while True:
            high = await self._block_end(low)
            before = outcome.source_seconds
            outcome.rows += await self._block_pass(low, high, outcome)
            outcome.blocks += 1
            if self._on_block is not None:
                await self._on_block(outcome)
            if high is None:
                return outcome
            low = high
            await self._adapt(outcome.source_seconds - before)

    async def _adapt(self, seconds: float) -> None:
        """Blocks of about SECONDS_PER_BLOCK by a moving average, and a pause that keeps to the share."""
        wanted = self._block * SECONDS_PER_BLOCK / max(seconds, 0.001)
        self._block = int(min(max((self._block + wanted) / 2, FIRST_BLOCK / 20), self._block * 4, LARGEST_BLOCK))
        if self._share < 1:
            await asyncio.sleep(seconds * (1 / self._share - 1))

    async def _block_end(self, low: Key | None) -> Key | None:
        source = self._table.source
        if not source.unique:
            return None  # ordered by hash, each range would cost a full scan; the whole table is one block
        sql, arguments = source.boundary_sql(low, self._block)
        found = await self._sides.source.fetchval(sql, *arguments)
        return tuple(found) if found is not None else None

    async def _block_pass(self, low: Key | None, high: Key | None, outcome: Outcome) -> int:
        """The number of the source's rows in the block; what drifted or stays open goes into `outcome`."""
        sql, arguments = self._table.source.digest_sql(low, high)
        begun = time.monotonic()
        ours = await self._sides.source.fetchrow(sql, *arguments)
        outcome.source_seconds += time.monotonic() - begun
        await self._fenced()
        sql, arguments = self._table.replica.digest_sql(low, high)
        theirs = await self._sides.replica.fetchrow(sql, *arguments)
        assert ours is not None
        assert theirs is not None
        rows = int(ours["rows"])
        if tuple(ours) == tuple(theirs):
            return rows
        parts = await self._parts(low, high, rows, int(theirs["rows"]))
        if len(parts) > 1:
            return sum([await self._block_pass(*part, outcome) for part in parts])
        await self._list_pass(low, high, outcome)
        return rows

    async def _parts(self, low: Key | None, high: Key | None, ours: int, theirs: int) -> list[tuple[Key | None, Key | None]]:
        """The block split where the side with more rows has its keys; one part where it is small enough to be listed."""
        larger = max(ours, theirs)
        if larger <= LISTED:
            return [(low, high)]
        connection, reading = (self._sides.source, self._table.source) if ours >= theirs else (self._sides.replica, self._table.replica)
        sql, arguments = reading.split_sql(low, high, max(larger // PARTS, LISTED // 2))
        inner = dict.fromkeys(tuple(row["k"]) for row in await connection.fetch(sql, *arguments))
        bounds = [low, *(key for key in inner if key != low), high]
        return list(itertools.pairwise(bounds))

    async def _list_pass(self, low: Key | None, high: Key | None, outcome: Outcome) -> None:
        ours = await self._list(self._sides.source, self._table.source, low, high)
        await self._fenced()
        theirs = await self._list(self._sides.replica, self._table.replica, low, high)
        cases = []
        for key in ours | theirs:  # in the source's order, extra ones last
            case = Case(key)
            case.read(ours.get(key, ()))
            case.fenced(theirs.get(key, ()))
            if case.stage is not Stage.DONE:
                cases.append(case)
        for first in range(0, len(cases), BATCH):
            batch = cases[first : first + BATCH]
            await judge(self._sides, self._table, batch, patience=self._patience)
            outcome.drifted += [case for case in batch if case.verdict in DRIFT]
            outcome.pending += [case for case in batch if case.verdict is Verdict.PENDING]

    async def _fenced(self) -> Mark:
        mark = await self._sides.fence.mark()
        await self._sides.fence.arrived(mark, self._patience)
        return mark

    @staticmethod
    async def _list(connection: asyncpg.Connection, reading: Reading, low: Key | None, high: Key | None) -> dict[Key, Seen]:
        sql, arguments = reading.list_sql(low, high)
        versions: dict[Key, list[Version]] = {}
        for row in await connection.fetch(sql, *arguments):
            versions.setdefault(tuple(row["k"]), []).append(_version(row))
        return {key: tuple(sorted(found)) for key, found in versions.items()}


async def judge(sides: Sides, table: Comparable, cases: Sequence[Case], *, patience: float) -> None:
    """Take every case to its verdict; each step makes one observation for all cases that wait for it. Raises Lagging."""
    while any(case.stage is not Stage.DONE for case in cases):
        for case, seen in await _lookup(sides.source, table.source, at(Stage.READ, cases)):
            case.read(seen)
        for case, seen in await _fenced_lookup(sides, table, at(Stage.FENCE, cases), patience):
            case.fenced(seen)
        for case, seen in await _lookup(sides.source, table.source, at(Stage.LOOK, cases)):
            case.looked(seen)
        await _settle(sides, table, at(Stage.SETTLE, cases), patience)
        for case, seen in await _fenced_lookup(sides, table, at(Stage.CONFIRM, cases), patience):
            case.confirmed(seen)
    await _name_columns(sides, table, [case for case in cases if case.verdict is Verdict.DIFFERENT])


async def _settle(sides: Sides, table: Comparable, cases: list[Case], patience: float) -> None:
    if not cases:
        return
    try:
        await sides.fence.settled(await sides.fence.mark(), patience)
    except Unsettled as blocked:
        for case in cases:
            case.give_up(str(blocked))
        return
    for case, seen in await _lookup(sides.source, table.source, cases):
        case.settled(seen)


async def _fenced_lookup(sides: Sides, table: Comparable, cases: list[Case], patience: float) -> list[tuple[Case, Seen]]:
    if cases:
        await sides.fence.arrived(await sides.fence.mark(), patience)
    return await _lookup(sides.replica, table.replica, cases)


async def _lookup(connection: asyncpg.Connection, reading: Reading, cases: list[Case]) -> list[tuple[Case, Seen]]:
    if not cases:
        return []
    sql, arguments = reading.lookup_sql([case.key for case in cases])
    versions: dict[int, list[Version]] = {}
    for row in await connection.fetch(sql, *arguments):
        versions.setdefault(row["ord"], []).append(_version(row))
    return [(case, tuple(sorted(versions.get(i, ())))) for i, case in enumerate(cases, 1)]


async def _name_columns(sides: Sides, table: Comparable, cases: list[Case]) -> None:
    """Which columns differ, for rows that still hold what was judged."""
    for first in range(0, len(cases), BATCH):
        batch = cases[first : first + BATCH]
        found = []
        for connection, reading in ((sides.source, table.source), (sides.replica, table.replica)):
            sql, arguments = reading.lookup_sql([case.key for case in batch], columns=True)
            found.append({row["ord"]: row for row in await connection.fetch(sql, *arguments)})
        ours, theirs = found
        for i, case in enumerate(batch, 1):
            if i in ours and i in theirs and _still(case.source, ours[i]) and _still(case.replica, theirs[i]):
                pairs = zip(table.source.columns, ours[i]["columns"], theirs[i]["columns"], strict=True)
                case.columns = tuple(column.name for column, one, other in pairs if one != other)


def _still(judged: Seen, row: asyncpg.Record) -> bool:
    return same_values(judged, (_version(row),))


def _version(row: asyncpg.Record) -> Version:
    return Version(row["place"], row["xmin"], row["untouched"], (row["h1"], row["h2"]))
