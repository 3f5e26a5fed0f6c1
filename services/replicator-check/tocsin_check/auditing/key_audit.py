"""Judges single keys: one hash of each row on both sides, under a fence; what differs goes to its verdict row by row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import asyncpg

from tocsin_check.auditing.judgement import BATCH, judge
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.verdict import Case, Key

PIECE: Final = 1_000
"""Keys a statement, which takes some milliseconds."""
Hashes = dict[Key, list[int]]
"""Of the rows with each key, in order; none where there is no such row."""


class KeyAudit:
    """`at_source` counts the seconds that the source was asked for the rows. `seed` is drawn anew for each audit, as for blocks."""

    def __init__(self, sides: Sides, table: Comparable, seed: int, patience: float, pace: Pace) -> None:
        self._sides = sides
        self._table = table
        self._seed = seed
        self._patience = patience
        self._pace = pace
        self.at_source = 0.0

    async def run(self, keys: Sequence[Key]) -> tuple[set[Key], list[Case]]:
        """The keys as the table itself writes them, and a judged case for each that differed. Raises Lagging, and DataError for what is no key."""
        read: set[Key] = set()
        cases: list[Case] = []
        for first in range(0, len(keys), PIECE):
            ours = await self._read(keys[first : first + PIECE])
            await self._sides.fence.arrived(await self._sides.fence.mark(), self._patience)
            theirs = await self._replica_hashes(list(ours))
            cases += [Case(key) for key, hashes in ours.items() if hashes != theirs[key] and key not in read]
            read.update(ours)
        for first in range(0, len(cases), BATCH):
            await judge(self._sides, self._table, cases[first : first + BATCH], patience=self._patience)
        return read, cases

    async def _read(self, keys: Sequence[Key]) -> Hashes:
        """The source's side, after a pause that keeps to the pace."""
        await self._pace.rest()
        begun = time.monotonic()
        hashes = await self._source_hashes(keys)
        seconds = time.monotonic() - begun
        self.at_source += seconds
        self._pace.spent(seconds, len(hashes), following=True)
        return hashes

    async def _source_hashes(self, keys: Sequence[Key]) -> Hashes:
        sql, arguments = self._table.source.keyed_sql(keys, self._seed)
        rows = await self._sides.source.fetch(sql, *arguments)
        names = {row["ord"]: tuple(row["k"]) for row in rows}
        return _gathered(rows, {name: number for number, name in names.items()})

    async def _replica_hashes(self, keys: Sequence[Key]) -> Hashes:
        sql, arguments = self._table.replica.keyed_sql(keys, self._seed, named=False)
        return _gathered(await self._sides.replica.fetch(sql, *arguments), {key: number for number, key in enumerate(keys, 1)})


def _gathered(rows: Sequence[asyncpg.Record], numbers: dict[Key, int]) -> Hashes:
    """By key: a key that was asked for twice, in two ways to write it, has one number."""
    found: dict[int, list[int]] = {number: [] for number in numbers.values()}
    for row in rows:
        if row["h"] is not None and row["ord"] in found:
            found[row["ord"]].append(row["h"])
    return {key: sorted(found[number]) for key, number in numbers.items()}
