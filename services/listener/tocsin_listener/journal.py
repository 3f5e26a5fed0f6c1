"""The journal between two snapshots: what became visible, in order, as messages, in pages of bounded size."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg

from tocsin.sql import load_queries

QUERIES: Final = load_queries("tocsin_listener", "sql/journal.sql")
MOST_ROWS: Final = 2000
MOST_BYTES: Final = 8 << 20

SESSION: Final = (
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;"
    " SET plan_cache_mode = force_generic_plan; SET jit = off; SET work_mem = '64MB'; SET timezone = 'UTC'"
)
"""The index on (xid, seq) is right whatever the statistics of a table that is never analysed say, and so is looking up each envelope."""


class Row(NamedTuple):
    """One event, its fields in the order of the queries' columns: `subject` is what follows the prefix and the source, `message` the
    CloudEvent's bytes, `age` seconds since its statement began.
    """

    seq: int
    subject: str
    old_subject: str | None
    age: float
    message: bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """What lies between two snapshots. `rows` is None where it is more than one page; `pages` reads it then."""

    reached: str
    intended: str
    rows: list[Row] | None


class Journal:
    """Reads small differences on `connection`, and large ones in a transaction on `bulk`: a session that listens for the bell must not
    sit in a transaction. The settings of both are SESSION's; `source` is the source's token.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        bulk: asyncpg.Connection,
        *,
        incarnation: str,
        source: str,
        most_rows: int = MOST_ROWS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._connection = connection
        self._bulk = bulk
        self._incarnation = incarnation
        self._source = source
        self._most_rows = most_rows
        self._most_bytes = most_bytes

    async def between(self, reached: str, intended: str | None = None) -> Difference | None:
        """The rows visible in `intended` (now, where it is None) but not in `reached`; None where there are none.

        One statement: its own snapshot is the new one, so nothing can slip in between.
        """
        found = await self._connection.fetch(QUERIES["between"], reached, intended, self._most_rows, self._most_bytes, self._incarnation, self._source)
        if not found:
            return None
        rows = None if found[0]["message"] is None else [Row._make(r[1:]) for r in found]
        return Difference(reached, found[0]["intended"], rows)

    async def pages(self, difference: Difference) -> AsyncGenerator[list[Row], None]:
        """All of a large difference, page by page, each at most `most_rows` and `most_bytes` (or a single row).

        Only the rows' places are sorted, on the server; the rows are fetched by place. Holds a transaction open meanwhile.
        """
        async with self._bulk.transaction(readonly=True):
            cursor = await self._bulk.cursor(QUERIES["order"], difference.reached, difference.intended)
            places: list[asyncpg.Record] = []
            size = 0
            while block := await cursor.fetch(10_000):
                for place in block:
                    of_row: int = place[3]
                    if places and (len(places) >= self._most_rows or size + of_row > self._most_bytes):
                        yield await self._page(places)
                        places, size = [], 0
                    places.append(place)
                    size += of_row
            if places:
                yield await self._page(places)

    async def _page(self, places: Sequence[asyncpg.Record]) -> list[Row]:
        leaves, lines, numbers, _ = zip(*places, strict=True)
        found = await self._bulk.fetch(QUERIES["page"], leaves, lines, numbers, self._incarnation, self._source)
        assert len(found) == len(places), "the journal lost rows that the cursor has not passed"
        return [Row._make(r) for r in found]
