"""What drifted rows hold on both sides, for people who asked to see it. The report itself never has values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import Sides
from tocsin_check.rows.names import quoted
from tocsin_check.rows.reading import Reading
from tocsin_check.rows.verdict import Key

Pair = tuple[str | None, str | None]


async def values(sides: Sides, table: Comparable, rows: Mapping[Key, Sequence[str]]) -> dict[Key, dict[str, Pair]]:
    """For each key and column what the source and the replica hold now, as PostgreSQL's text. `rows` names the columns asked for.

    A row that is gone meanwhile on one side is left out.
    """
    wanted = {key: columns for key, columns in rows.items() if columns}
    if not wanted or not table.source.unique:
        return {}
    names = sorted({name for columns in wanted.values() for name in columns})
    found = []
    for connection, reading in ((sides.source, table.source), (sides.replica, table.replica)):
        sql = _sql(reading, names)
        answer = await connection.fetch(sql, *[list(parts) for parts in zip(*wanted, strict=True)])
        found.append({row["ord"]: dict(zip(names, row["texts"], strict=True)) for row in answer})
    ours, theirs = found
    return {
        key: {name: (ours[i][name], theirs[i][name]) for name in columns} for i, (key, columns) in enumerate(wanted.items(), 1) if i in ours and i in theirs
    }


def _sql(reading: Reading, columns: Sequence[str]) -> str:
    names = [f'"tocsin k{i}"' for i in range(1, len(reading.key) + 1)]
    arrays = ", ".join(f"${i}::text[]" for i in range(1, len(reading.key) + 1))
    join = " AND ".join(f"{part.expression} = {part.value('w.' + name)}" for part, name in zip(reading.key, names, strict=True))
    texts = ", ".join(f"(t.{quoted(column)})::text" for column in columns)
    wanted = f'unnest({arrays}) WITH ORDINALITY AS w({", ".join(names)}, "tocsin ord")'
    return f'SELECT w."tocsin ord" AS ord, ARRAY[{texts}] AS texts FROM {wanted} JOIN {reading.relation} AS t ON {join}'
