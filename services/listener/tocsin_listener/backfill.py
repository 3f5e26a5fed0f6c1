"""The present rows of a watched table as events of op `read`, in their right place among the live changes.

Each page is one short transaction that locks its rows FOR SHARE before it draws their numbers. So a change that was committed before
has a lower number, and one that comes later waits for the page and has a higher one: a read event neither overtakes nor undoes a change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import asyncpg

from tocsin.errors import OperatorError
from tocsin_listener.install import require_installed

PAGE: Final = 500
LOCK_TIMEOUT: Final = "100ms"
"""Far below deadlock_timeout: it is the backfill that gives way to a writer, never the other way round."""

_WATCHED: Final = """
SELECT w.id, c.relname AS name, n.nspname AS schema, format('"%s"."%s"', replace(n.nspname, '"', '""'), replace(c.relname, '"', '""')) AS place,
       greatest(c.reltuples, 0)::bigint AS rows, c.relkind = 'p' AS partitioned
FROM tocsin.watched AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE w.relation = to_regclass($1)
"""
_KEY: Final = """
SELECT s.ident, format_type(a.atttypid, a.atttypmod) AS type
FROM tocsin.watched AS w, tocsin.shape(w.relation) AS s JOIN pg_attribute AS a ON a.attname = s.name
WHERE w.id = $1 AND a.attrelid = w.relation AND s.key_place IS NOT NULL ORDER BY s.key_place
"""
_BODY: Final = """
SELECT tocsin.settings_source(w) AS settings, format($body$
DECLARE
    "tocsin:number" bigint := nextval('tocsin.seq');
    "tocsin:written" bigint;
BEGIN
    %s;
    GET DIAGNOSTICS "tocsin:written" = ROW_COUNT;%s
    RETURN "tocsin:written";
END $body$, tocsin.insert_source(w, 'read', $2, 'n', 'n.*', NULL, NULL), tocsin.bell_source()) AS body
FROM tocsin.watched AS w WHERE w.id = $1
"""


@dataclass(frozen=True, slots=True)
class Done:
    """`rows` read so far, events `written` of them (a watch's condition leaves some out), `total` as the server estimates it."""

    rows: int
    written: int
    total: int


async def backfill(
    connection: asyncpg.Connection,
    table: str,
    *,
    rate: float = 5000.0,
    page: int = PAGE,
    restart: bool = False,
    on_progress: Callable[[Done], None] = lambda _: None,
) -> Done:
    """Read the whole table in the order of its key, at most `rate` rows a second, from where an unfinished backfill of it stopped.

    Raises OperatorError for a table that is not watched, that has no key, or whose rows may not be locked.
    """
    await require_installed(connection)
    watched = await connection.fetchrow(_WATCHED, table)
    if watched is None:
        raise OperatorError(f"{table} is not watched", f"tocsin watch {table}")
    key = await connection.fetch(_KEY, watched["id"])
    if not key:
        raise OperatorError(f"{table} has no primary key to go by", f"ALTER TABLE {table} ADD PRIMARY KEY (…), then tocsin watch {table}")
    reader = _Reader(connection, table, watched, [k["ident"] for k in key], [k["type"] for k in key])
    await reader.prepare()
    try:
        return await reader.run(rate, page, restart, on_progress)
    except asyncpg.InsufficientPrivilegeError as error:
        user = await connection.fetchval("SELECT current_user")
        raise OperatorError(f"{table}: {error}", f"as its owner: GRANT SELECT, UPDATE ON {table} TO {user}; UPDATE since its rows are locked") from error


class _Reader:
    """One table's backfill on one connection; its function is temporary and knows the watch as it is now."""

    def __init__(self, connection: asyncpg.Connection, table: str, watched: asyncpg.Record, key: list[str], types: list[str]) -> None:
        self._connection = connection
        self._table = table
        self._watched = watched
        self._columns = ", ".join(f"t.{name}" for name in key)
        self._types = types
        self._texts = ", ".join(f"t.{name}::text" for name in key)

    def _bound(self, array: str) -> str:
        return ", ".join(f"({array})[{place}]::{kind}" for place, kind in enumerate(self._types, 1))

    async def prepare(self) -> None:
        after, upto = '"tocsin:after"', '"tocsin:upto"'
        rows = (
            f"(SELECT t.* FROM {self._watched['place']} AS t"
            f" WHERE ({after} IS NULL OR ({self._columns}) > ({self._bound(after)})) AND ({upto} IS NULL OR ({self._columns}) <= ({self._bound(upto)}))"
            f" ORDER BY {self._columns} FOR SHARE) AS n"
        )
        made = await self._connection.fetchrow(_BODY, self._watched["id"], rows)
        assert made is not None
        await self._connection.execute(
            f"CREATE OR REPLACE FUNCTION pg_temp.tocsin_backfill({after} text[], {upto} text[]) RETURNS bigint LANGUAGE plpgsql"
            f" SET search_path = pg_catalog, pg_temp {made['settings'] or ''} AS $backfill$#variable_conflict use_column\n{made['body']}$backfill$"
        )

    async def run(self, rate: float, page: int, restart: bool, on_progress: Callable[[Done], None]) -> Done:
        if restart:
            await self._connection.execute("DELETE FROM tocsin.backfill WHERE relation = to_regclass($1)", self._table)
        stored = await self._connection.fetchrow("SELECT after, rows FROM tocsin.backfill WHERE relation = to_regclass($1)", self._table)
        after, rows = (stored["after"], stored["rows"]) if stored else (None, 0)
        total, written = max(rows, self._watched["rows"]), 0
        begun, before = time.monotonic(), rows
        while True:
            upto, count = await self._next(after, page)
            written += await self._page(after, upto, rows + count)
            rows += count
            total = max(total, rows) if upto is not None else rows
            on_progress(Done(rows, written, total))
            if upto is None:
                return Done(rows, written, total)
            after = upto
            await asyncio.sleep(max(0.0, begun + (rows - before) / rate - time.monotonic()))

    async def _next(self, after: list[str] | None, page: int) -> tuple[list[str] | None, int]:
        """The key of the page's last row, or None for the table's end, and the page's count of rows."""
        found = await self._connection.fetch(
            f"SELECT ARRAY[{self._texts}] AS key FROM {self._watched['place']} AS t"
            f" WHERE $1::text[] IS NULL OR ({self._columns}) > ({self._bound('$1::text[]')}) ORDER BY {self._columns} LIMIT $2",
            after,
            page,
        )
        return (found[-1]["key"] if len(found) == page else None), len(found)

    async def _page(self, after: list[str] | None, upto: list[str] | None, rows: int) -> int:
        while True:
            try:
                async with self._connection.transaction():
                    await self._connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                    written: int = await self._connection.fetchval("SELECT pg_temp.tocsin_backfill($1::text[], $2::text[])", after, upto)
                    await self._note(upto, rows)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                await asyncio.sleep(0.2)
            else:
                return written

    async def _note(self, upto: list[str] | None, rows: int) -> None:
        if upto is None:
            await self._connection.execute("DELETE FROM tocsin.backfill WHERE relation = to_regclass($1)", self._table)
        else:
            await self._connection.execute(
                "INSERT INTO tocsin.backfill (relation, after, rows) VALUES (to_regclass($1), $2, $3)"
                " ON CONFLICT (relation) DO UPDATE SET after = excluded.after, rows = excluded.rows, at = now()",
                self._table,
                upto,
                rows,
            )
