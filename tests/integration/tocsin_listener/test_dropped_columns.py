"""A table that lost columns: each event tells the very row, whatever way its statement is captured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import asyncpg
import pytest

from tests.integration.tocsin_listener.conftest import Events
from tocsin_listener.watch import watch

COLUMNS = "gone0 text, a int, gone1 int, id int, b int, gone2 bigint, c text, d bigint"
ROWS = "(gone0, a, gone1, id, b, gone2, c, d) SELECT 'x', g * 2, g * 3, g, g * 5, g * 7, 'c' || g, g * 11 FROM generate_series(1, 6) AS g"
DROP = "ALTER TABLE t DROP COLUMN gone0, DROP COLUMN gone1, DROP COLUMN gone2"
NEST = """CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF pg_trigger_depth() < 2 THEN
        IF TG_OP = 'DELETE' THEN DELETE FROM t WHERE id = OLD.id + 990; ELSE UPDATE t SET b = b + 1 WHERE id = NEW.id AND id % 2 = 0; END IF;
    END IF; RETURN NULL; END $$;
    CREATE TRIGGER again AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION again()"""
TABLES = {
    "plain": f"CREATE TABLE t ({COLUMNS}, PRIMARY KEY (id))",
    "generated": f"CREATE TABLE t ({COLUMNS}, g int GENERATED ALWAYS AS (a + b) STORED, PRIMARY KEY (id))",
    "nests": f"CREATE TABLE t ({COLUMNS}, PRIMARY KEY (id)); {NEST}",
    "partitions of other orders": f"""CREATE TABLE t ({COLUMNS}, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE t1 (d bigint, c text, odd int, id int NOT NULL, gone2 bigint, gone1 int, b int, a int, gone0 text); ALTER TABLE t1 DROP COLUMN odd;
        ALTER TABLE t ATTACH PARTITION t1 FOR VALUES FROM (0) TO (4); CREATE TABLE t2 PARTITION OF t DEFAULT""",
    "an heir": f"""CREATE TABLE t ({COLUMNS}, PRIMARY KEY (id));
        CREATE TABLE heir (d bigint, odd int, c text, own int, gone1 int, id int NOT NULL, gone2 bigint, b int, a int, gone0 text);
        ALTER TABLE heir DROP COLUMN odd; ALTER TABLE heir INHERIT t; INSERT INTO heir (id, a, c, own) VALUES (100, 1, 'heir', 2), (101, 3, 'heir', 4)""",
    "columns named as our own": f"""CREATE TABLE t ({COLUMNS}, whole int DEFAULT 1, whole__ int DEFAULT 2, i int DEFAULT 3, r int DEFAULT 4, n int DEFAULT 5,
        PRIMARY KEY (id))""",
}
CHANGES = (
    "INSERT INTO t (a, id, b, c, d) SELECT g, 1000 + g, g, 'late ' || g, g FROM generate_series(1, 6) AS g",
    "UPDATE t SET b = b + 1, c = c || '!'",
    "UPDATE t SET id = id + 10, a = -a WHERE id < 100",
    "UPDATE t SET d = 0 WHERE id = 14",
    "UPDATE t SET d = 1, c = NULL WHERE id IN (15, 16)",
    "DELETE FROM t WHERE id IN (11, 12, 14)",
    "DELETE FROM t",
)


async def rows(connection: asyncpg.Connection) -> dict[int, Any]:
    """By key, in the columns that the table has."""
    return {row["id"]: json.loads(row["j"]) for row in await connection.fetch("SELECT id, row_to_json(t)::text AS j FROM t")}


def apply(state: dict[int, Any], told: Sequence[dict[str, Any]]) -> None:
    """What a reader of the events holds; raises AssertionError where an event contradicts it."""
    for event in told:
        if event["op"] in ("update", "delete"):
            before = {**event.get("new", {}), **event["old"]}
            assert state.pop(before["id"]) == before, event
        if event["op"] in ("insert", "update"):
            state[event["new"]["id"]] = event["new"]


@pytest.mark.parametrize("old", ["changed", "full"])
@pytest.mark.parametrize("dropped_first", [True, False])
@pytest.mark.parametrize("table", TABLES)
async def test_every_way_of_capture_tells_the_columns_that_are_left(
    installed: asyncpg.Connection, events: Events, table: str, old: Literal["changed", "full"], dropped_first: bool
) -> None:
    await installed.execute(f"{TABLES[table]}; INSERT INTO t {ROWS}")
    if dropped_first:
        await installed.execute(DROP)
    await watch(installed, ["t"], old=old)
    if not dropped_first:
        await installed.execute(DROP)
    state, known = await rows(installed), len(await events())
    for statement in CHANGES:
        await installed.execute(statement)
        told = (await events())[known:]
        known += len(told)
        apply(state, told)
        assert state == await rows(installed), statement
