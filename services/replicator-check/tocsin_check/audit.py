"""Audits one table: by blocks of keys, each under a fence; what differs is judged row by row."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import asyncpg

from tocsin_check import inventory
from tocsin_check.fence import Mark
from tocsin_check.judgement import BATCH, both, judge
from tocsin_check.key_audit import KeyAudit
from tocsin_check.outcome import Changed, Outcome
from tocsin_check.pace import Pace
from tocsin_check.reading import Part, Reading
from tocsin_check.search import Search
from tocsin_check.sides import Sides
from tocsin_check.table import Comparable
from tocsin_check.verdict import Case, Key

FIRST_BLOCK: Final = 12_500
"""Rows: until it is read the replica's side has nothing to do, and where it has drifted it is read once more."""
FIRST_GENTLE: Final = 2_500
SMALLEST_BLOCK: Final = 500
LARGEST_BLOCK: Final = 100_000

BUCKETS: Final = 512
"""Into about so many a block is cut where it differs."""
GREATEST: Final[Mapping[str, int]] = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}
# Rows that do not lie in the key's order are better read by a range, whose pages the planner can take in their own order.
_IN_ORDER: Final = "SELECT abs(correlation) > 0.9 FROM pg_stats WHERE schemaname::text = $1 AND tablename::text = $2 AND attname::text = $3 AND NOT inherited"
MOST_HELD: Final = 8
"""Blocks that wait at most until what drifted in them is judged together, at full speed."""
AHEAD: Final = 3
"""Blocks under way at once at full speed: one is read on the source, one waits for its fence, one is read on the replica."""
GENTLY_AHEAD: Final = 2
MOST_UNEQUAL: Final = BUCKETS // 3
"""Where more of them differ, the whole block is searched."""
Digests = dict[int, tuple[int, int]]
"""By bucket: how many rows, and the fold of their hashes; a block that is not cut has the one bucket 0."""


@dataclass(frozen=True, slots=True)
class Block:
    """A range of keys, the digests of the source's rows in it, and the marker that was written afterwards; `shift` is None where it is not cut."""

    low: Key | None
    high: Key | None
    shift: int | None
    digests: Digests
    mark: Mark | None = None

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.digests.values())


OnBlock = Callable[[Outcome], Awaitable[None]]


class TableAudit:
    """One pass over a table, at a pace.

    While the replica's side of a block is fenced and read, the source's side of the next ones is read already, each with its marker written after
    it; each source read lies before its own block's fence, and nothing else is asked of their order. The two sides' readers are tasks of their own:
    who uses a session holds its lock, and who needs both takes the source's first. The seed is drawn anew for each audit, so two rows
    whose hashes happen to be equal this time differ the next time.
    """

    def __init__(self, sides: Sides, table: Comparable, *, patience: float = 5.0, pace: Pace | None = None, on_block: OnBlock | None = None) -> None:
        self._sides = sides
        self._table = table
        self._patience = patience
        self._pace = pace or Pace()
        self._on_block = on_block
        self._block = FIRST_BLOCK if self._pace.fast else FIRST_GENTLE
        self._fine = False
        self._in_order: bool | None = None
        self._seed = secrets.randbits(62)
        self._search = Search(sides, table, self._seed, patience)
        self._bits: int | None = None
        self._source_free, self._replica_free = asyncio.Lock(), asyncio.Lock()
        self._ahead = asyncio.Semaphore(AHEAD if self._pace.fast else GENTLY_AHEAD)

    async def run(self, begun: Outcome | None = None) -> Outcome:
        """All of the table, or the rest of it, where `begun` came so far.

        Raises Lagging where a fence does not come through, Changed where drift may come of a change of the table, and asyncpg's errors.
        """
        return await self.run_from(begun.reached if begun is not None else None, begun=begun)

    async def run_from(self, low: Key | None, seconds: float | None = None, begun: Outcome | None = None) -> Outcome:
        """From `low` on, for about `seconds`, and at least one block; `reached` says where to go on. Raises as `run`."""
        outcome = begun or Outcome(datetime.now(UTC), await self._sides.fence.position())
        until = time.monotonic() + seconds if seconds is not None else None
        blocks: asyncio.Queue[Block | None] = asyncio.Queue()
        await both(self._read_blocks(low, until, outcome, blocks), self._compare_blocks(blocks, outcome))
        await self._check_unchanged(outcome)
        return outcome

    async def _read_blocks(self, low: Key | None, until: float | None, outcome: Outcome, blocks: asyncio.Queue[Block | None]) -> None:
        """The source's side of all blocks, then None; no further ahead than the pace lets it."""
        while True:
            await self._ahead.acquire()
            block = await self._read_block(low, outcome)
            blocks.put_nowait(block)
            if block.high is None or (until is not None and time.monotonic() >= until):
                break
            low = block.high
        blocks.put_nowait(None)

    async def _compare_blocks(self, blocks: asyncio.Queue[Block | None], outcome: Outcome) -> None:
        """Where blocks differ some are held back, so that what drifted in them is searched and judged at once, under one fence."""
        held: list[tuple[Block, list[Part]]] = []
        while (block := await blocks.get()) is not None:
            async with self._replica_free:
                theirs = await self._replica_digests(block)
            parts: list[Part] = []
            if theirs != block.digests:
                async with self._source_free, self._replica_free:
                    parts = await self._parts(block, theirs)
            # Where one block has drifted the next one probably has, too, and is cut at its first reading.
            self._fine = bool(parts)
            held.append((block, parts))
            buckets = [MOST_UNEQUAL if part.buckets is None else len(part.buckets) for _, searched in held for part in searched]
            if not buckets or sum(buckets) >= MOST_UNEQUAL or len(held) >= MOST_HELD or not self._pace.fast:
                await self._settle(held, outcome)
                held = []
            self._ahead.release()
        await self._settle(held, outcome)

    async def _settle(self, held: list[tuple[Block, list[Part]]], outcome: Outcome) -> None:
        """Judge what differs in these blocks, and tell of each, in their order."""
        begun = self._search.at_source
        found: list[list[Case]] = [[] for _ in held]
        parts = [(i, part) for i, (_, searched) in enumerate(held) for part in searched]
        cut = [pair for pair in parts if pair[1].buckets is not None]
        for batch in ([cut] if cut else []) + [[pair] for pair in parts if pair[1].buckets is None]:
            async with self._source_free, self._replica_free:
                suspects = await self._search.suspects([part for _, part in batch])
                await self._judge([case for cases in suspects for case in cases])
            for (i, _), cases in zip(batch, suspects, strict=True):
                found[i] += cases
        # Without the fences: to wait for the replica costs the source nothing, and must not earn a rest.
        seconds = self._search.at_source - begun
        outcome.source_seconds += seconds
        self._pace.spent(seconds, 0)
        for (block, _), cases in zip(held, found, strict=True):
            outcome.take(cases)
            outcome.rows += block.rows
            outcome.blocks += 1
            outcome.reached = block.high
            if self._on_block is not None:
                await self._on_block(outcome)

    async def _judge(self, cases: Sequence[Case]) -> None:
        for first in range(0, len(cases), BATCH):
            await judge(self._sides, self._table, cases[first : first + BATCH], patience=self._patience)

    async def run_keys(self, keys: Sequence[Key]) -> Outcome:
        """Judge only these keys, given as text that PostgreSQL reads. Raises as `run`, and DataError for what is no key."""
        outcome = Outcome(datetime.now(UTC), await self._sides.fence.position())
        audit = KeyAudit(self._sides, self._table, self._seed, self._patience, self._pace)
        outcome.keys, cases = await audit.run(keys)
        outcome.take(cases)
        outcome.rows = len(outcome.keys)
        outcome.source_seconds = audit.at_source
        await self._check_unchanged(outcome)
        return outcome

    async def _check_unchanged(self, outcome: Outcome) -> None:
        """Equal rows are equal whatever has happened. Unequal ones may be another table's, or not copied yet."""
        if outcome.counts and await inventory.stamps(self._sides, self._table.name) != self._table.stamps:
            raise Changed

    async def _read_block(self, low: Key | None, outcome: Outcome) -> Block:
        """The source's side of the block that begins at `low`, after a pause that keeps to the pace."""
        await self._pace.rest()
        if self._pace.looks:
            async with self._source_free, self._replica_free:
                await self._pace.clear(self._sides)
        async with self._source_free:
            begun = time.monotonic()
            block = await (self._read_piece(low) if self._in_order else self._read_range(low))
            if self._in_order is None and block.high is not None:
                self._in_order = await self._lies_in_order()
            seconds = time.monotonic() - begun
        outcome.source_seconds += seconds
        self._adapt(seconds)
        self._pace.spent(seconds, block.rows)
        return replace(block, mark=await self._sides.fence.mark())

    async def _read_range(self, low: Key | None) -> Block:
        reading = self._table.source
        high = None
        if reading.unique:  # ordered by hash, each range would cost a full scan; the whole table is one block
            sql, arguments = reading.boundary_sql(low, self._block)
            found = await self._sides.source.fetchval(sql, *arguments)
            high = tuple(found) if found is not None else None
        shift = await self._shift(low, high) if self._fine and reading.divisible else None
        return Block(low, high, shift, await self._digests(self._sides.source, reading, low, high, shift))

    async def _read_piece(self, low: Key | None) -> Block:
        """The block ends just after the last key that was read, where it is full and a greater key can be."""
        reading, limit = self._table.source, self._block
        shift = self._bits if self._fine else None
        sql, arguments = reading.piece_sql(low, limit, self._seed, shift)
        found = await self._sides.source.fetch(sql, *arguments)
        digests = {row["bucket"]: (row["rows"], row["h"]) for row in found}
        last = max((row["last"] for row in found if row["last"] is not None), default=0)
        goes_on = sum(rows for rows, _ in digests.values()) == limit and last < GREATEST[reading.key[0].type]
        return Block(low, (str(last + 1),) if goes_on else None, shift, digests)

    async def _lies_in_order(self) -> bool:
        source, replica, name = self._table.source, self._table.replica, self._table.name
        if not source.divisible or source.key[0].type not in GREATEST or replica.key[0].type != source.key[0].type:
            return False
        return bool(await self._sides.source.fetchval(_IN_ORDER, name.schema, name.name, source.key[0].name))

    async def _shift(self, low: Key | None, high: Key | None) -> int:
        """By how many bits keys are cut, so that the range has about BUCKETS buckets."""
        sql, arguments = self._table.source.extent_sql(low, high)
        row = await self._sides.source.fetchrow(sql, *arguments)
        width = row["high"] - row["low"] + 1 if row is not None and row["low"] is not None else 1
        return min(62, max(0, (width // BUCKETS).bit_length()))

    async def _digests(self, connection: asyncpg.Connection, reading: Reading, low: Key | None, high: Key | None, shift: int | None) -> Digests:
        with self._search.timed(connection):
            if shift is None:
                sql, arguments = reading.digest_sql(low, high, self._seed)
                row = await connection.fetchrow(sql, *arguments)
                assert row is not None
                return {0: (int(row["rows"]), int(row["h"]))}
            sql, arguments = reading.buckets_sql(low, high, self._seed, shift)
            return {row["bucket"]: (row["rows"], row["h"]) for row in await connection.fetch(sql, *arguments)}

    def _adapt(self, seconds: float) -> None:
        """Blocks of about the pace's slice by a moving average."""
        wanted = self._block * self._pace.slice / max(seconds, 0.001)
        self._block = int(min(max((self._block + wanted) / 2, SMALLEST_BLOCK), self._block * 4, LARGEST_BLOCK))

    async def _replica_digests(self, block: Block) -> Digests:
        assert block.mark is not None
        await self._sides.fence.arrived(block.mark, self._patience)
        return await self._digests(self._sides.replica, self._table.replica, block.low, block.high, block.shift)

    async def _parts(self, block: Block, theirs: Digests) -> list[Part]:
        """What of a block has to be searched.

        A table without a key is one block of any size; by its hash it is taken in even parts, so that memory stays bounded. Buckets
        need no fence of their own: a row that has drifted makes them differ whenever they are read.
        """
        source, replica, low, high = self._table.source, self._table.replica, block.low, block.high
        if not source.unique:
            rows = max(block.rows, sum(rows for rows, _ in theirs.values()))
            count = -(-rows // LARGEST_BLOCK)
            bounds = [(str(2**64 * i // count - 2**63), str(-(2**63))) for i in range(1, count)]
            return [Part(*bound) for bound in itertools.pairwise([low, *bounds, high])]
        shift, ours = block.shift, block.digests
        if shift is None and source.divisible:
            shift = self._bits = await self._shift(low, high)
            ours, theirs = await both(
                self._digests(self._sides.source, source, low, high, shift), self._digests(self._sides.replica, replica, low, high, shift)
            )
        unequal = tuple(bucket for bucket in ours.keys() | theirs.keys() if ours.get(bucket) != theirs.get(bucket))
        if shift is None or len(unequal) > MOST_UNEQUAL:
            return [Part(low, high)]
        return [Part(low, high, shift, unequal)] if unequal else []
