"""The watched tables and their columns, as the source tells them; and the refusal of a column that a table does not have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import asyncpg
import structlog

from tocsin import postgres
from tocsin.errors import TocsinError
from tocsin.sql import load_queries
from tocsin.subject import Pattern, encode_token
from tocsin_gateway import protocol
from tocsin_gateway.admission.concealment import ROUTE_AT, check_route
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.protocol import Code, ProtocolError, Subscribe
from tocsin_gateway.rows.visibility import Table

log = structlog.get_logger("tocsin.gateway")

FRESH_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 0.25
QUERY_SECONDS: Final = 3.0
SHOWN_COLUMNS: Final = 60
_SQL: Final = load_queries("tocsin_gateway", "source/catalogue.sql")


class Watched:
    """What catalogue.sql says; asked of the source at most every FRESH_SECONDS, and only when somebody wants it."""

    def __init__(self, database_url: str | None = None, source: str = "") -> None:
        self._database_url = database_url
        self._source = source
        self._asking = asyncio.Lock()
        self._rows: list[Mapping[str, Any]] = []
        self._read_at = float("-inf")

    @property
    def known(self) -> bool:
        """Whether there is a source that can be asked."""
        return self._database_url is not None

    async def rows(self, fresh: float = FRESH_SECONDS) -> list[Mapping[str, Any]]:
        """A row for each column, no older than `fresh` seconds; the last that were had where the source can't be asked."""
        if self._database_url is None:
            return []
        if self._stale(fresh):
            async with self._asking:
                if self._stale(fresh):
                    self._rows = await self._read(self._database_url)
                    self._read_at = time.monotonic()
        return self._rows

    def _stale(self, fresh: float) -> bool:
        return time.monotonic() - self._read_at >= fresh

    async def columns(self, table: Table, wanted: frozenset[str]) -> tuple[str, ...]:
        """The table's columns in its order, none where it is not known. Asked anew where a wanted one is not among them: it may have been added just now."""
        found = _columns(await self.rows(), table)
        return found if not found or wanted <= set(found) else _columns(await self.rows(AGAIN_SECONDS), table)

    async def check(self, request: Subscribe, grant: Grant | None) -> None:
        """Refuse a column in `where` or `select` that the one table of the pattern does not have, or that the token hides; that one in the route too.

        What several tables match, another source's table and one that is not known are not checked. Only who may have the table is told its
        columns. Raises ProtocolError.
        """
        if grant is None:
            return
        pattern = protocol.checked_pattern(request)
        if grant.visibility.touches(pattern) and len(pattern.tokens) > ROUTE_AT:
            grant.check(pattern, request.id)
            check_route(pattern, request.id, grant, await self.rows())
        if not request.where and not request.select:
            return
        where, select = protocol.checked_where(request), protocol.checked_select(request)
        table = self.one_table(pattern)
        if table is None:
            return
        grant.check(pattern, request.id)
        asked: tuple[tuple[str, Code, frozenset[str]], ...] = (
            ("where", "bad-where", where.columns if where is not None else frozenset()),
            ("select", "bad-message", select or frozenset()),
        )
        hidden = grant.visibility.hidden(table)
        columns = await self.columns(table, frozenset().union(*(names for _, _, names in asked)))
        visible = [column for column in columns if column not in hidden]
        for field, code, names in asked:
            missing = sorted(names & hidden if not columns else names - set(visible))
            if missing:
                raise ProtocolError(code, _refusal(field, missing[0], pattern, visible), request.id)

    def one_table(self, pattern: Pattern) -> Table | None:
        """The table of our own source that the pattern names; None where it may match several, or another source's."""
        tokens = pattern.tokens
        if len(tokens) < 5 or tokens[1] != encode_token(self._source) or tokens[2] != "change" or not {"*", ">"}.isdisjoint(tokens[:5]):
            return None
        return tokens[3], tokens[4]

    async def _read(self, database_url: str) -> list[Mapping[str, Any]]:
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                connection = await postgres.connect(database_url, setting="TOCSIN_DATABASE_URL", application="tocsin gateway catalogue", timeout=QUERY_SECONDS)
                try:
                    return [dict(row) for row in await connection.fetch(_SQL["watched"])]
                finally:
                    await postgres.close(connection)
        except (TocsinError, asyncpg.PostgresError, OSError, TimeoutError) as error:
            log.info("the source's tables are not described", reason=str(error) or type(error).__name__)
            return self._rows


def _columns(rows: Iterable[Mapping[str, Any]], table: Table) -> tuple[str, ...]:
    return tuple(row["column"] for row in rows if (encode_token(row["schema"]), encode_token(row["table"])) == table)


def _refusal(field: str, column: str, pattern: Pattern, visible: list[str]) -> str:
    table = ".".join(pattern.tokens[3:5])
    shown = ", ".join(visible[:SHOWN_COLUMNS]) + (f" and {len(visible) - SHOWN_COLUMNS} more" if len(visible) > SHOWN_COLUMNS else "")
    return f"{field}: events of {table} have no column {column[:128]!r} for you" + (f"; its columns are {shown}" if visible else "")
