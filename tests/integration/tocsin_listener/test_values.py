"""Any value of any type, any name and any kind of statement: told rightly, and never the cause of a failed write."""

from __future__ import annotations

import asyncpg
import pytest

from tests.integration.tocsin_listener.conftest import Events
from tocsin.subject import encode_token
from tocsin_listener.watch import watch

TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'very "happy"');
    CREATE TYPE place AS (street text, number int, moods mood[]);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN places AS place[];
    CREATE TYPE floats AS RANGE (subtype = float8);
"""

VALUES = {
    "smallint": ("-32768", -32768),
    "bigint": ("9223372036854775807", 9223372036854775807),
    "oid": ("4294967295", "4294967295"),
    "real": ("'1e-38'", 1e-38),
    "double precision": ("0.1::float8 + 0.2", 0.1 + 0.2),
    "numeric": ("-12345678901234567890.000000000000000001", -12345678901234567890.000000000000000001),
    "numeric(1000, 900)": ("1e-900", 0.0),
    "boolean": ("true", True),
    "text": (r"E'quote \" back \\ tab \t bell \x07 del \x7f line \u2028 \U0001F600'", 'quote " back \\ tab \t bell \x07 del \x7f line \u2028 \U0001f600'),
    "character(5)": ("'ab'", "ab   "),
    '"char"': ("'x'", "x"),
    "name": ("'a b'", "a b"),
    "bytea": (r"'\x00ff'", r"\x00ff"),
    "uuid": ("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "date": ("'0044-03-15 BC'", "0044-03-15 BC"),
    "date ": ("'infinity'", "infinity"),
    "time": ("'24:00:00'", "24:00:00"),
    "timetz": ("'12:00+05:30'", "12:00:00+05:30"),
    "timestamp": ("'-infinity'", "-infinity"),
    "timestamptz": ("'0001-01-01 00:00:00+00 BC'", "0001-01-01T00:00:00+00:00 BC"),
    "timestamptz ": ("'infinity'", "infinity"),
    "interval": ("'1 year -2 days 3.5 seconds'", "P1Y-2DT3.5S"),
    "money": ("'-1234.5'", "-$1,234.50"),
    "bit varying": ("B'1011'", "1011"),
    "inet": ("'::1/64'", "::1/64"),
    "macaddr8": ("'08:00:2b:01:02:03:04:05'", "08:00:2b:01:02:03:04:05"),
    "point": ("'(1,2)'", "(1,2)"),
    "polygon": ("'((0,0),(1,1),(2,0))'", "((0,0),(1,1),(2,0))"),
    "json": (r"""'{"b":1,  "a":null,"a":[]}'""", {"b": 1, "a": []}),
    "jsonb": ("""'{"n": 1e400}'""", None),
    "tsvector": ("'a:1 b:2'", "'a':1 'b':2"),
    "pg_lsn": ("'16/B374D848'", "16/B374D848"),
    "xid8": ("'18446744073709551615'", "18446744073709551615"),
    "regclass": ("'pg_class'", "pg_class"),
    "int4range": ("'[1,5]'", "[1,6)"),
    "tstzrange": ("'[2026-01-01 00:00:00+00,infinity)'", '["2026-01-01 00:00:00+00",infinity)'),
    "int4multirange": ("'{[1,3),[5,)}'", "{[1,3),[5,)}"),
    "floats": ("'(0.1,0.2]'", "(0.1,0.2]"),
    "int[]": ("'[0:1][2:3]={{1,NULL},{3,4}}'", [[1, None], [3, 4]]),
    "text[]": (r"""ARRAY['a,b', '', NULL, '"', 'NULL']""", ["a,b", "", None, '"', "NULL"]),
    "timestamptz[]": ("'{2026-01-01 00:00:00+00}'", ["2026-01-01T00:00:00+00:00"]),
    "mood": ("""'very "happy"'""", 'very "happy"'),
    "mood[]": ("'{sad}'", ["sad"]),
    "place": ("ROW('x', NULL, '{sad}')", {"street": "x", "number": None, "moods": ["sad"]}),
    "places": ("ARRAY[ROW('y', 1, NULL)::place]", [{"street": "y", "number": 1, "moods": None}]),
    "positive": ("7", 7),
}  # fmt: skip


@pytest.mark.parametrize("old", ["changed", "full"])
async def test_every_type_in_insert_update_and_delete(installed: asyncpg.Connection, events: Events, old: str) -> None:
    """All in one table: a value, then NULL, then the value again, then gone."""
    await installed.execute(TYPES)
    kinds = list(VALUES)
    await installed.execute(f"CREATE TABLE t (id int PRIMARY KEY, {', '.join(f'c{n} {kind}' for n, kind in enumerate(kinds))})")
    await watch(installed, ["t"], old=old)  # type: ignore[arg-type]
    values = [value for value, _ in VALUES.values()]
    await installed.execute(f"INSERT INTO t VALUES (1, {', '.join(values)})")
    await installed.execute(f"UPDATE t SET {', '.join(f'c{n} = NULL' for n in range(len(kinds)))}")
    await installed.execute(f"UPDATE t SET {', '.join(f'c{n} = {value}' for n, value in enumerate(values))}")
    await installed.execute("DELETE FROM t")
    insert, cleared, again, deleted = [{key: value for key, value in e.items() if key in ("new", "old")} for e in await events()]
    expected = {f"c{n}": value for n, (_, value) in enumerate(VALUES.values())}
    for n, (kind, (_, value)) in enumerate(VALUES.items()):
        if value is not None:
            assert insert["new"][f"c{n}"] == value, kind
    told = insert["new"]
    nothing = dict.fromkeys(expected)
    assert cleared["new"] == {"id": 1, **nothing}
    assert cleared["old"] == (told if old == "full" else {k: v for k, v in told.items() if k != "id"})
    assert again["new"] == told
    assert again["old"] == ({"id": 1, **nothing} if old == "full" else nothing)
    assert deleted["old"] == told


async def test_every_type_as_key_and_route(installed: asyncpg.Connection, events: Events) -> None:
    """The writer's settings, which the text of a key could depend on, differ between the insert and the delete."""
    await installed.execute(TYPES)
    kinds = [kind for kind in VALUES if kind not in ("json", "point", "polygon")]
    await installed.execute(";".join(f"CREATE TABLE t{n} (k {kind} PRIMARY KEY)" for n, kind in enumerate(kinds)))
    await watch(installed, [f"t{n}" for n in range(len(kinds))], route=["k"])
    await installed.execute("SET datestyle = 'German'; SET intervalstyle = 'sql_standard'; SET timezone = 'Asia/Tokyo'; SET bytea_output = 'escape'")
    await installed.execute("SET extra_float_digits = -10; " + ";".join(f"INSERT INTO t{n} VALUES ({VALUES[kind][0]})" for n, kind in enumerate(kinds)))
    await installed.execute("RESET ALL; " + ";".join(f"DELETE FROM t{n}" for n in range(len(kinds))))
    seen = await events()
    inserts, deletes = seen[: len(kinds)], seen[len(kinds) :]
    for n, (kind, insert, delete) in enumerate(zip(kinds, inserts, deletes, strict=True)):
        assert insert["key"] == insert["new"] == delete["old"], kind
        assert insert["key_text"] == delete["key_text"] is not None, kind
        assert insert["subject"] == f"change.public.t{n}.insert.{encode_token(insert['key_text'])}"
        assert delete["subject"] == insert["subject"].replace(".insert.", ".delete.")


async def test_a_value_of_256_megabytes_never_fails_the_writer(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b bytea, j jsonb, many text[])")
    await watch(installed, ["t"], old="full", route=["id"])
    await installed.execute("INSERT INTO t (id, a) VALUES (1, repeat(chr(1), 268435456))")
    await installed.execute("UPDATE t SET many = ARRAY[left(a, 9000000)], a = NULL")
    await installed.execute("UPDATE t SET j = jsonb_build_object('x', repeat('x', 20000000)), many = NULL")
    await installed.execute("DELETE FROM t")
    seen = await events()
    assert [(e["op"], e["key"], e["truncated"], e["subject"]) for e in seen] == [
        (op, {"id": 1}, True, f"change.public.t.{op}.1") for op in ("insert", "update", "update", "delete")
    ]


async def test_a_huge_route_or_key_never_fails_the_writer(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (k text, r text, PRIMARY KEY (k))")
    await watch(installed, ["t"], route=["r"])
    await installed.execute("INSERT INTO t VALUES (repeat('k', 2000), repeat('ü', 3000000))")
    (only,) = await events()
    assert only["truncated"] is True
    assert only["key_text"] == "k" * 2000
    assert only["subject"] == f"change.public.t.insert.{encode_token('ü' * 3000000)}"


async def test_copy_on_conflict_and_statements_without_rows(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    await watch(installed, ["t"])
    await installed.copy_records_to_table("t", records=[(n, "x") for n in range(3)])
    await installed.execute("INSERT INTO t VALUES (0, 'y'), (9, 'z') ON CONFLICT DO NOTHING")
    await installed.execute("INSERT INTO t VALUES (0, 'y'), (1, 'q') ON CONFLICT (id) DO UPDATE SET a = excluded.a WHERE t.id > 0")
    await installed.execute("UPDATE t SET a = '' WHERE false; DELETE FROM t WHERE false; INSERT INTO t SELECT 1, '' WHERE false")
    await installed.execute("WITH gone AS (DELETE FROM t WHERE id = 0 RETURNING *) INSERT INTO t SELECT id + 100, a FROM gone")
    await installed.execute("TRUNCATE t")
    seen = [(e["op"], e["key"] and e["key"]["id"]) for e in await events()]
    assert seen[:5] == [("insert", 0), ("insert", 1), ("insert", 2), ("insert", 9), ("update", 1)]
    assert sorted(seen[5:7]) == [("delete", 0), ("insert", 100)]
    assert seen[7:] == [("truncate", None)]


async def test_merge_pairs_each_updated_row_with_its_old_one(installed: asyncpg.Connection, events: Events) -> None:
    """Updates, deletes and inserts in one statement, over keys that change places."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, name text); INSERT INTO t SELECT g, 'row ' || g FROM generate_series(0, 49) AS g")
    await watch(installed, ["t"], old="full")
    await installed.execute(
        """MERGE INTO t USING generate_series(0, 59) AS g ON t.id = g WHEN MATCHED AND g % 5 = 0 THEN DELETE
           WHEN MATCHED THEN UPDATE SET id = 1000 - t.id WHEN NOT MATCHED THEN INSERT VALUES (g, 'row ' || g)"""
    )
    seen = await events()
    updates = [e for e in seen if e["op"] == "update"]
    assert (len(seen), len(updates)) == (60, 40)
    assert all(e["old"]["name"] == e["new"]["name"] and e["new"]["id"] == 1000 - e["old"]["id"] for e in updates)
    assert sorted(e["key"]["id"] for e in seen if e["op"] == "delete") == list(range(0, 50, 5))
    assert sorted(e["key"]["id"] for e in seen if e["op"] == "insert") == list(range(50, 60))


async def test_a_plan_made_for_two_rows_is_good_for_many(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT g, 'x' FROM generate_series(1, 30000) AS g")
    await watch(installed, ["t"])
    await installed.execute("SET statement_timeout = '20s'")
    for _ in range(7):
        await installed.execute("UPDATE t SET a = a || 'y' WHERE id < 3")
    await installed.execute("UPDATE t SET a = a || 'z'")
    assert await installed.fetchval("SELECT count(*) FROM tocsin.journal") == 7 * 2 + 30000


async def test_an_update_across_partitions_that_a_trigger_stops_half_way(installed: asyncpg.Connection, events: Events) -> None:
    """A moved row is a DELETE and an INSERT to its triggers. Where the INSERT's says no, PostgreSQL has deleted the row all the same;
    pairs by place in the transition tables must not shift.
    """
    await installed.execute("""
        CREATE TABLE t (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100); CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (1000);
        INSERT INTO t SELECT g, 'row ' || g FROM generate_series(0, 9) AS g;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.a IN ('row 3', 'row 4') THEN RETURN NULL; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON high FOR EACH ROW EXECUTE FUNCTION refuse();
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.a IN ('row 6') THEN RETURN NULL; END IF; RETURN OLD; END $$;
        CREATE TRIGGER keep BEFORE DELETE ON low FOR EACH ROW EXECUTE FUNCTION keep();
    """)
    await watch(installed, ["t"], old="full")
    before = {r["id"]: r["a"] for r in await installed.fetch("SELECT * FROM t")}
    await installed.execute("UPDATE t SET id = id + 100 WHERE id % 2 = 0 OR id = 3")
    after = {r["id"]: r["a"] for r in await installed.fetch("SELECT * FROM t")}
    for event in await events():
        old, new = event.get("old"), event.get("new")
        if old is not None:
            assert before.pop(old["id"]) == old["a"]
        if new is not None:
            before[new["id"]] = new["a"]
        if old is not None and new is not None:
            assert old["a"] == new["a"], "a pair is one row"
    assert before == after, "who applies the events has what the table has"


SHADOWED = [
    "row_to_json(record)",
    "to_json(anyelement)",
    "set_config(text, text, boolean)",
    "current_setting(text, boolean)",
    "length(text)",
    "nextval(regclass)",
    "nextval(text)",
    "octet_length(text)",
    "pg_try_advisory_xact_lock_shared(bigint)",
    "substr(text, integer)",
    "substring(text, text)",
]


async def test_no_schema_of_the_writers_shadows_what_the_triggers_call(installed: asyncpg.Connection, events: Events, source_url: str) -> None:
    """A writer may create any object in its own schemas and put them first: none of it is run by the functions of another's rights."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    await watch(installed, ["t"], route=["a"], when="a <> 'draft' AND length(a) > 0")
    await installed.execute("DROP ROLE IF EXISTS tocsin_test_attacker; CREATE ROLE tocsin_test_attacker LOGIN")
    await installed.execute("CREATE SCHEMA evil AUTHORIZATION tocsin_test_attacker; GRANT INSERT, UPDATE, SELECT ON t TO tocsin_test_attacker")
    attacker = await asyncpg.connect(source_url, user="tocsin_test_attacker")
    try:
        await attacker.execute("CREATE FUNCTION evil.stolen() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$")
        for name in SHADOWED:
            await attacker.execute(f"CREATE FUNCTION evil.{name} RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN evil.stolen(); END'")
        for operator, left, right in (("||", "text", "text"), ("<>", "text", "text"), ("||", "text", "oid"), ("||", "text", "name"), (">", "int", "int")):
            function = f"evil.op_{left}_{right}"
            await attacker.execute(f"CREATE OR REPLACE FUNCTION {function}({left}, {right}) RETURNS text LANGUAGE sql AS 'SELECT evil.stolen()'")
            await attacker.execute(f"CREATE OPERATOR evil.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {function})")
        await attacker.execute(
            "CREATE DOMAIN evil.text AS pg_catalog.int4 CHECK (evil.stolen() IS NULL); CREATE TEMP TABLE journal (x int); CREATE TEMP TABLE leaf (x int)"
        )
        await attacker.execute("SET search_path = evil, pg_temp, pg_catalog, public")
        await attacker.execute("INSERT INTO public.t VALUES (1, 'x')")
        await attacker.execute("UPDATE public.t SET a = 'y'")
        assert [e["op"] for e in await events()] == ["insert", "update"]
    finally:
        await attacker.close()
        await installed.execute("DROP OWNED BY tocsin_test_attacker CASCADE; DROP ROLE tocsin_test_attacker")


async def test_settings_that_a_writer_forges_harm_nobody_else(installed: asyncpg.Connection, events: Events) -> None:
    """A writer may set what the triggers keep in settings to anything."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    oid = await installed.fetchval("SELECT 't'::regclass::oid")
    for n, forged in enumerate(("garbage", "99999999999999999999999 ", "", "-1 -1 -1", "'; DROP TABLE t; --")):
        await installed.execute("SELECT set_config($1, $2, false), set_config('tocsin.annotation', $2, false)", f"tocsin.s{oid}INSERT", forged)
        await installed.execute("INSERT INTO t VALUES ($1)", n)
    assert [e["key"]["id"] for e in await events()] == [0, 1, 2, 3, 4]


async def test_what_only_capture_evaluates_never_fails_the_writer(installed: asyncpg.Connection, events: Events) -> None:
    """A condition, or a virtual column, that divides by zero: the event has the key alone, and no row that may have been kept back."""
    version = await installed.fetchval("SELECT current_setting('server_version_num')::int")
    virtual = ", v int GENERATED ALWAYS AS (10 / a) VIRTUAL" if version >= 180000 else ""
    await installed.execute(f"CREATE TABLE c (id int PRIMARY KEY, a int); CREATE TABLE v (id int PRIMARY KEY, a int{virtual})")
    await watch(installed, ["c"], when="10 / a > 1")
    await watch(installed, ["v"])
    for table in "cv":
        await installed.execute(f"INSERT INTO {table} VALUES (1, 2)")
        await installed.execute(f"INSERT INTO {table} VALUES (2, 0), (3, 1)")
        await installed.execute(f"UPDATE {table} SET a = 5 WHERE id = 2")
        await installed.execute(f"DELETE FROM {table} WHERE id = 1")
    seen = await events()
    assert [(e["table"], e["op"], e["key"]["id"], "truncated" in e) for e in seen if e["table"] == "c"] == [
        ("c", "insert", 1, False), ("c", "insert", 2, True), ("c", "insert", 3, True), ("c", "update", 2, False), ("c", "delete", 1, False)
    ]  # fmt: skip
    if virtual:
        assert [(e["op"], e["key"]["id"], "truncated" in e) for e in seen if e["table"] == "v"] == [
            ("insert", 1, False), ("insert", 2, True), ("insert", 3, True), ("update", 2, True), ("delete", 1, False)
        ]  # fmt: skip


async def test_a_type_whose_json_fails_never_fails_the_writer(installed: asyncpg.Connection, events: Events) -> None:
    """A cast to json that an application wrote may raise anything."""
    await installed.execute("""
        CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TABLE t (id int PRIMARY KEY, m mood);
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN IF $1 = 'bad' THEN RAISE EXCEPTION 'no'; END IF; RETURN '"mood"'; END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
    """)
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1, 'good')")
    await installed.execute("INSERT INTO t VALUES (2, 'bad')")
    assert [(e["op"], "truncated" in e) for e in await events()] == [("insert", False), ("insert", True)]
