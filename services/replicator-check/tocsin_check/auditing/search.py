"""Finds the rows that make a part of a table differ: by their hashes, and only those that are not on both sides are listed."""

from __future__ import annotations

import contextlib
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

import asyncpg

from tocsin_check.auditing.judgement import both, version_of
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.reading import Part, Reading
from tocsin_check.rows.verdict import Case, Key, Seen, Version


class Search:
    """`at_source` counts the seconds that the source was asked to do something."""

    def __init__(self, sides: Sides, table: Comparable, seed: int, patience: float) -> None:
        self._sides = sides
        self._table = table
        self._seed = seed
        self._patience = patience
        self.at_source = 0.0

    @contextlib.contextmanager
    def timed(self, connection: asyncpg.Connection) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            if connection is self._sides.source:
                self.at_source += time.monotonic() - begun

    async def suspects(self, parts: Sequence[Part]) -> list[list[Case]]:
        """For each part cases for the rows whose hashes are not on both sides, as each side showed them in one snapshot, with one fence between.

        Each side's statements share a snapshot, which lives no longer than this; so a row can't escape by changing between them.
        """
        source, replica = self._sides.source, self._sides.replica
        async with source.transaction(isolation="repeatable_read", readonly=True):
            ours = [await self._hashes(source, self._table.source, part) for part in parts]
            await self._sides.fence.arrived(await self._sides.fence.mark(), self._patience)
            async with replica.transaction(isolation="repeatable_read", readonly=True):
                return [await self._cases(part, own) for part, own in zip(parts, ours, strict=True)]

    async def _cases(self, part: Part, ours: array[int]) -> list[Case]:
        source, replica = self._sides.source, self._sides.replica
        unequal = self._unequal(ours, await self._hashes(replica, self._table.replica, part))
        if not unequal:
            return []
        listed, copied = await both(self._listed(source, self._table.source, part, unequal), self._listed(replica, self._table.replica, part, unequal))
        cases = []
        for key in listed | copied:
            case = Case(key)
            case.read(listed.get(key, ()))
            case.fenced(copied.get(key, ()))
            cases.append(case)
        return cases

    async def _hashes(self, connection: asyncpg.Connection, reading: Reading, part: Part) -> array[int]:
        sql, arguments = reading.hashes_sql(part, self._seed)
        with self.timed(connection):
            found = array("q", await connection.fetchval(sql, *arguments) or b"")
        if sys.byteorder == "little":
            found.byteswap()
        return found

    def _unequal(self, ours: array[int], theirs: array[int]) -> list[int]:
        """Hashes that are not equally often on both sides. Where each counts once sets are much faster; a replica without the key may repeat a row."""
        one, other = set(ours), set(theirs)
        if len(one) == len(ours) and len(other) == len(theirs):
            return list(one ^ other)
        counted, copied = Counter(ours), Counter(theirs)
        return [*(counted - copied), *(copied - counted)]

    async def _listed(self, connection: asyncpg.Connection, reading: Reading, part: Part, hashes: Sequence[int]) -> dict[Key, Seen]:
        sql, arguments = reading.listed_sql(part, self._seed, hashes)
        versions: dict[Key, list[Version]] = {}
        with self.timed(connection):
            rows = await connection.fetch(sql, *arguments)
        for row in rows:
            versions.setdefault(tuple(row["k"]), []).append(version_of(row))
        return {key: tuple(sorted(found)) for key, found in versions.items()}
