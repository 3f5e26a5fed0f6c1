"""Tables of random columns, which the replica may hold in another order: nothing is called drift that is none, and every planted drift is found
with its columns, and repaired.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tests.support.shapes import NAMES, TYPES, VALUES, quoted, value
from tocsin_check import sessions
from tocsin_check.auditing import repair
from tocsin_check.auditing.audit import TableAudit
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import open_sides
from tocsin_check.watch.checker import Checker

Setup = Callable[..., Awaitable[None]]
TABLES = 6
KEYS = ["id int", "id bigint", "id text", 'id text COLLATE "C"', "id uuid", "id numeric", "id timestamptz", "part text, id int", "part float4, id date"]
EXACT = {
    "int",
    "bigint",
    "smallint",
    "text",
    'text COLLATE "C"',
    "varchar(9)",
    "bytea",
    "numeric",
    "float8",
    "uuid",
    "timestamptz",
    "jsonb",
    "int[]",
    "inet",
    "pair",
}
"""Of which a value drawn anew is nearly always another one."""


@dataclass
class Table:
    """A table on both sides, and what was planted on the replica."""

    name: str
    chance: random.Random
    columns: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    planted: dict[str, int] = field(default_factory=lambda: {"missing": 0, "extra": 0, "different": 0})

    def draw(self) -> None:
        for name in self.chance.sample(NAMES, self.chance.randint(1, 9)):
            self.columns[name] = self.chance.choice(list(VALUES))
        self.keys = dict(part.split(" ", 1) for part in self.chance.choice(KEYS).split(", "))
        self.rows = self.chance.choice([1, 40, 700])

    def create(self, *, elsewhere: bool) -> str:
        """With columns that are gone, and, elsewhere, in another order, with a column more, or cut into partitions."""
        parts = [f"{quoted(name)} {kind}" for name, kind in self.columns.items()] + [f"{name} {kind} NOT NULL" for name, kind in self.keys.items()]
        parts += ["gone1 int", "gone2 text DEFAULT 'x'", *(["more text"] if elsewhere and self.chance.random() < 0.3 else [])]
        self.chance.shuffle(parts)
        create = f"CREATE TABLE {self.name} ({', '.join(parts)}, PRIMARY KEY ({', '.join(self.keys)}))"
        if elsewhere and self.chance.random() < 0.3:
            create += f" PARTITION BY HASH (id); CREATE TABLE {self.name}_0 PARTITION OF {self.name} FOR VALUES WITH (MODULUS 2, REMAINDER 0)"
            create += f"; CREATE TABLE {self.name}_1 PARTITION OF {self.name} FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        return f"{create}; ALTER TABLE {self.name} DROP gone1, DROP gone2"

    def insert(self, first: int, last: int) -> str:
        names = ", ".join([*self.keys, *map(quoted, self.columns)])
        values = [KEY_VALUES[kind] for kind in self.keys.values()]
        values += [
            f"CASE WHEN g % 7 = {self.chance.randint(0, 6)} THEN NULL ELSE {value(kind, self.chance.randint(0, 10**9), 'g')} END"
            for kind in self.columns.values()
        ]
        return f"INSERT INTO {self.name} ({names}) SELECT {', '.join(values)} FROM generate_series({first}, {last}) AS g"


KEY_VALUES = {
    "int": "g",
    "bigint": "g::bigint * 1000000007",
    "text": "'k ' || g",
    'text COLLATE "C"': "'Ü' || g",
    "uuid": "md5(g::text)::uuid",
    "numeric": "g::numeric / 7",
    "timestamptz": "'2026-01-01'::timestamptz + g * interval '1 us'",
    "float4": "(g % 5)::float4 / 3",
    "date": "'2026-01-01'::date + g",
}


async def plant(replica: asyncpg.Connection, table: Table) -> dict[str, set[str]]:
    """Drift of each kind on the replica; the columns that differ, by the row's id."""
    ids = [row["id"] for row in await replica.fetch(f"SELECT id::text AS id FROM {table.name} ORDER BY 1")]
    chosen = table.chance.sample(ids, min(len(ids), table.chance.randint(0, 12)))
    differing: dict[str, set[str]] = {}
    candidates = [name for name, kind in table.columns.items() if kind in EXACT]
    for place, id_ in enumerate(chosen):
        if place % 3 == 0 or not candidates:
            table.planted["missing"] += await written(replica, f"DELETE FROM {table.name} WHERE id::text = $1", id_)
            continue
        name = table.chance.choice(candidates)
        other = "NULL" if table.chance.random() < 0.3 else value(table.columns[name], table.chance.randint(0, 10**9), "1")
        if await written(
            replica, f"UPDATE {table.name} SET {quoted(name)} = {other} WHERE id::text = $1 AND {quoted(name)}::text IS DISTINCT FROM ({other})::text", id_
        ):
            table.planted["different"] += 1
            differing[id_] = {name}
    table.planted["extra"] = table.chance.randint(0, 3)
    await replica.execute(table.insert(10_001, 10_000 + table.planted["extra"]))
    return differing


async def written(connection: asyncpg.Connection, statement: str, *arguments: str) -> int:
    return int((await connection.execute(statement, *arguments)).rsplit(" ", 1)[1])


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
async def test_tables_of_any_shape_are_in_sync_until_something_is_planted_and_after_its_repair(
    seed: int, setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    chance = random.Random(seed)
    tables = {f"public.t{number}": Table(f"t{number}", chance) for number in range(TABLES)}
    for connection in (source, replica):
        await connection.execute(TYPES)
    for table in tables.values():
        table.draw()
        await source.execute(table.create(elsewhere=False))
        await source.execute(table.insert(1, table.rows))
        await replica.execute(table.create(elsewhere=True))
    await setup()
    reports = await audit()
    assert {name: (reports[name].status, reports[name].rows, reports[name].reason) for name in tables} == {
        name: ("in_sync", table.rows, None) for name, table in tables.items()
    }
    differing = {name: await plant(replica, table) for name, table in tables.items()}
    reports = await audit()
    for name, table in tables.items():
        report = reports[name]
        assert {"missing": report.missing, "extra": report.extra, "different": report.different} == table.planted, (name, table)
        page = reports.ledger.page(name, None, 100)
        assert page is not None
        assert {str(row.key["id"]): set(row.columns) for row in page.rows if row.state == "different"} == differing[name], (name, table)
    await repair_all(source_url, replica_url)
    assert {report.status for report in (await audit()).values()} == {"in_sync"}
    for table in tables.values():
        listed = ", ".join([*table.keys, *map(quoted, table.columns)])
        query = f"SELECT ROW({listed})::text FROM {table.name} ORDER BY 1"
        assert await source.fetch(query) == await replica.fetch(query), table


async def repair_all(source_url: str, replica_url: str) -> None:
    """Audit each table, and repair what drifted."""
    writer = await sessions.open_repairer(replica_url)
    async with open_sides(source_url, replica_url) as sides:
        for table in await Checker(source_url, replica_url).take_stock(sides):
            assert isinstance(table, Comparable), table
            drifted = (await TableAudit(sides, table, patience=5).run()).drifted
            async for batch in repair.apply(sides, table, [case.key for case in drifted], writer, patience=5):
                assert [each.left for each in batch if each.left] == []
    await writer.close()
