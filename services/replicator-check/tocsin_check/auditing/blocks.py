"""Reads blocks of one table: a range of keys, and on each side the digests of the rows in it. Who calls has the session for himself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from tocsin_check.auditing.judgement import both
from tocsin_check.auditing.search import Search
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Mark
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.reading import Reading
from tocsin_check.rows.verdict import Key

BUCKETS: Final = 512
"""Into about so many a block is cut where it differs."""
GREATEST: Final[Mapping[str, int]] = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}
# Rows that do not lie in the key's order are better read by a range, whose pages the planner can take in their own order.
_IN_ORDER: Final = "SELECT abs(correlation) > 0.9 FROM pg_stats WHERE schemaname::text = $1 AND tablename::text = $2 AND attname::text = $3 AND NOT inherited"
Digests = dict[int, tuple[int, int]]
"""By bucket: how many rows, and the fold of their hashes; a block that is not cut has the one bucket 0."""


@dataclass(slots=True)
class Block:
    """A range of keys, the digests of the source's rows in it, and the marker that was written afterwards; `shift` is None where it is not cut.

    One that is handed on before the source has read it has neither until `read`.
    """

    low: Key | None
    high: Key | None
    shift: int | None = None
    digests: Digests = field(default_factory=dict)
    mark: Mark | None = None
    read: asyncio.Event | None = None

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.digests.values())


class Blocks:
    """`search` counts the seconds that the source was asked to do something."""

    def __init__(self, sides: Sides, table: Comparable, seed: int, search: Search) -> None:
        self._sides = sides
        self._table = table
        self._seed = seed
        self._search = search
        self._in_order: bool | None = None
        self._bits: int | None = None

    async def next(self, low: Key | None, size: int, *, fine: bool) -> Block:
        """Of about `size` rows on the source from `low` on; cut, if `fine`."""
        if self._in_order:
            return await self._piece(low, size, self._bits if fine else None)
        block = await self._range(low, size, fine=fine)
        if self._in_order is None and block.high is not None:
            self._in_order = await self._lies_in_order()
        return block

    async def read(self, block: Block) -> Block:
        """The source's side of a range that was chosen before."""
        block.digests = await self._digests(self._sides.source, self._table.source, block.low, block.high, block.shift)
        if block.read is not None:
            block.read.set()
        return block

    async def copied(self, block: Block) -> Digests:
        """The replica's side."""
        return await self._digests(self._sides.replica, self._table.replica, block.low, block.high, block.shift)

    async def cut(self, block: Block) -> tuple[int, Digests, Digests]:
        """The block anew in buckets of 2^shift keys: (shift, the source's, the replica's). Of a divisible key only."""
        shift = self._bits = await self._shift(block.low, block.high)
        cut = Block(block.low, block.high, shift)
        ours, theirs = await both(self.read(cut), self.copied(cut))
        return shift, ours.digests, theirs

    async def extent(self, low: Key | None) -> tuple[int, int] | None:
        """The least and the greatest key of both sides from `low` on, where ranges of them can be chosen before they are read; else None.

        The greatest that the type has is left out, since no range can end behind it.
        """
        source, replica = self._table.source, self._table.replica
        if source.condition or not (source.divisible and replica.divisible and source.key[0].type == replica.key[0].type and source.key[0].type in GREATEST):
            return None
        ours, theirs = await both(self._extent(self._sides.source, source, low), self._extent(self._sides.replica, replica, low))
        if ours is None or theirs is None:
            return None
        return min(ours[0], theirs[0]), min(max(ours[1], theirs[1]), GREATEST[source.key[0].type] - 1)

    async def _range(self, low: Key | None, size: int, *, fine: bool) -> Block:
        reading = self._table.source
        high = None
        if reading.unique:  # ordered by hash, each range would cost a full scan; the whole table is one block
            sql, arguments = reading.boundary_sql(low, size)
            found = await self._sides.source.fetchval(sql, *arguments)
            high = tuple(found) if found is not None else None
        return await self.read(Block(low, high, await self._shift(low, high) if fine and reading.divisible else None))

    async def _piece(self, low: Key | None, limit: int, shift: int | None) -> Block:
        """The block ends just after the last key that was read, where it is full and a greater key can be."""
        reading = self._table.source
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
        extent = await self._extent(self._sides.source, self._table.source, low, high)
        width = extent[1] - extent[0] + 1 if extent is not None else 1
        return min(62, max(0, (width // BUCKETS).bit_length()))

    async def _extent(self, connection: asyncpg.Connection, reading: Reading, low: Key | None, high: Key | None = None) -> tuple[int, int] | None:
        sql, arguments = reading.extent_sql(low, high)
        row = await connection.fetchrow(sql, *arguments)
        return (row["low"], row["high"]) if row is not None and row["low"] is not None else None

    async def _digests(self, connection: asyncpg.Connection, reading: Reading, low: Key | None, high: Key | None, shift: int | None) -> Digests:
        with self._search.timed(connection):
            if shift is None:
                sql, arguments = reading.digest_sql(low, high, self._seed)
                row = await connection.fetchrow(sql, *arguments)
                assert row is not None
                return {0: (int(row["rows"]), int(row["h"]))}
            sql, arguments = reading.buckets_sql(low, high, self._seed, shift)
            return {row["bucket"]: (row["rows"], row["h"]) for row in await connection.fetch(sql, *arguments)}
