"""Audits one table: by blocks of keys, each under a fence; what differs is judged row by row."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from tocsin_check.auditing.blocks import BUCKETS, Block, Blocks, Digests
from tocsin_check.auditing.judgement import BATCH, both, judge
from tocsin_check.auditing.key_audit import KeyAudit
from tocsin_check.auditing.outcome import Changed, Outcome
from tocsin_check.auditing.search import Search
from tocsin_check.catalog import inventory
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.reading import Part
from tocsin_check.rows.verdict import Case, Key

FIRST_BLOCK: Final = 12_500
"""Rows: until it is read the replica's side has nothing to do, and where it has drifted it is read once more."""
FIRST_GENTLE: Final = 2_500
SMALLEST_BLOCK: Final = 500
LARGEST_BLOCK: Final = 100_000
LEAST_DENSE: Final = 1 / 8
"""Rows a key of a range whose keys are chosen before it is read."""

MOST_HELD: Final = 8
"""Blocks that wait at most until what drifted in them is judged together, at full speed."""
AHEAD: Final = 3
"""Blocks under way at once at full speed: one is read on the source, one waits for its fence, one is read on the replica."""
GENTLY_AHEAD: Final = 2
MOST_UNEQUAL: Final = BUCKETS // 3
"""Where more of them differ, the whole block is searched."""
OnBlock = Callable[[Outcome], Awaitable[None]]


class TableAudit:
    """One pass over a table, at a pace.

    While the replica's side of a block is fenced and read, the source's side of the next ones is read already, each with its marker written after
    it; each source read lies before its own block's fence, and nothing else is asked of their order. The two sides' readers are tasks of their own:
    who uses a session holds its lock, and who needs both takes the source's first. The seed is drawn anew for each audit, so two rows
    whose hashes happen to be equal this time differ the next time.

    At full speed, where keys lie densely, both sides of a block are read at the same time, without a fence: what is equal needs no proof of the order.
    The first block that is not is read again on the replica behind its fence, and so are all after it, and always the table's end.
    """

    def __init__(self, sides: Sides, table: Comparable, *, patience: float = 5.0, pace: Pace | None = None, on_block: OnBlock | None = None) -> None:
        self._sides = sides
        self._table = table
        self._patience = patience
        self._pace = pace or Pace()
        self._on_block = on_block
        self._block = FIRST_BLOCK if self._pace.fast else FIRST_GENTLE
        self._fine = False
        self._all_equal = True
        self._seed = secrets.randbits(62)
        self._search = Search(sides, table, self._seed, patience)
        self._blocks = Blocks(sides, table, self._seed, self._search)
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
        if self._pace.fast and until is None:
            low = await self._read_dense(low, outcome, blocks)
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

    async def _read_dense(self, low: Key | None, outcome: Outcome, blocks: asyncio.Queue[Block | None]) -> Key | None:
        """Blocks whose keys are known before they are read, so that the replica can be read at the same time, as long as both are equal and the keys
        dense; where the others begin, which have the last FIRST_BLOCK keys at least. A range has at most as many rows as keys, whatever lies in it.
        """
        async with self._source_free, self._replica_free:
            extent = await self._blocks.extent(low)
        if extent is None:
            return low
        begin, end = extent
        end -= FIRST_BLOCK
        while self._all_equal and begin <= end:
            await self._ahead.acquire()
            width = min(self._block, end + 1 - begin)
            begin += width
            block = Block(low, (str(begin),), read=asyncio.Event())
            blocks.put_nowait(block)
            await self._at_pace(partial(self._blocks.read, block), outcome)
            low = block.high
            if block.rows < width * LEAST_DENSE:
                break
        return low

    async def _read_block(self, low: Key | None, outcome: Outcome) -> Block:
        """The source's side of the block that begins at `low`."""
        block = await self._at_pace(lambda: self._blocks.next(low, self._block, fine=self._fine), outcome)
        block.mark = await self._sides.fence.mark()
        return block

    async def _at_pace(self, read: Callable[[], Awaitable[Block]], outcome: Outcome) -> Block:
        """Read the source, after a pause that keeps to the pace."""
        await self._pace.rest()
        if self._pace.looks:
            async with self._source_free, self._replica_free:
                await self._pace.clear(self._sides)
        async with self._source_free:
            begun = time.monotonic()
            block = await read()
            seconds = time.monotonic() - begun
        outcome.source_seconds += seconds
        self._adapt(seconds)
        self._pace.spent(seconds, block.rows)
        return block

    def _adapt(self, seconds: float) -> None:
        """Blocks of about the pace's slice by a moving average."""
        wanted = self._block * self._pace.slice / max(seconds, 0.001)
        self._block = int(min(max((self._block + wanted) / 2, SMALLEST_BLOCK), self._block * 4, LARGEST_BLOCK))

    async def _replica_digests(self, block: Block) -> Digests:
        """Behind the block's fence, unless they are equal without."""
        if block.read is not None:
            if self._all_equal:
                async with self._replica_free:
                    theirs = await self._blocks.copied(block)
                await block.read.wait()
                if theirs == block.digests:
                    return theirs
                self._all_equal = False
            await block.read.wait()
            block.mark = await self._sides.fence.mark()
        assert block.mark is not None
        async with self._replica_free:
            await self._sides.fence.arrived(block.mark, self._patience)
            return await self._blocks.copied(block)

    async def _parts(self, block: Block, theirs: Digests) -> list[Part]:
        """What of a block has to be searched.

        A table without a key is one block of any size; by its hash it is taken in even parts, so that memory stays bounded. Buckets
        need no fence of their own: a row that has drifted makes them differ whenever they are read.
        """
        source, low, high = self._table.source, block.low, block.high
        if not source.unique:
            rows = max(block.rows, sum(rows for rows, _ in theirs.values()))
            count = -(-rows // LARGEST_BLOCK)
            bounds = [(str(2**64 * i // count - 2**63), str(-(2**63))) for i in range(1, count)]
            return [Part(*bound) for bound in itertools.pairwise([low, *bounds, high])]
        shift, ours = block.shift, block.digests
        if shift is None and source.divisible:
            shift, ours, theirs = await self._blocks.cut(block)
        unequal = tuple(bucket for bucket in ours.keys() | theirs.keys() if ours.get(bucket) != theirs.get(bucket))
        if shift is None or len(unequal) > MOST_UNEQUAL:
            return [Part(low, high)]
        return [Part(low, high, shift, unequal)] if unequal else []
