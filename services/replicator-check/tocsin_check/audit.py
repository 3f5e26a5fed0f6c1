"""Audits one table: by blocks of keys, each under a fence; what differs is judged row by row."""

from __future__ import annotations

import itertools
import secrets
import sys
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import asyncpg

from tocsin_check.fence import Mark
from tocsin_check.judgement import BATCH, both, judge, version_of
from tocsin_check.pace import Pace
from tocsin_check.reading import Reading
from tocsin_check.sides import Sides
from tocsin_check.table import Comparable
from tocsin_check.verdict import DRIFT, Case, Key, Seen, Verdict, Version

FIRST_BLOCK: Final = 25_000
LARGEST_BLOCK: Final = 250_000
SECONDS_PER_BLOCK: Final = 0.35
CASES_KEPT: Final = 100_000
"""Drifted rows kept by key; the counts go on beyond it."""

Range = tuple[Key | None, Key | None]
"""Half-open, in the key's order; None is open."""


@dataclass(slots=True)
class Outcome:
    """What an audit of one table proved. `started` and `position` are from before its first read: everything up to there is covered.

    `drifted` has the first CASES_KEPT cases, `counts` counts the rows of all. `reached` is where the next block begins; None is the table's end.
    `keys` are those that an audit of keys has judged.
    """

    started: datetime
    position: str
    rows: int = 0
    blocks: int = 0
    source_seconds: float = 0.0
    reached: Key | None = None
    drifted: list[Case] = field(default_factory=list)
    pending: list[Case] = field(default_factory=list)
    counts: Counter[Verdict] = field(default_factory=Counter)
    keys: set[Key] = field(default_factory=set)

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
    """One pass over a table, at a pace.

    While the replica's side of a block is fenced and read, the source's side of the next one is read already: each source read lies
    before its own block's fence, and nothing else is asked of their order. The seed is drawn anew for each audit, so two rows
    whose hashes happen to be equal this time differ the next time.
    """

    def __init__(self, sides: Sides, table: Comparable, *, patience: float = 5.0, pace: Pace | None = None, on_block: OnBlock | None = None) -> None:
        self._sides = sides
        self._table = table
        self._patience = patience
        self._pace = pace or Pace()
        self._on_block = on_block
        self._block = FIRST_BLOCK
        self._seed = secrets.randbits(62)

    async def run(self) -> Outcome:
        """Raises Lagging where a fence does not come through, and asyncpg's errors."""
        return await self.run_from(None)

    async def run_from(self, low: Key | None, seconds: float | None = None) -> Outcome:
        """From `low` on, for about `seconds`, and at least one block; `reached` says where to go on. Raises as `run`."""
        outcome = Outcome(datetime.now(UTC), await self._sides.fence.position())
        until = time.monotonic() + seconds if seconds is not None else None
        block: Block | None = await self._read_block(low, outcome)
        while block is not None:
            ended = until is not None and time.monotonic() >= until
            following, theirs = await both(self._following(None if ended else block.high, outcome), self._replica_digest(block))
            if theirs != block.digest:
                await self._resolve(block, max(block.rows, theirs[0]), outcome)
            outcome.rows += block.rows
            outcome.blocks += 1
            outcome.reached = block.high
            if self._on_block is not None:
                await self._on_block(outcome)
            block = following
        return outcome

    async def run_keys(self, keys: Sequence[Key]) -> Outcome:
        """Judge only these keys, given as text that PostgreSQL reads. Raises as `run`, and DataError for what is no key."""
        outcome = Outcome(datetime.now(UTC), await self._sides.fence.position())
        begun = time.monotonic()
        for first in range(0, len(keys), BATCH):
            sql, arguments = self._table.source.canonical_sql(keys[first : first + BATCH])
            found = dict.fromkeys(tuple(row["k"]) for row in await self._sides.source.fetch(sql, *arguments))
            await self._judge([Case(key) for key in found], outcome)
            outcome.keys |= found.keys()
        outcome.rows = len(outcome.keys)
        outcome.source_seconds = time.monotonic() - begun
        return outcome

    async def _following(self, low: Key | None, outcome: Outcome) -> Block | None:
        return await self._read_block(low, outcome) if low is not None else None

    async def _read_block(self, low: Key | None, outcome: Outcome) -> Block:
        """The source's side of the block that begins at `low`, and then a pause that keeps to the pace."""
        await self._pace.clear(self._sides)
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
        await self._pace.rest(seconds, int(row["rows"]))
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
            versions.setdefault(tuple(row["k"]), []).append(version_of(row))
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
