"""Tables of random columns that change their shape while they are written: the events, applied one after the other, are always the table.

What test_nesting.py is for the order inside a statement, this is for what the rows consist of: types, names, dropped, added, renamed and retyped
columns, keys of several columns, partitions and heirs of other orders, generated columns, what a watch tells of an old row.
"""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg
import pytest

from tests.integration.tocsin_listener.conftest import journal_events
from tests.support.shapes import NAMES, TYPES, VALUES, quoted, value
from tocsin_listener.backfill import backfill
from tocsin_listener.watch import watch

FOLLOWED = {"int": ("bigint", "numeric", "text"), "varchar(9)": ("text",), "float4": ("float8",), "smallint": ("int",), "text": ("varchar(99)",)}


@dataclass
class Shape:
    """A table `t` as it stands: its plain columns by name, and those of its key."""

    chance: random.Random
    columns: dict[str, str] = field(default_factory=dict)
    key: tuple[str, ...] = ("id",)
    fresh: int = 0
    told: list[str] | None = None
    """The columns that the watch names; None where it tells all of them."""
    when: str | None = None
    """A condition that a row keeps or fails whatever happens to it."""

    def draw(self) -> tuple[str, str]:
        """A column that is not there yet."""
        return self.chance.choice([name for name in NAMES if name not in self.columns]), self.chance.choice(list(VALUES))

    def value(self, kind: str) -> str:
        if self.chance.random() < 0.15:
            return "NULL"
        return value(kind, self.chance.randint(0, 10**9))

    def create(self, generated: tuple[str, ...]) -> str:
        """The table and, by chance, a column generated in one of those ways, and what is below it, with columns in another order and some that are gone."""
        for _ in range(self.chance.randint(1, 8)):
            name, kind = self.draw()
            self.columns[name] = kind
        if self.chance.random() < 0.3:
            self.key = ("part", "id")
        parts = [f"{quoted(name)} {kind}" for name, kind in self.columns.items()] + ["id int NOT NULL", "part text NOT NULL DEFAULT 'p'"]
        if self.chance.random() < 0.3:
            parts.append(f"twice bigint GENERATED ALWAYS AS (id * 2) {self.chance.choice(generated)}")
        self.chance.shuffle(parts)
        if self.chance.random() < 0.2:
            self.told = [*self.chance.sample(list(self.columns), self.chance.randint(0, len(self.columns))), *self.key]
        if self.chance.random() < 0.2:
            self.when = "id % 4 <> 0"
        layout = self.chance.choice(["plain", "plain", "partitioned", "heir"])
        create = f"CREATE TABLE t ({', '.join(parts)}, PRIMARY KEY ({', '.join(self.key)}))"
        if layout == "partitioned":
            other = self.chance.sample(parts, len(parts))
            create += " PARTITION BY RANGE (id); CREATE TABLE t_rest PARTITION OF t DEFAULT;"
            create += f"CREATE TABLE t_low (gone int, {', '.join(other)}); ALTER TABLE t_low DROP gone;"
            create += "ALTER TABLE t ATTACH PARTITION t_low FOR VALUES FROM (0) TO (20)"
        elif layout == "heir":
            other = self.chance.sample(parts, len(parts))
            create += f"; CREATE TABLE heir (gone int, {', '.join(other)}, own int); ALTER TABLE heir DROP gone; ALTER TABLE heir INHERIT t"
        return create

    def alter(self) -> str:
        """A change of the shape, which the watch follows."""
        what = self.chance.choice(["add", "add", "drop", "rename", "retype"] if self.told is None else ["add", "retype"])
        name = self.chance.choice(list(self.columns)) if self.columns else None
        if what == "add" or name is None:
            name, kind = self.draw()
            self.columns[name] = kind
            return f"ALTER TABLE t ADD COLUMN {quoted(name)} {kind}"
        kind = self.columns.pop(name)
        if what == "drop":
            return f"ALTER TABLE t DROP COLUMN {quoted(name)}"
        if what == "rename":
            other = self.chance.choice([new for new in NAMES if new not in (*self.columns, name)])
            self.columns[other] = kind
            return f"ALTER TABLE t RENAME COLUMN {quoted(name)} TO {quoted(other)}"
        self.columns[name] = self.chance.choice(FOLLOWED.get(kind, (kind,)))
        return f"ALTER TABLE t ALTER COLUMN {quoted(name)} TYPE {self.columns[name]}"

    def change(self) -> str:
        """A statement that writes one row, several or none."""
        some = self.chance.choice(
            ["id % 3 = 0", "id % 2 = 1", "true", f"id = {self.chance.randint(1, self.fresh + 1)}", f"id BETWEEN 15 AND {15 + self.chance.randint(0, 10)}"]
        )
        named = self.chance.sample(list(self.columns), self.chance.randint(0, len(self.columns)))
        sets = ", ".join(f"{quoted(name)} = {self.value(self.columns[name])}" for name in named)
        match self.chance.choice(["insert", "insert", "insert", "update", "update", "update", "move", "delete", "upsert"]):
            case "insert":
                begin, self.fresh = self.fresh + 1, self.fresh + self.chance.choice([1, 2, 9])
                into = "".join(f", {quoted(name)}" for name in named)
                values = "".join(f", {self.value(self.columns[name])}" for name in named)
                return f"INSERT INTO t (id{into}) SELECT id{values} FROM generate_series({begin}, {self.fresh}) AS id"
            case "update" if sets:
                return f"UPDATE t SET {sets} WHERE {some}"
            case "move":
                self.fresh += 1000
                return f"UPDATE t SET id = id + 1000, part = part || '!'{', ' + sets if sets else ''} WHERE id < {self.fresh - 1000} AND {some}"
            case "upsert" if sets and self.key == ("id",):
                begin = self.chance.randint(1, self.fresh + 1)
                self.fresh = max(self.fresh, begin + 4)
                sets = sets.replace(", id)", ", t.id)")
                return f"INSERT INTO t (id) SELECT id FROM generate_series({begin}, {begin + 4}) AS id ON CONFLICT (id) DO UPDATE SET {sets}"
            case _:
                return f"DELETE FROM t WHERE {some} AND id % 5 = {self.chance.randint(0, 4)}"


async def rows(connection: asyncpg.Connection, shape: Shape) -> dict[tuple[Any, ...], Any]:
    """The rows that are told by their keys, in the columns of t that are."""
    async with connection.transaction():
        # As events are written, whatever the writer's settings are.
        await connection.execute("SET LOCAL timezone = 'UTC'; SET LOCAL intervalstyle = 'iso_8601'")
        found = [json.loads(row["j"]) for row in await connection.fetch(f"SELECT row_to_json(t)::text AS j FROM t WHERE {shape.when or 'true'}")]
    return {tuple(row[name] for name in shape.key): {name: row[name] for name in shape.told or row} for row in found}


def apply(state: dict[tuple[Any, ...], Any], shape: Shape, event: dict[str, Any]) -> None:
    """Raises AssertionError where the event does not follow from the state."""
    assert "truncated" not in event, event
    if event["op"] != "insert":
        before = {**event.get("new", {}), **event["old"]}
        assert state.pop(tuple(before[name] for name in shape.key), None) == before, event
    if event["op"] != "delete":
        new = tuple(event["new"][name] for name in shape.key)
        assert new not in state, event
        state[new] = event["new"]
    told = event["new" if event["op"] != "delete" else "old"]
    assert event["key"] == {name: told[name] for name in shape.key}, event


async def check(connection: asyncpg.Connection, seed: int) -> int:
    """Random statements on a table of a random shape that changes; how many events there were."""
    chance = random.Random(seed)
    shape, told, count = Shape(chance), 0, 0
    log = [shape.create(("STORED", "VIRTUAL") if connection.get_server_version().major >= 18 else ("STORED",))]
    old: Literal["changed", "full"] = chance.choice(["changed", "full"])
    try:
        await connection.execute(log[-1])
        await watch(connection, ["t"], old=old, columns=shape.told, when=shape.when, route=["id"] if chance.random() < 0.2 else [])
        state = await rows(connection, shape)
        for _ in range(25):
            if chance.random() < 0.2:
                before = dict(shape.columns)
                log.append(shape.alter())
                try:
                    await connection.execute(log[-1])
                except (asyncpg.DatatypeMismatchError, asyncpg.DuplicateColumnError):
                    # An heir keeps a column of its own that its parent drops, and its parent may not have another of that name.
                    shape.columns = before
                told, state = len(await journal_events(connection)), await rows(connection, shape)
                continue
            with contextlib.suppress(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    for _ in range(chance.choice([1, 1, 1, 2, 3])):
                        log.append(shape.change())
                        await connection.execute(log[-1])
            events = (await journal_events(connection))[told:]
            told += len(events)
            for event in events:
                apply(state, shape, event)
                count += 1
            assert state == await rows(connection, shape)
        await backfill(connection, "t", rate=1e9)
        read = [event["new"] for event in (await journal_events(connection))[told:]]
        assert {tuple(row[name] for name in shape.key): row for row in read} == await rows(connection, shape)
        assert len(read) == len(state)
    except (AssertionError, asyncpg.PostgresError) as error:
        error.add_note("\n".join([f"seed {seed}, old {old}, columns {shape.told}, when {shape.when}", *(f"{line};" for line in log)]))
        raise
    await connection.execute("DROP TABLE IF EXISTS heir; DROP TABLE t; TRUNCATE tocsin.journal, tocsin.backfill")
    return count


@pytest.fixture
async def typed(installed: asyncpg.Connection) -> asyncpg.Connection:
    await installed.execute(TYPES)
    return installed


@pytest.mark.parametrize("first", range(0, 20, 10))
async def test_the_events_are_the_table_whatever_its_shape(typed: asyncpg.Connection, first: int) -> None:
    assert sum([await check(typed, seed) for seed in range(first, first + 10)]) > 500


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 100))
async def test_the_events_are_the_table_with_a_thousand_shapes(typed: asyncpg.Connection, first: int) -> None:
    assert sum([await check(typed, seed) for seed in range(first, first + 100)]) > 5000
