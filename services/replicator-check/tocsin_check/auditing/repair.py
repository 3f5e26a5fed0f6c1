"""Makes drifted rows of the replica equal to the source's again: as SQL for people to run, or at once. The source is only read.

At once means, for each batch: the drift is proven anew; the replica's table is locked against the apply worker; what could still have been
on its way is waited for; both rows are read again and must be the very versions that were proven; the statement is written, committed, and
the row compared once more. What has changed in between is left alone: replication itself is at work on it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from tocsin.errors import OperatorError
from tocsin_check.auditing.audit import TableAudit
from tocsin_check.auditing.judgement import judge, version_of
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Unsettled
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.names import literal, quoted
from tocsin_check.rows.reading import Reading
from tocsin_check.rows.verdict import DRIFT, Case, Key, Seen, Verdict, same_versions

BATCH: Final = 500
_SETTLING: Final = 2.0
"""Seconds that the replica's table is kept locked for older transactions on the source."""
_SHOWN: Final = 200
_ORDER: Final = (Verdict.EXTRA, Verdict.DIFFERENT, Verdict.MISSING)
"""A value under a unique constraint is let go before it is taken."""
_WORDS: Final[Mapping[str, str]] = {"character": "bpchar", "bit": '"bit"'}
"""Without a length these names mean the length 1."""

Texts = tuple[str | None, ...]
Held = tuple[Seen, Texts | None]


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one row: `statement` as it could be run by hand; `left` says why it was left alone, None where it was written."""

    key: Key
    state: str
    statement: str
    left: str | None = None


def preamble(pinned: str) -> str:
    """What a script of statements begins with: values are read back as they were written, and no trigger of the application's fires."""
    return f"{pinned.strip()}\nBEGIN;\nSET LOCAL session_replication_role = replica;\n"


async def statements(sides: Sides, table: Comparable, keys: Sequence[Key], *, patience: float) -> AsyncIterator[list[Repair]]:
    """Proven once more, by batches; each statement is bound to the value that the replica showed. Raises Lagging."""
    for first in range(0, len(keys), BATCH):
        cases = await _proven(sides, table, keys[first : first + BATCH], patience)
        ours, theirs = await _held(sides.source, table.source, cases), await _held(sides.replica, table.replica, cases)
        found = []
        for case, one, other in zip(cases, ours, theirs, strict=True):
            if same_versions(case.source, one[0]) and same_versions(case.replica, other[0]):
                found.append(Repair(case.key, _state(case), _statement(table, case, one[1], other[1]), _repeated(case)))
        yield found


async def apply(sides: Sides, table: Comparable, keys: Sequence[Key], writer: asyncpg.Connection, *, patience: float) -> AsyncIterator[list[Repair]]:
    """Repair, by batches; `writer` is a session on the replica that may write. Raises Lagging, OperatorError, asyncpg's errors."""
    for first in range(0, len(keys), BATCH):
        cases = await _proven(sides, table, keys[first : first + BATCH], patience)
        yield await _written(sides, table, cases, writer) if cases else []


async def verify(sides: Sides, table: Comparable, repairs: Iterable[Repair], *, patience: float) -> set[Key]:
    """The written rows that still differ. Raises Lagging."""
    written = [repair.key for repair in repairs if repair.left is None]
    outcome = await TableAudit(sides, table, patience=patience).run_keys(written)
    return {case.key for case in [*outcome.drifted, *outcome.pending]}


async def _proven(sides: Sides, table: Comparable, keys: Sequence[Key], patience: float) -> list[Case]:
    cases = [Case(key) for key in keys]
    await judge(sides, table, cases, patience=patience)
    return sorted((case for case in cases if case.verdict in DRIFT), key=lambda case: _ORDER.index(case.verdict or Verdict.EXTRA))


async def _written(sides: Sides, table: Comparable, cases: list[Case], writer: asyncpg.Connection) -> list[Repair]:
    done = []
    async with writer.transaction():
        try:
            await writer.execute("SET LOCAL session_replication_role = replica")
        except asyncpg.InsufficientPrivilegeError as error:
            raise OperatorError(
                "repairing needs session_replication_role = replica, so that no trigger on the replica fires",
                "run on the replica: GRANT SET ON PARAMETER session_replication_role TO …; or name a superuser in TOCSIN_REPLICA_URL",
            ) from error
        await writer.execute(f"LOCK TABLE {table.replica.relation} IN SHARE ROW EXCLUSIVE MODE")
        # The apply worker waits for us from here on, so this must not wait long.
        reason = None
        try:
            await sides.fence.settled(await sides.fence.mark(), _SETTLING)
        except Unsettled as blocked:
            reason = str(blocked)
        ours, theirs = await _held(sides.source, table.source, cases), await _held(writer, table.replica, cases)
        for case, one, other in zip(cases, ours, theirs, strict=True):
            moved = None if same_versions(case.source, one[0]) else "the source"
            moved = moved if same_versions(case.replica, other[0]) else "the replica"
            left = reason or (f"the row has changed on {moved} in between" if moved else _repeated(case))
            statement = _statement(table, case, one[1], other[1])
            done.append(Repair(case.key, _state(case), statement, left or await _write(writer, statement)))
    return done


def _repeated(case: Case) -> str | None:
    if len(case.replica) < 2:
        return None
    return f"the replica has {len(case.replica)} rows with this key, and a statement would be for all of them; delete the copies there, and add the primary key"


class _NotOne(Exception):  # noqa: N818  # undoes a statement
    """It was for no row, or for several."""


async def _write(writer: asyncpg.Connection, statement: str) -> str | None:
    """None where exactly one row was written; else nothing was, and why."""
    try:
        async with writer.transaction():
            status = await writer.execute(statement)
            if status.rsplit(" ", 1)[-1] != "1":
                raise _NotOne
    except _NotOne:
        return "another row of the replica is in the way, or the row holds something else by now"
    except asyncpg.PostgresError as error:
        if isinstance(error, asyncpg.PostgresConnectionError):
            raise
        return f"the replica refuses it: {error}"
    return None


async def _held(connection: asyncpg.Connection, reading: Reading, cases: Sequence[Case]) -> list[Held]:
    """For each case the row's version and, where there is one, its values as text, read in one snapshot."""
    if not cases:
        return []
    sql, arguments = reading.lookup_sql([case.key for case in cases], texts=True)
    found: list[Held] = [((), None) for _ in cases]
    for row in await connection.fetch(sql, *arguments):
        seen, _ = found[row["ord"] - 1]
        found[row["ord"] - 1] = (tuple(sorted((*seen, version_of(row)))), tuple(row["texts"]))
    return found


def _state(case: Case) -> str:
    assert case.verdict is not None
    return case.verdict.value


def _statement(table: Comparable, case: Case, ours: Texts | None, theirs: Texts | None) -> str:
    """One statement, which does nothing where the replica holds something else than `theirs`; none where it would be for several rows."""
    if _repeated(case) is not None:
        return ""
    columns = table.replica.columns
    relation = table.name.sql
    if case.verdict is Verdict.MISSING and ours is not None:
        names = ", ".join(quoted(column.name) for column in columns)
        values = ", ".join(_value(text, column.type) for column, text in zip(columns, ours, strict=True))
        return f"INSERT INTO {relation} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values}) ON CONFLICT DO NOTHING;"
    key = " AND ".join(f"{part.expression} = {part.value(literal(value))}" for part, value in zip(table.replica.key, case.key, strict=True))
    unequal = [i for i in range(len(columns)) if ours is None or theirs is None or ours[i] != theirs[i]]
    guard = "".join(f" AND {_holds(columns[i].name, theirs[i])}" for i in unequal) if theirs is not None else ""
    target = table.replica.relation
    if case.verdict is Verdict.EXTRA or ours is None:
        return f"DELETE FROM {target} AS t WHERE {key}{guard};"
    changes = ", ".join(f"{quoted(columns[i].name)} = {_value(ours[i], columns[i].type)}" for i in unequal)
    return f"UPDATE {target} AS t SET {changes} WHERE {key}{guard};"


def _value(text: str | None, type_: str) -> str:
    if text is None:
        return "NULL"
    bare = type_.removesuffix("[]")
    return f"{literal(text).strip()}::{_WORDS.get(bare, bare)}{type_[len(bare) :]}"


def _holds(name: str, text: str | None) -> str:
    column = f"t.{quoted(name)}"
    if text is None:
        return f"{column} IS NULL"
    if len(text) > _SHOWN:
        return f"md5({column}::text) = md5({literal(text).strip()})"
    return f'{column}::text = {literal(text).strip()} COLLATE pg_catalog."C"'
