"""Whatever a statement's form, it rings for a sleeping listener if, and only if, it wrote an event."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tocsin_listener.doorbell import LOCK
from tocsin_listener.watch import watch

TABLES = """
CREATE TABLE plain (id int PRIMARY KEY, a text);
CREATE TABLE picky (id int PRIMARY KEY, a text);
CREATE TABLE nesting (id int PRIMARY KEY, a text);
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER nothing AFTER INSERT OR UPDATE OR DELETE ON nesting FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TABLE parted (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (100) TO (200);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER refuse BEFORE INSERT ON parted_high FOR EACH ROW EXECUTE FUNCTION refuse();
INSERT INTO plain VALUES (1, 'x'), (2, 'y'), (3, 'z'); INSERT INTO picky TABLE plain; INSERT INTO nesting TABLE plain; INSERT INTO parted TABLE plain;
"""


FORMS = [
    ("INSERT INTO {} VALUES (11, 'a')", True),
    ("INSERT INTO {} VALUES (12, 'a'), (13, 'b')", True),
    ("INSERT INTO {} SELECT 1, 'a' WHERE false", False),
    ("INSERT INTO {} VALUES (1, 'x') ON CONFLICT DO NOTHING", False),
    ("INSERT INTO {} VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET a = 'c'", True),
    ("UPDATE {} SET a = 'b' WHERE id = 1", True),
    ("UPDATE {} SET a = 'c'", True),
    ("UPDATE {} SET a = 'd' WHERE id = -1", False),
    ("DELETE FROM {} WHERE id = 1", True),
    ("DELETE FROM {} WHERE id = -1", False),
    ("TRUNCATE {}", True),
]
OTHERS = [
    ("INSERT INTO picky VALUES (11, 'draft')", False),
    ("UPDATE picky SET a = 'draft' WHERE id = 2", True),
    ("UPDATE picky SET id = id + 1000 WHERE a = 'draft'", False),
    ("UPDATE parted SET id = 150 WHERE id = 2", True),
    ("SELECT tocsin.emit('a.b')", True),
]


@pytest.mark.parametrize("table", ["plain", "nesting", "parted", None])
async def test_what_writes_an_event_rings_and_nothing_else_does(installed: asyncpg.Connection, source_url: str, table: str | None) -> None:
    await installed.execute(TABLES)
    await watch(installed, ["plain", "nesting", "parted"])
    await watch(installed, ["picky"], when="a <> 'draft'")
    sleeper = await asyncpg.connect(source_url)
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def rung() -> bool:
        """Whether anybody rang since the last time."""
        await installed.execute('NOTIFY "end"')
        async with asyncio.timeout(10):
            names = [await heard.get()]
            while names[-1] != "end":
                names.append(await heard.get())
        return "tocsin" in names

    try:
        await sleeper.execute(f"SELECT pg_advisory_lock({LOCK})")
        for channel in ("tocsin", "end"):
            await sleeper.add_listener(channel, lambda _connection, _pid, name, _payload: heard.put_nowait(name))
        for form, rings in FORMS if table else OTHERS:
            if table:
                await installed.execute(f"DELETE FROM {table}; INSERT INTO {table} VALUES (1, 'x'), (2, 'y'), (3, 'z')")
                await rung()
            before = await installed.fetchval("SELECT count(*) FROM tocsin.journal")
            await installed.execute(form.format(table))
            wrote = await installed.fetchval("SELECT count(*) FROM tocsin.journal") > before
            assert (form, wrote, await rung()) == (form, rings, rings)
    finally:
        await sleeper.close()
