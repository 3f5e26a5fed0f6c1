"""Audits one table: by blocks of keys, each under a fence; what differs is judged row by row."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sys
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

import asyncpg

from tocsin_check.fence import Fence, Mark, Unsettled
from tocsin_check.reading import Reading
from tocsin_check.table import Comparable
from tocsin_check.verdict import DRIFT, Case, Key, Seen, Stage, Verdict, Version, at, same_values

One = TypeVar("One")
Other = TypeVar("Other")

FIRST_BLOCK: Final = 25_000
LARGEST_BLOCK: Final = 250_000
SECONDS_PER_BLOCK: Final = 0.35
BATCH: Final = 5_000
"""Keys judged together: they share each fence."""
CASES_KEPT: Final = 100_000
"""Drifted rows kept by key; the counts go on beyond it."""

Range = tuple[Key | None, Key | None]
"""Half-open, in the key's order; None is open."""


@dataclass(slots=True)
class Sides:
    """The two reading sessions, and the fence between them."""

    source: asyncpg.Connection
    replica: asyncpg.Connection
    fence: Fence


@dataclass(slots=True)
class Outcome:
    """What an audit of one table proved. `started` and `position` are from before its first read: everything up to there is covered.

    `drifted` has the first CASES_KEPT cases, `counts` counts the rows of all.
    """

    started: datetime
    position: str
    rows: int = 0
    blocks: int = 0
    source_seconds: float = 0.0
    drifted: list[Case] = field(default_factory=list)
    pending: list[Case] = field(default_factory=list)
    counts: Counter[Verdict] = field(default_factory=Counter)

    def count(self, verdict: Verdict) -> int:
        return self.counts[verdict]

    def take(self, cases: Iterable[Case]) -> None:
        """Take in cases that were judged."""
        for case in cases:
            if case.verdict in DRIFT:
                self.counts[case.verdict] += case.count
                if len(self.drifted) < CASES_KEPT:
                    self.drifted.append(case)
            elif case.verdict is Verdict.PENDING:
                self.pending.append(case)


@dataclass(frozen=True, slots=True)
class Block:
    """A range of keys, and the digest of the source's rows in it before a fence."""

    low: Key | None
    high: Key | None
    digest: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.digest[0]


OnBlock = Callable[[Outcome], Awaitable[None]]


class TableAudit:
    """One pass over a table. `share` is how much of one source backend's time it may take; 1 does not pause.

    While the replica's side of a block is fenced and read, the source's side of the next one is read already: each source read lies
    before its own block's fence, and nothing else is asked of their order. The seed is drawn anew for each audit, so two rows
    whose hashes happen to be equal this time differ the next time.
    """

    def __init__(self, sides: Sides, table: Comparable, *, patience: float = 5.0, share: float = 1.0, on_block: OnBlock | None = None) -> None:
        self._sides = sides
        self._table = table
        self._patience = patience
        self._share = share
        self._on_block = on_block
        self._block = FIRST_BLOCK
        self._seed = secrets.randbits(62)

    async def run(self) -> Outcome:
        """Raises Lagging where a fence does not come through, and asyncpg's errors."""
        outcome = Outcome(datetime.now(UTC), await self._sides.fence.position())
        block: Block | None = await self._read_block(None, outcome)
        while block is not None:
            following, theirs = await both(self._following(block, outcome), self._replica_digest(block))
            if theirs != block.digest:
                await self._resolve(block, max(block.rows, theirs[0]), outcome)
            outcome.rows += block.rows
            outcome.blocks += 1
            if self._on_block is not None:
                await self._on_block(outcome)
            block = following
        return outcome

    async def run_keys(self, keys: Sequence[Key]) -> Outcome:
        """Judge only these keys. Raises as `run`."""
        outcome = Outcome(datetime.now(UTC), await self._sides.fence.position(), rows=len(keys))
        await self._judge([Case(key) for key in keys], outcome)
        return outcome

    async def _following(self, block: Block, outcome: Outcome) -> Block | None:
        return await self._read_block(block.high, outcome) if block.high is not None else None

    async def _read_block(self, low: Key | None, outcome: Outcome) -> Block:
        """The source's side of the block that begins at `low`, and then a pause that keeps to the share."""
        reading = self._table.source
        begun = time.monotonic()
        high = None
        if reading.unique:  # ordered by hash, each range would cost a full scan; the whole table is one block
            sql, arguments = reading.boundary_sql(low, self._block)
            found = await self._sides.source.fetchval(sql, *arguments)
            high = tuple(found) if found is not None else None
        sql, arguments = reading.digest_sql(low, high, self._seed)
        row = await self._sides.source.fetchrow(sql, *arguments)
        assert row is not None
        seconds = time.monotonic() - begun
        outcome.source_seconds += seconds
        self._adapt(seconds)
        if self._share < 1:
            await asyncio.sleep(seconds * (1 / self._share - 1))
        return Block(low, high, (int(row["rows"]), int(row["h"])))

    def _adapt(self, seconds: float) -> None:
        """Blocks of about SECONDS_PER_BLOCK by a moving average."""
        wanted = self._block * SECONDS_PER_BLOCK / max(seconds, 0.001)
        self._block = int(min(max((self._block + wanted) / 2, FIRST_BLOCK / 20), self._block * 4, LARGEST_BLOCK))

    async def _replica_digest(self, block: Block) -> tuple[int, int]:
        await self._fenced()
        sql, arguments = self._table.replica.digest_sql(block.low, block.high, self._seed)
        row = await self._sides.replica.fetchrow(sql, *arguments)
        assert row is not None
        return int(row["rows"]), int(row["h"])

    async def _resolve(self, block: Block, rows: int, outcome: Outcome) -> None:
        """Find the rows that make a block differ, and judge them."""
        for low, high in self._parts(block, rows):
            begun = time.monotonic()
            cases = await self._suspects(low, high)
            await self._judge(cases, outcome)
            outcome.source_seconds += time.monotonic() - begun

    def _parts(self, block: Block, rows: int) -> list[Range]:
        """A table without a key is one block of any size; by its hash it is taken in even parts, so that memory stays bounded."""
        count = 1 if self._table.source.unique else -(-rows // LARGEST_BLOCK)
        bounds = [(str(2**64 * i // count - 2**63), str(-(2**63))) for i in range(1, count)]
        return list(itertools.pairwise([block.low, *bounds, block.high]))

    async def _suspects(self, low: Key | None, high: Key | None) -> list[Case]:
        """Cases for the rows of the range whose hashes are not on both sides, as each side showed them in one snapshot, with a fence between.

        Each side's two statements share a snapshot, which lives no longer than this; so a row can't escape by changing between them.
        """
        source, replica = self._sides.source, self._sides.replica
        async with source.transaction(isolation="repeatable_read", readonly=True):
            ours = await self._hashes(source, self._table.source, low, high)
            await self._fenced()
            async with replica.transaction(isolation="repeatable_read", readonly=True):
                theirs = await self._hashes(replica, self._table.replica, low, high)
                unequal = self._unequal(ours, theirs)
                if not unequal:
                    return []
                listed, copied = await both(
                    self._listed(source, self._table.source, low, high, unequal), self._listed(replica, self._table.replica, low, high, unequal)
                )
        cases = []
        for key in listed | copied:
            case = Case(key)
            case.read(listed.get(key, ()))
            case.fenced(copied.get(key, ()))
            cases.append(case)
        return cases

    async def _hashes(self, connection: asyncpg.Connection, reading: Reading, low: Key | None, high: Key | None) -> array[int]:
        sql, arguments = reading.hashes_sql(low, high, self._seed)
        found = array("q", await connection.fetchval(sql, *arguments) or b"")
        if sys.byteorder == "little":
            found.byteswap()
        return found

    def _unequal(self, ours: array[int], theirs: array[int]) -> list[int]:
        """Hashes that are not equally often on both sides. Under a unique key each counts once, and sets are much faster."""
        if self._table.source.unique:
            return list(set(ours) ^ set(theirs))
        one, other = Counter(ours), Counter(theirs)
        return [*(one - other), *(other - one)]

    async def _listed(self, connection: asyncpg.Connection, reading: Reading, low: Key | None, high: Key | None, hashes: Sequence[int]) -> dict[Key, Seen]:
        sql, arguments = reading.listed_sql(low, high, self._seed, hashes)
        versions: dict[Key, list[Version]] = {}
        for row in await connection.fetch(sql, *arguments):
            versions.setdefault(tuple(row["k"]), []).append(_version(row))
        return {key: tuple(sorted(found)) for key, found in versions.items()}

    async def _judge(self, cases: Sequence[Case], outcome: Outcome) -> None:
        for first in range(0, len(cases), BATCH):
            batch = cases[first : first + BATCH]
            await judge(self._sides, self._table, batch, patience=self._patience)
            outcome.take(batch)

    async def _fenced(self) -> Mark:
        mark = await self._sides.fence.mark()
        await self._sides.fence.arrived(mark, self._patience)
        return mark


async def both(one: Awaitable[One], other: Awaitable[Other]) -> tuple[One, Other]:
    """Both results, got at the same time; the first exception as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(_result(one)), group.create_task(_result(other))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return first.result(), second.result()


async def _result(awaitable: Awaitable[One]) -> One:
    return await awaitable


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
