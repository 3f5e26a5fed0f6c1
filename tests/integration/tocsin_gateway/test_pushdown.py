"""A snapshot's conditions in SQL never leave out a row that `where` lets through, whatever is in the table; and they find what they ask for by an index."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from tocsin_gateway.rows.change import Values, fields_of
from tocsin_gateway.rows.condition import Where
from tocsin_gateway.source.pushdown import pushed
from tocsin_listener.install import install
from tocsin_listener.watch import watch

TABLE = """
CREATE DOMAIN amount AS numeric CHECK (VALUE IS DISTINCT FROM 99);
CREATE TABLE things (id int PRIMARY KEY, small smallint, whole integer, big bigint, number numeric, fixed numeric(10,2), money amount, word text,
                     short varchar(20), loose text COLLATE "C", padded char(6), yes boolean, mark uuid, real double precision, doc jsonb, day timestamptz)
"""
WHOLE = [None, -1, 0, 1, 42, 32767]
NUMBERS = [None, "0", "-1", "42", "42.00", "0.1", "0.10000000000000000001", "9007199254740993", "NaN", "Infinity", "-Infinity", "1e300"]
WORDS = [None, "", "a", "A", "ä", "🔔", "42", "42.0", "x y", "null", "true", "%", "\\"]
UUIDS = [None, "00000000-0000-0000-0000-000000000042", "ffffffff-ffff-4fff-bfff-ffffffffffff"]
COLUMNS: dict[str, list[Any]] = {
    "small": WHOLE,
    "whole": [*WHOLE, 2**31 - 1],
    "big": [*WHOLE, 2**53 + 1, 2**63 - 1, -(2**63)],
    "number": [None if n is None else Decimal(n) for n in NUMBERS],
    "fixed": [None, *(Decimal(n) for n in ("0", "42", "0.1", "-1.25"))],
    "money": [None, Decimal(42), Decimal("0.5")],
    "word": WORDS,
    "short": WORDS,
    "loose": WORDS,
    "padded": [None, "a", "42", ""],
    "yes": [None, True, False],
    "mark": UUIDS,
    "real": [None, 0.1, 42.0, float("nan")],
    "doc": [None, "null", "42", '"a"'],
}
OPERANDS: list[Any] = [
    *(-1, 0, 1, 42, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**700, True, False, "NaN", "\0", "\ud800"),
    *(Decimal(n) for n in ("0.1", "0.10", "42.00", "41.5", "0.10000000000000000001", "1e300", "1e-700", "1e999999", "1e3")),
    *(word for word in (*WORDS, *UUIDS, "FFFFFFFF-FFFF-4FFF-BFFF-FFFFFFFFFFFF") if word is not None),
]


@pytest_asyncio.fixture
async def things(source: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    await install(source)
    await source.execute(TABLE)
    await source.execute("CREATE INDEX ON things (whole); CREATE INDEX ON things (word)")
    chance = random.Random(3)
    rows = [(number, *(chance.choice(values) for values in COLUMNS.values())) for number in range(400)]
    await source.executemany(f"INSERT INTO things (id, {', '.join(COLUMNS)}) VALUES ({', '.join(f'${n}' for n in range(1, len(COLUMNS) + 2))})", rows)
    yield source


async def columns_of(connection: asyncpg.Connection) -> dict[str, tuple[str, str]]:
    """As snapshot.sql tells them."""
    found = await connection.fetch("SELECT s.name, s.type, tocsin.value_source(s, 't', 'things') AS value FROM tocsin.shape('things') AS s")
    return {row["name"]: (row["type"], row["value"]) for row in found}


def operand_of(operator: str, pool: list[Any], chance: random.Random) -> Any:
    if operator == "in":
        return chance.choices(pool, k=chance.choice((1, 2, 4)))
    return chance.random() < 0.5 if operator == "null" else "%a%" if operator == "like" else chance.choice(pool)


def asked(chance: random.Random) -> dict[str, Any]:
    """Conditions on one or two columns, of operands that fit some of the time."""
    made: dict[str, Any] = {}
    for column in chance.sample([*COLUMNS, "missing"], chance.choice((1, 1, 2))):
        operator = chance.choice(("eq", "eq", "ne", "lt", "lte", "gt", "gte", "in", "in", "null", "like"))
        near = [value for value in COLUMNS.get(column, []) if isinstance(value, (str, int, bool)) or (isinstance(value, Decimal) and value.is_finite())]
        pool = [*near, *OPERANDS] if chance.random() < 0.5 or not near else near
        made[column] = {operator: operand_of(operator, pool, chance)}
    return made


@pytest.mark.parametrize("exact", [False, True])
async def test_no_row_that_where_lets_through_is_left_out(things: asyncpg.Connection, exact: bool) -> None:
    """The judge of events decides in both: over all rows, and over those that came back from SQL."""
    await watch(things, ["things"], exact_numbers=exact)
    row_source = await things.fetchval("SELECT tocsin.row_source(w, 't', 't.*') FROM tocsin.watched AS w")
    rows = {r["id"]: Values(fields_of(r["row"].encode())) for r in await things.fetch(f"SELECT id, {row_source} AS row FROM things AS t")}
    columns, chance = await columns_of(things), random.Random(7)
    narrowed = exactly = 0
    for _ in range(1500):
        where = Where(asked(chance))
        conditions, values = pushed([where], columns, unicode=True)
        came = {r["id"] for r in await things.fetch(f"SELECT id FROM things AS t WHERE {' AND '.join(conditions) or 'true'}", *values)}
        wanted = {number for number, row in rows.items() if where.holds(row)}
        assert wanted <= came, (where.conditions, conditions, values, sorted(wanted - came)[:3])
        narrowed += len(came) < len(rows)
        exactly += came == wanted
    assert narrowed > 300, "little was pushed down"
    assert exactly > 300


async def test_a_condition_on_an_indexed_column_reads_the_index(things: asyncpg.Connection) -> None:
    await things.execute("INSERT INTO things (id, whole, word) SELECT g, g, g FROM generate_series(1000, 20000) AS g; ANALYZE things")
    for where in ({"whole": {"eq": 5000}}, {"whole": {"in": [5000, 6000]}}, {"whole": {"gte": Decimal("19990.0")}}, {"word": {"eq": "5000"}}):
        conditions, values = pushed([Where(where)], await columns_of(things), unicode=True)
        plan = await things.fetchval(f"EXPLAIN (FORMAT JSON) SELECT id FROM things AS t WHERE {' AND '.join(conditions)}", *values)
        assert "Index" in msgspec.json.decode(plan)[0]["Plan"]["Node Type"] or "Bitmap" in plan, plan
