"""Takes cases to their verdicts: the observations and the fences that the state machine asks for, for many keys at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar

import asyncpg

from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Unsettled
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.reading import Reading
from tocsin_check.rows.verdict import Case, Seen, Stage, Verdict, Version, at, same_values

One = TypeVar("One")
Other = TypeVar("Other")

BATCH: Final = 5_000
"""Keys judged together: they share each fence."""


async def both(one: Awaitable[One], other: Awaitable[Other]) -> tuple[One, Other]:
    """Both results, got at the same time; the first exception as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(_result(one)), group.create_task(_result(other))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return first.result(), second.result()


async def _result(awaitable: Awaitable[One]) -> One:
    return await awaitable


async def judge(sides: Sides, table: Comparable, cases: Sequence[Case], *, patience: float) -> None:
    """Take every case to its verdict; each step makes one observation for all cases that wait for it. Raises Lagging."""
    while any(case.stage is not Stage.DONE for case in cases):
        for case, seen in await _lookup(sides.source, table.source, at(Stage.READ, cases)):
            case.read(seen)
        for case, seen in await _fenced_lookup(sides, table, at(Stage.FENCE, cases), patience):
            case.fenced(seen)
        for case, seen in await _lookup(sides.source, table.source, at(Stage.LOOK, cases)):
            case.looked(seen)
        await _settle(sides, table, at(Stage.SETTLE, cases), patience)
        for case, seen in await _fenced_lookup(sides, table, at(Stage.CONFIRM, cases), patience):
            case.confirmed(seen)
    await _name_columns(sides, table, [case for case in cases if case.verdict is Verdict.DIFFERENT])


async def _settle(sides: Sides, table: Comparable, cases: list[Case], patience: float) -> None:
    if not cases:
        return
    try:
        await sides.fence.settled(await sides.fence.mark(), patience)
    except Unsettled as blocked:
        for case in cases:
            case.give_up(str(blocked))
        return
    for case, seen in await _lookup(sides.source, table.source, cases):
        case.settled(seen)


async def _fenced_lookup(sides: Sides, table: Comparable, cases: list[Case], patience: float) -> list[tuple[Case, Seen]]:
    if cases:
        await sides.fence.arrived(await sides.fence.mark(), patience)
    return await _lookup(sides.replica, table.replica, cases)


async def _lookup(connection: asyncpg.Connection, reading: Reading, cases: list[Case]) -> list[tuple[Case, Seen]]:
    if not cases:
        return []
    sql, arguments = reading.lookup_sql([case.key for case in cases])
    versions: dict[int, list[Version]] = {}
    for row in await connection.fetch(sql, *arguments):
        versions.setdefault(row["ord"], []).append(version_of(row))
    return [(case, tuple(sorted(versions.get(i, ())))) for i, case in enumerate(cases, 1)]


async def _name_columns(sides: Sides, table: Comparable, cases: list[Case]) -> None:
    """Which columns differ, for rows that still hold what was judged."""
    for first in range(0, len(cases), BATCH):
        batch = cases[first : first + BATCH]
        found = []
        for connection, reading in ((sides.source, table.source), (sides.replica, table.replica)):
            sql, arguments = reading.lookup_sql([case.key for case in batch], columns=True)
            found.append({row["ord"]: row for row in await connection.fetch(sql, *arguments)})
        ours, theirs = found
        for i, case in enumerate(batch, 1):
            if i in ours and i in theirs and _still(case.source, ours[i]) and _still(case.replica, theirs[i]):
                pairs = zip(table.source.columns, ours[i]["columns"], theirs[i]["columns"], strict=True)
                case.columns = tuple(column.name for column, one, other in pairs if one != other)


def _still(judged: Seen, row: asyncpg.Record) -> bool:
    return same_values(judged, (version_of(row),))


def version_of(row: asyncpg.Record) -> Version:
    return Version(row["place"], row["xmin"], row["untouched"], (row["h1"], row["h2"]))
