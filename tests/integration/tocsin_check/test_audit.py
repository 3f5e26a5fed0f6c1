"""What an audit finds, between two real servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit

Setup = Callable[..., Awaitable[None]]


async def test_equal_tables_are_in_sync_up_to_a_position(setup: Setup, audit: Audit, source: asyncpg.Connection) -> None:
    await source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 5000) i; CREATE TABLE empty (id int PRIMARY KEY)"
    )
    await setup()
    reports = await audit()
    assert {name: r.status for name, r in reports.items()} == {"public.t": "in_sync", "public.empty": "in_sync"}
    assert reports["public.t"].rows == 5000
    assert reports["public.t"].verified_at is not None
    assert reports["public.t"].verified_lsn is not None


async def test_missing_extra_and_different_rows_are_found_by_key(setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text, w int); INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 9000) i")
    await setup()
    await replica.execute("DELETE FROM t WHERE id = 10; UPDATE t SET v = 'drift' WHERE id = 20; INSERT INTO t VALUES (0, 'extra', 0), (99999, 'extra', 1)")
    report = (await audit())["public.t"]
    assert (report.status, report.rows, report.missing, report.extra, report.different) == ("drift", 9000, 1, 2, 1)
    found = {row.key["id"]: (row.state, row.columns) for row in report.sample}
    assert found == {10: ("missing", []), 20: ("different", ["v"]), 0: ("extra", []), 99999: ("extra", [])}


TYPES = """CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN price AS numeric(9,2);
           CREATE TYPE mood AS ENUM ('so', 'la'); CREATE TYPE pair AS (a int, b text);"""
"""Those that SUBTLE needs."""
SUBTLE = {
    "null and empty": ("text", "''", "NULL"),
    "case": ("text", "'a'", "'A'"),
    "trailing space": ("text", "'a'", "'a '"),
    "microseconds": ("timestamptz", "'2026-01-01 00:00:00.000001Z'", "'2026-01-01 00:00:00.000002Z'"),
    "last bit of a float": ("float8", "0.1::float8", "0.1::float8 + 1.4e-17"),
    "numeric": ("numeric", "1.5", "1.51"),
    "json key order": ("json", '\'{"a":1,"b":2}\'', '\'{"b":2,"a":1}\''),
    "jsonb": ("jsonb", "'[1]'", "'[2]'"),
    "array": ("text[]", "'{a,b}'", "'{\"a,b\"}'"),
    "bytes": ("bytea", r"'\x00'", r"'\x0000'"),
    "null in an array": ("int[]", "'{1,NULL}'", "'{1}'"),
    "interval": ("interval", "'1 day'", "'25 hours'"),
    "point": ("point", "'(1,2)'", "'(1,2.0000000000000004)'"),
    "bit": ("bit(3)", "B'101'", "B'100'"),
    "toasted": ("text", "repeat('x', 900000)", "repeat('x', 899999) || 'y'"),
    "domain": ("positive", "1", "2"),
    "enum": ("mood", "'so'", "'la'"),
    "composite": ("pair", "'(1,a)'", "'(1,b)'"),
    "range": ("tstzrange", "'[2026-01-01,2026-01-02)'", "'[2026-01-01,2026-01-02]'"),
    "tsvector": ("tsvector", "'a b'", "'a c'"),
    # Whatever its seed, PostgreSQL's own hash is equal for these.
    "the sign of a number": ("numeric(12,2)", "5.00", "-5.00"),
    "numbers that are none": ("numeric", "'NaN'", "'Infinity'"),
    "the sign of a number in jsonb": ("jsonb", "'{\"n\": 5}'", "'{\"n\": -5}'"),
    "how jsonb is nested": ("jsonb", "'[1,[2]]'", "'[[1],2]'"),
    "32 bits too few": ("bigint", "-1", "4294967295"),
    "two bits 32 apart": ("bigint", "5", "4294967300"),
    "two bits of a timestamp": ("timestamptz", "'2000-01-01 00:00:00.000005Z'", "'2000-01-01 01:11:34.9673Z'"),
    "two bits of a time": ("time", "'00:00:00.000005'", "'01:11:34.9673'"),
    "the sign of an interval": ("interval", "'-1 us'", "'4294.967295 s'"),
    "the sign of money": ("money", "'-0.01'::text::money", "'42949672.95'::text::money"),
    "the sign of a number in an array": ("numeric[]", "'{1.5}'", "'{-1.5}'"),
    "the dimensions of an array": ("int[]", "'{1,2}'", "'{{1},{2}}'"),
    "the bounds of an array": ("int[]", "'{1,2}'", "'[0:1]={1,2}'"),
    "the sign in a range": ("numrange", "'[1,3)'", "'[-1,3)'"),
    "the sign in a domain": ("price", "5", "-5"),
}
EQUAL = {
    "scale": ("numeric", "1.0", "1.00"),
    "zero": ("float8", "0", "'-0'"),
    "a day": ("interval", "'1 day 26:00:00'", "'2 days 2 hours'"),
    "a month": ("interval", "'1 month -1 day'", "'29 days'"),
    "blanks": ("char(3)", "'a'", "'a  '"),
}
"""What SQL calls equal, and an audit that is not exact, too."""


async def test_every_type_compares_equal_and_the_subtlest_differences_are_found(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    """One column a case: no false alarm while equal, and its own name once one value is changed on the replica."""
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _, _) in enumerate(SUBTLE.values()))
    values = ", ".join(f"({ours})::{kind}" for kind, ours, _ in SUBTLE.values())
    await replica.execute("CREATE TYPE padding AS ENUM ('shifts', 'oids'); DROP TYPE padding; CREATE TABLE shift (id serial)")
    await source.execute(f"""
        {TYPES}
        CREATE TABLE t (id int PRIMARY KEY, {columns}); INSERT INTO t SELECT i, {values} FROM generate_series(0, {len(SUBTLE)}) i""")
    await source.execute("ALTER DATABASE " + (await source.fetchval("SELECT quote_ident(current_database())")) + " SET extra_float_digits = -10")
    await setup("t")
    clean = (await audit())["public.t"]
    assert (clean.status, clean.reason) == ("in_sync", None)
    for i, (kind, _, theirs) in enumerate(SUBTLE.values()):
        await replica.execute(f"UPDATE t SET c{i} = ({theirs})::{kind} WHERE id = {i}")
    checked = await audit()
    page = checked.ledger.page("public.t", None, 100)
    assert page is not None
    found = {row.key["id"]: row for row in page.rows}
    assert checked["public.t"].different == len(SUBTLE)
    for i, row in found.items():
        assert row.columns == [f"c{i}"], list(SUBTLE)[i]


async def test_what_sql_calls_equal_is_no_drift(setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute(f"CREATE TABLE t (id int PRIMARY KEY, {', '.join(f'c{i} {kind}' for i, (kind, _, _) in enumerate(EQUAL.values()))})")
    await source.execute(f"INSERT INTO t VALUES (1, {', '.join(f'({ours})::{kind}' for kind, ours, _ in EQUAL.values())})")
    await setup("t")
    for i, (kind, ours, theirs) in enumerate(EQUAL.values()):
        assert await replica.fetchval(f"SELECT ({ours})::{kind} = ({theirs})::{kind}")
        await replica.execute(f"UPDATE t SET c{i} = ({theirs})::{kind}")
    assert (await audit())["public.t"].status == "in_sync"


@pytest.mark.parametrize("definition", ["a text, b text, PRIMARY KEY (a, b)", "a text, b text UNIQUE NOT NULL", "a text, b text"])
async def test_separators_do_not_hide_a_shift_between_columns(
    definition: str, setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    await source.execute(f"CREATE TABLE t ({definition}); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES ('a|', 'b'), ('x', 'y')")
    await setup("t")
    assert (await audit())["public.t"].status == "in_sync"
    await replica.execute("UPDATE t SET a = 'a', b = '|b' WHERE b = 'b'")
    report = (await audit())["public.t"]
    assert report.status == "drift"
    assert report.missing + report.extra + report.different > 0


async def test_a_table_without_a_key_is_compared_by_value_and_number(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    """Two equal rows against two other equal rows: a fold that cancels duplicates would miss it."""
    await source.execute("CREATE TABLE t (a int); ALTER TABLE t REPLICA IDENTITY FULL")
    await source.execute("INSERT INTO t SELECT i % 500 FROM generate_series(1, 6000) i; INSERT INTO t VALUES (7000), (7000)")
    await setup("t")
    assert (await audit())["public.t"].status == "in_sync"
    await replica.execute("UPDATE t SET a = 8000 WHERE a = 7000; DELETE FROM t WHERE ctid = (SELECT ctid FROM t WHERE a = 3 LIMIT 1)")
    report = (await audit())["public.t"]
    assert (report.status, report.missing, report.extra, report.different) == ("drift", 3, 2, 0)


async def test_row_filter_column_list_and_generated_columns_are_respected(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, k1 text, secret text, twice int GENERATED ALWAYS AS (id * 2) STORED); CREATE TABLE other (id int PRIMARY KEY)"
    )
    if source.get_server_version().major < 15:
        return
    await setup("t", "other")
    await source.execute("ALTER PUBLICATION tocsin DROP TABLE t; ALTER PUBLICATION tocsin ADD TABLE t (id, k1) WHERE (id < 100)")
    await replica.execute("TRUNCATE t")
    await source.execute("INSERT INTO t SELECT i, 'k' || i, 'secret' FROM generate_series(1, 200) i")
    await replica.execute("ALTER SUBSCRIPTION tocsin REFRESH PUBLICATION")
    report = (await audit())["public.t"]
    assert (report.status, report.rows) == ("in_sync", 99), report
    await replica.execute("INSERT INTO t VALUES (150, 'k150'); UPDATE t SET secret = 'local' WHERE id = 1; UPDATE t SET k1 = 'x' WHERE id = 2")
    report = (await audit())["public.t"]
    assert (report.extra, report.different, report.missing) == (1, 1, 0)


async def test_keys_of_every_kind_and_partitions(setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    await source.execute("""
        CREATE TYPE mood AS ENUM ('b', 'a');
        CREATE TABLE "U.x" (a uuid, "b c" timestamptz, m mood, n numeric, PRIMARY KEY (a, "b c", m, n));
        INSERT INTO "U.x"
            SELECT gen_random_uuid(), now() + i * interval '1 us', (ARRAY['a', 'b'])[1 + i % 2]::mood, i / 7.0 FROM generate_series(1, 30000) i;
        CREATE TABLE words (w text PRIMARY KEY, n char(4)); INSERT INTO words SELECT md5(i::text) || ' É', i % 1000 FROM generate_series(1, 30000) i;
        CREATE TABLE days (d date, n int, PRIMARY KEY (d, n)) PARTITION BY LIST (d);
        CREATE TABLE days_1 PARTITION OF days FOR VALUES IN ('2026-01-01'); CREATE TABLE days_2 PARTITION OF days DEFAULT;
        INSERT INTO days SELECT date '2026-01-01' + i % 3, i FROM generate_series(1, 5000) i;
    """)
    await setup()
    assert {name: (r.status, r.rows) for name, r in (await audit()).items()} == {
        "public.U.x": ("in_sync", 30000),
        "public.words": ("in_sync", 30000),
        "public.days": ("in_sync", 5000),
    }
    await replica.execute("""DELETE FROM "U.x" WHERE n = 3; DELETE FROM words WHERE w LIKE 'c4ca4238%'; INSERT INTO words VALUES ('zz', 'z'), ('', '');
                             UPDATE days SET n = 100000 WHERE n = 9""")
    reports = await audit()
    assert [(r.missing, r.extra, r.different) for r in (reports["public.U.x"], reports["public.words"], reports["public.days"])] == [
        (1, 0, 0),
        (1, 2, 0),
        (1, 1, 0),
    ]
