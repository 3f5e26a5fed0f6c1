"""Repairs: what drifted is made equal, what moves is left alone, and the source is never touched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tests.integration.tocsin_check.test_service import tocsin
from tocsin.cli.drift_repair import Mending
from tocsin.cli.drift_report import show_repairs
from tocsin_check import sessions
from tocsin_check.auditing import repair
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import open_sides
from tocsin_check.rows.verdict import Key
from tocsin_check.watch.checker import Checker

Setup = Callable[..., Awaitable[None]]


async def _state(connection: asyncpg.Connection, table: str) -> list[asyncpg.Record]:
    return list(await connection.fetch(f"SELECT t::text, xmin::text, ctid::text FROM {table} AS t ORDER BY 1"))


WEIRD = '"we""ird"."ta FROM\n SELECT 1/0; ble"'
HOSTILE = f"""
CREATE SCHEMA "we""ird";
CREATE TYPE "we""ird"."mo od" AS ENUM ('so''', 'la');
CREATE TABLE {WEIRD} (
    "k'1" text, "select" timestamptz, "v FROM" text, "$1" jsonb, bits bit(3), fixed char(4), f float8, n numeric, a text[], m "we""ird"."mo od",
    raw bytea, i interval, doubled int GENERATED ALWAYS AS (bits::int * 2) STORED, serial_no int GENERATED ALWAYS AS IDENTITY, big text,
    PRIMARY KEY ("k'1", "select"));
INSERT INTO {WEIRD} ("k'1", "select", "v FROM", "$1", bits, fixed, f, n, a, m, raw, i, big)
    SELECT 'k''\\' || i, timestamptz '2026-01-01' + i * interval '1 us', E'tab\\t\\\\ ''q'' ' || i, '{{"a": "\\\\"}}', B'101', 'ab', 0.1 + i, 1.50,
           ARRAY['a,b', NULL, '"'], 'so''', '\\x00ff', '1 mon 2 days', repeat('x', 5000) || i FROM generate_series(1, 40) i;
"""


@pytest.mark.parametrize("how", ["apply", "script"])
async def test_missing_extra_and_different_rows_are_repaired_whatever_they_are_called_and_hold(
    how: str, setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, tmp_path: Path
) -> None:
    urls = {"source_url": source_url, "replica_url": replica_url}
    await source.execute(HOSTILE)
    await source.execute("CREATE TABLE plain (id int PRIMARY KEY, u int UNIQUE); INSERT INTO plain SELECT i, i FROM generate_series(1, 9) i")
    await setup()
    await replica.execute(rf"""
        CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''a trigger fires''; END';
        CREATE TRIGGER no BEFORE INSERT OR UPDATE OR DELETE ON {WEIRD} FOR EACH ROW EXECUTE FUNCTION no();
        SET session_replication_role = replica;
        DELETE FROM {WEIRD} WHERE "k'1" IN ('k''\1', 'k''\2');
        UPDATE {WEIRD} SET "v FROM" = NULL, bits = B'111', fixed = 'zz', a = NULL, m = 'la', raw = '\x', big = repeat('y', 4000), f = '-0',
            i = '1 s' WHERE "k'1" IN ('k''\3', 'k''\4');
        INSERT INTO {WEIRD} ("k'1", "select", serial_no) OVERRIDING SYSTEM VALUE VALUES ('extra', '2027-01-01', 77);
        DELETE FROM plain WHERE id = 1; UPDATE plain SET u = 1 WHERE id = 2; INSERT INTO plain VALUES (99, 2);
        RESET session_replication_role""")
    before = [await _state(source, table) for table in (WEIRD, "plain")]
    if how == "apply":
        code, out, err = await tocsin("drift", "--repair", "--apply", "--json", **urls)
        assert code == 0, out + err
        assert [r["left"] for r in json.loads(out)["repairs"]] == [None] * 8
    else:
        code, out, err = await tocsin("drift", "--repair", **urls)
        assert (code, "5 rows to repair" in err, out.startswith("-- By tocsin")) == (1, True, True), out + err
        assert [t.status for t in (await audit()).values()] == ["drift", "drift"], "printing changes nothing"
        await replica.execute("UPDATE plain SET u = 1000 WHERE id = 2")  # changed since, so its statement must do nothing
        await replica.execute(out)
        await replica.execute("RESET ALL")
        assert await replica.fetchval("SELECT u FROM plain WHERE id = 2") == 1000
        await replica.execute("UPDATE plain SET u = 2 WHERE id = 2")
        code, out, err = await tocsin("drift", "--repair", "--output", str(tmp_path / "r.sql"), **urls)
        assert "nothing to repair" in (tmp_path / "r.sql").read_text()
        assert (tmp_path / "r.sql").stat().st_mode & 0o077 == 0
        assert code == 0, out + err
    reports = await audit()
    assert {t.status for t in reports.values()} == {"in_sync"}
    columns = '"k\'1", "select", "v FROM", "$1", bits, fixed, f, n, a, m, raw, i, doubled, serial_no, big'
    for table, listed in ((WEIRD, columns), ("plain", "*")):
        query = f"SELECT ROW({listed if listed != '*' else 't.*'})::text FROM {table} t ORDER BY 1"
        assert await source.fetch(query) == await replica.fetch(query)
    assert [await _state(source, table) for table in (WEIRD, "plain")] == before, "the source is never touched"


async def _table(checker: Checker, sides: object) -> Comparable:
    [table] = [t for t in await checker.take_stock(sides) if isinstance(t, Comparable)]  # type: ignore[arg-type]
    return table


async def test_a_row_that_changes_between_the_proof_and_the_lock_is_left_alone(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the source, on the replica, and away; what is on its way then arrives, and the row that stood still is repaired."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 6) i")
    await setup()
    await replica.execute("UPDATE t SET v = 'drift' WHERE id <= 3; DELETE FROM t WHERE id IN (4, 5); INSERT INTO t VALUES (7, 'extra')")
    proven = repair._proven

    async def then_they_change(*arguments: object) -> list[object]:
        cases = await proven(*arguments)  # type: ignore[arg-type]
        await source.execute("UPDATE t SET v = 'newer' WHERE id = 1; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (7, 'now there')")
        async with asyncio.timeout(10):
            while await replica.fetchval("SELECT v FROM t WHERE id = 1") != "newer":
                await asyncio.sleep(0.02)
        await replica.execute("UPDATE t SET v = 'local' WHERE id = 2")
        return list(cases)

    await replica.execute("DELETE FROM t WHERE id = 7")
    await replica.execute("INSERT INTO t VALUES (8, 'extra')")
    monkeypatch.setattr(repair, "_proven", then_they_change)
    async with open_sides(source_url, replica_url) as sides:
        table = await _table(Checker(source_url, replica_url), sides)
        keys: list[Key] = [(str(i),) for i in (1, 2, 3, 4, 5, 8)]
        writer = await sessions.open_repairer(replica_url)
        done = [each async for batch in repair.apply(sides, table, keys, writer, patience=5) for each in batch]
        await writer.close()
        left = {each.key[0]: each.left for each in done}
        assert left["1"] == "the row has changed on the source in between" or left["1"] == "the row has changed on the replica in between"
        assert left["2"] == "the row has changed on the replica in between"
        assert left["4"] == "the row has changed on the source in between"
        assert {key for key, reason in left.items() if reason is None} == {"3", "5", "8"}
        assert await repair.verify(sides, table, done, patience=5) == set()
    assert {row["id"]: row["v"] for row in await replica.fetch("SELECT id, v FROM t")} == {1: "newer", 2: "local", 3: "v", 5: "v", 6: "v", 7: "now there"}


async def test_an_older_transaction_on_the_source_leaves_every_row_alone_and_the_lock_is_let_go(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "_SETTLING", 0.3)
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v'); CREATE TABLE other (id int)")
    await setup("t")
    await replica.execute("UPDATE t SET v = 'drift'")
    async with open_sides(source_url, replica_url) as sides:
        table = await _table(Checker(source_url, replica_url), sides)
        writer = await sessions.open_repairer(replica_url)
        async with source.transaction():
            await source.execute("INSERT INTO other VALUES (1)")
            [[done]] = [batch async for batch in repair.apply(sides, table, [("1",)], writer, patience=5)]
            assert "stays open" in (done.left or "")
        [[done]] = [batch async for batch in repair.apply(sides, table, [("1",)], writer, patience=5)]
        assert done.left is None
        await writer.close()
    assert await replica.fetchval("SELECT v FROM t") == "v"


async def test_repairs_under_writes_end_equal_and_keyless_tables_are_told(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("""CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 1500) i;
                            CREATE TABLE bag (v int); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag VALUES (1)""")
    await setup()
    stop = asyncio.Event()

    async def write() -> None:
        connection = await asyncpg.connect(source_url)
        number = 0
        while not stop.is_set():
            number += 1
            await connection.execute("UPDATE t SET v = v + 1 WHERE id = $1", number * 7 % 1500 + 1)
            await connection.execute(
                "WITH gone AS (DELETE FROM t WHERE id = $1 RETURNING *) INSERT INTO t SELECT id + 10000, v FROM gone", number * 11 % 1500 + 1
            )
            await asyncio.sleep(0.001)
        await connection.close()

    await replica.execute("UPDATE t SET v = -1 WHERE id % 2 = 0; DELETE FROM t WHERE id % 5 = 0; INSERT INTO t SELECT -i, i FROM generate_series(1, 100) i")
    await replica.execute("INSERT INTO bag VALUES (2)")
    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        code, out, err = await tocsin("drift", "--repair", "--apply", source_url=source_url, replica_url=replica_url)
        stop.set()
    assert (code, "has no key" in err) == (1, True), out + err
    await replica.execute("DELETE FROM bag WHERE v = 2")
    await source.execute("UPDATE t SET v = v")
    code, out, err = await tocsin("drift", "--repair", "--apply", source_url=source_url, replica_url=replica_url)
    assert code == 0, out + err
    query = "SELECT * FROM t ORDER BY 1"
    assert await source.fetch(query) == await replica.fetch(query)


EXACT = {
    "numeric": ("1.0", "1.00"),
    "float8": ("0", "'-0'"),
    "interval": ("'1 day'", "'24:00'"),
    "jsonb": ("'[1.0]'", "'[1.00]'"),
    "numeric[]": ("'{1.0}'", "'{1.00}'"),
}
BY_TEXT = ("jsonb", "numeric[]")
"""Compared as written in any case."""


async def test_exact_tells_apart_what_sql_calls_equal(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    urls = {"source_url": source_url, "replica_url": replica_url}
    columns = ", ".join(f"c{i} {kind}" for i, kind in enumerate(EXACT))
    values = ", ".join(f"({ours})::{kind}" for kind, (ours, _) in EXACT.items())
    await source.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, {columns}, s text); INSERT INTO t SELECT i, {values}, 'same' FROM generate_series(0, {len(EXACT)}) i"
    )
    await setup()
    assert (await tocsin("drift", "--exact", **urls))[0] == 0
    for i, (kind, (_, theirs)) in enumerate(EXACT.items()):
        await replica.execute(f"UPDATE t SET c{i} = ({theirs})::{kind} WHERE id = {i}")
    code, out, _ = await tocsin("drift", "--json", **urls)
    assert code == 1
    assert {row["columns"][0] for row in json.loads(out)["tables"][0]["sample"]} == {f"c{list(EXACT).index(kind)}" for kind in BY_TEXT}
    code, out, _ = await tocsin("drift", "--exact", "--json", **urls)
    report = json.loads(out)["tables"][0]
    assert (code, report["different"]) == (1, len(EXACT))
    assert {(row["key"]["id"], *row["columns"]) for row in report["sample"]} == {(i, f"c{i}") for i in range(len(EXACT))}
    code, out, err = await tocsin("drift", "--exact", "--repair", "--apply", **urls)
    assert code == 0, out + err
    query = "SELECT t::text FROM t ORDER BY id"
    assert await source.fetch(query) == await replica.fetch(query)


async def test_of_more_drifted_rows_than_are_known_by_key_sql_is_for_some_and_says_so_and_apply_goes_on(
    setup: Setup,
    source: asyncpg.Connection,
    replica: asyncpg.Connection,
    source_url: str,
    replica_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 9) i")
    await setup()
    await replica.execute("UPDATE t SET v = 'drift' WHERE id <= 7")
    monkeypatch.setattr("tocsin_check.watch.ledger.ROWS_KEPT", 3)
    checker, told = Checker(source_url, replica_url), list[tuple[int, int]]()
    async with open_sides(source_url, replica_url) as sides:
        table = await _table(checker, sides)
        await checker.auditor.audit_table(sides, table)
        for applies, repaired, unfinished in ((False, 3, ["public.t"]), (True, 7, [])):
            mending = Mending(replica_url, apply=applies, output=None, to_stdout=False)
            done = await mending.mend(sides, table, checker, lambda *rows: told.append(rows))
            assert (len(done), mending.unfinished) == (repaired, unfinished)
            show_repairs({"public.t": done}, applied=applies, unfinished=mending.unfinished)
            assert ("more rows have drifted" in capsys.readouterr().err) is bool(unfinished)
    assert told == [(3, 3), (3, 3), (3, 3), (1, 1)]
    assert (checker.report().tables[0].status, await replica.fetchval("SELECT count(*) FROM t WHERE v = 'v'")) == ("in_sync", 9)


async def test_repair_needs_to_know_how(source_url: str, replica_url: str) -> None:
    for arguments in (("--apply",), ("--output", "x"), ("--repair", "--watch"), ("--repair", "--apply", "--output", "x")):
        code, _, err = await tocsin("drift", *arguments, source_url=source_url, replica_url=replica_url)
        assert (code, "fix" in err) == (2, True), err
