"""`since: "snapshot"`: one table's rows from the source, as of one moment that the events can be told from.

The stream's end is read first, and the moment is taken after that: so an event that was in the stream before is of a
transaction that the moment sees. Of the events behind it, those whose transaction the moment sees are in the rows already.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import msgspec
import structlog

from tocsin import postgres, retry
from tocsin.errors import OperatorError, Unavailable
from tocsin.sql import load_queries
from tocsin.subject import Pattern, SubjectError, decode_token, encode_token
from tocsin_gateway.admission.concealment import ROUTE_AT
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.delivery.selection import Selection, Unseen
from tocsin_gateway.protocol import ProtocolError
from tocsin_gateway.rows.change import as_json, fields_of
from tocsin_gateway.source.pushdown import pushed

log = structlog.get_logger("tocsin.gateway")

AT_ONCE: Final = 4
TURN_SECONDS: Final = 10.0
PUBLISH_SECONDS: Final = 30.0
FIRST_PAGE: Final = 20
PAGE: Final = 1000
PAGE_BYTES: Final = 512 << 10
_SQL: Final = load_queries("tocsin_gateway", "source/snapshot.sql")
_columns: Final = msgspec.json.Decoder(dict[str, tuple[str, str]])
_TXID: Final = re.compile(rb'"txid": ?"([0-9]+)"')
_PINNED: Final = """
SET LOCAL search_path = pg_catalog; SET LOCAL row_security = off; SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'
"""


@dataclass(frozen=True, slots=True)
class Table:
    """What a snapshot's pattern names: `subject` is that of an insert without its route, `pattern` says which routes."""

    schema: str
    name: str
    tokens: tuple[str, str]
    subject: str
    pattern: Pattern

    def has(self, route: str) -> bool:
        return self.pattern.matches(f"{self.subject}{route}")


class Moment:
    """A pg_snapshot: which transactions it sees."""

    def __init__(self, text: str) -> None:
        self.text: Final = text
        lowest, end, running = text.split(":")
        self._lowest, self._end = int(lowest), int(end)
        self._running = frozenset(map(int, running.split(","))) if running else frozenset[int]()

    def sees(self, event: StreamEvent) -> bool:
        """Whether the event's transaction is in the rows already."""
        found = _TXID.search(event.body)
        return found is not None and self._sees(int(found[1]))

    def _sees(self, txid: int) -> bool:
        return txid < self._lowest or (txid < self._end and txid not in self._running)


@dataclass(frozen=True, slots=True)
class Row:
    """One row as JSON; `row` is None where it is larger than an event may be."""

    key: bytes
    row: bytes | None


class TableRows:
    """One table at one moment, in an open transaction."""

    def __init__(self, connection: asyncpg.Connection, moment: Moment, table: Table, query: str, values: list[Any]) -> None:
        self._connection = connection
        self._table = table
        self._query = query
        self._values = values
        self.moment = moment

    async def pages(self) -> AsyncIterator[list[Row]]:
        cursor = await self._connection.cursor(self._query, *self._values)
        size = FIRST_PAGE
        while found := await cursor.fetch(size):
            rows = [Row(r["key"].encode(), None if r["row"] is None else r["row"].encode()) for r in found if self._table.has(r["route"])]
            average = sum(len(r["row"] or "") for r in found) // len(found) + 1
            size = max(1, min(PAGE, PAGE_BYTES // average))
            yield rows


class Snapshots:
    """A worker's reads of the source: few at once, each in a read-only transaction of its own."""

    def __init__(self, database_url: str | None, stream: str, source: str) -> None:
        self._source = source
        self._database_url = database_url
        self._stream = stream
        self._turns = asyncio.Semaphore(AT_ONCE)

    def table_of(self, pattern: Pattern, id: str) -> Table:  # noqa: A002  # the field's name
        """The one table, with every op, that the pattern names. Raises ProtocolError bad-since."""
        tokens = pattern.tokens
        if len(tokens) < 6 or tokens[2] != "change" or tokens[5] not in ("*", ">") or any(token in ("*", ">") for token in tokens[:5]):
            message = f"a snapshot is of one table and every op, such as pg.{encode_token(self._source)}.change.public.orders.>; {pattern.text!r} is not"
            raise ProtocolError("bad-since", message, id)
        if tokens[1] != encode_token(self._source):
            raise ProtocolError("bad-since", f"this gateway reads the rows of the source {self._source!r} alone", id)
        try:
            schema, name = decode_token(tokens[3]), decode_token(tokens[4])
        except (SubjectError, UnicodeError) as error:
            raise ProtocolError("bad-since", f"{pattern.text!r}: {error}", id) from None
        return Table(schema or "", name or "", (tokens[3], tokens[4]), ".".join((*tokens[:5], "insert")), pattern)

    @contextlib.asynccontextmanager
    async def connection(self, id: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: A002  # the field's name
        """A connection to the source, when it is our turn. Raises ProtocolError unavailable, limit."""
        if self._database_url is None:
            raise ProtocolError("unavailable", "this gateway has no source database to read rows from: its TOCSIN_DATABASE_URL is not set", id)
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise ProtocolError("limit", f"{AT_ONCE} snapshots at once are read; try again when one has ended", id) from None
        try:
            async with postgres.connection(self._database_url, setting="TOCSIN_DATABASE_URL", application="tocsin gateway snapshot") as connection:
                yield connection
        except (OperatorError, Unavailable, *postgres.TRANSIENT, asyncpg.PostgresError) as error:
            # What it says of the server is for the operator alone.
            log.warning("a snapshot could not be read", error=str(error) or type(error).__name__)
            raise ProtocolError("unavailable", "the rows can't be read from the source at the moment; the gateway's log says why", id) from None
        finally:
            self._turns.release()

    @contextlib.asynccontextmanager
    async def rows(
        self,
        connection: asyncpg.Connection,
        table: Table,
        id: str,  # noqa: A002  # the field's name
        selection: Selection | None = None,
    ) -> AsyncIterator[TableRows]:
        """The table at the moment of the call, at least the rows that `selection` shows. Raises ProtocolError."""
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(_PINNED)
            moment, watch = await connection.fetchrow(_SQL["moment"]), await connection.fetchrow(_SQL["table"], table.schema, table.name)
            if watch is None or moment is None:
                raise ProtocolError("bad-since", f"{table.schema}.{table.name} is not watched; a snapshot is of a watched table", id)
            if moment["standby"] or moment["stream"] not in (None, self._stream):
                log.warning("TOCSIN_DATABASE_URL is not the stream's source", standby=moment["standby"], stream=moment["stream"])
                raise ProtocolError("unavailable", "the gateway's TOCSIN_DATABASE_URL is not the database that this stream comes from", id)
            if not _fits(table.pattern, watch["route_length"]):
                message = f"a subject of {table.schema}.{table.name} ends in its operation and {watch['route_length']} tokens of its route; write .> at the end"
                raise ProtocolError("bad-since", message, id)
            wheres = () if selection is None else selection.conditions(table.tokens)
            conditions, values = pushed(wheres, _columns.decode(watch["columns"] or "{}"), unicode=connection.get_settings().server_encoding == "UTF8")
            yield TableRows(connection, Moment(moment["moment"]), table, _query(watch, moment["max_event"], conditions), values)

    async def until_published(self, connection: asyncpg.Connection, moment: Moment, id: str) -> None:  # noqa: A002  # the field's name
        """Returns once the stream has every event that the moment sees. Raises ProtocolError unavailable."""
        pauses = retry.Pauses(longest=0.5)
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                while await connection.fetchval(_SQL["behind"], moment.text) is not False:
                    await asyncio.sleep(pauses.next())
        except TimeoutError:
            raise ProtocolError("unavailable", "the listener does not publish what the rows already show; is it running?", id) from None


def _fits(pattern: Pattern, route_length: int) -> bool:
    """Whether subjects with so long a route can be the pattern's at all."""
    whole = ROUTE_AT + route_length
    return len(pattern.tokens) <= whole if pattern.tokens[-1] == ">" else len(pattern.tokens) == whole


def _query(watch: asyncpg.Record, largest: int, conditions: list[str]) -> str:
    conditions = [*([watch["condition"]] if watch["condition"] else []), *conditions]
    row = watch["row"] if watch["oversized"] is None else f"CASE WHEN {watch['oversized']} THEN NULL ELSE {watch['row']} END"
    route = watch["route"] or "''"
    return (
        f"SELECT route, key, CASE WHEN octet_length(row) <= {largest} THEN row END AS row"  # the listener's own, quoted by it
        f" FROM (SELECT {route} AS route, {watch['key']} AS key, {row} AS row FROM {watch['place']} AS t"
        f"{' WHERE ' + ' AND '.join(f'({each})' for each in conditions) if conditions else ''} OFFSET 0) AS x"
    )


def shown_row(selection: Selection | None, table: Table, row: Row) -> tuple[bytes, bytes | None] | Unseen | None:
    """A row's key and values as a subscription with this selection gets them, as JSON; None where it is not in its set."""
    if selection is None:
        return row.key, row.row
    key = None if row.key == b"null" else fields_of(row.key)
    shown = selection.row(table.tokens, key, fields_of(row.row) if row.row is not None else None)
    if shown is None or isinstance(shown, Unseen):
        return shown
    return (b"null" if shown[0] is None else bytes(as_json(shown[0]))), (None if shown[1] is None else bytes(as_json(shown[1])))
