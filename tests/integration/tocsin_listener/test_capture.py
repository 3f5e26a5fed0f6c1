"""Capture: what the triggers write into the journal, and that they never fail the writer."""

from __future__ import annotations

import asyncpg
import msgspec
import pytest

from tests.integration.tocsin_listener.conftest import Events
from tocsin.subject import encode_token
from tocsin_listener.watch import unwatch, watch


async def test_each_operation_tells_its_key_and_rows(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1, 'x', 1.50)")
    await installed.execute("UPDATE t SET a = NULL")
    await installed.execute("UPDATE t SET a = NULL")
    await installed.execute("DELETE FROM t")
    await installed.execute("TRUNCATE t")
    insert, update, idle, delete, truncate = await events()
    assert (insert["op"], insert["key"], insert["new"], "old" in insert) == ("insert", {"id": 1}, {"id": 1, "a": "x", "b": 1.5}, False)
    assert (update["new"], update["old"]) == ({"id": 1, "a": None, "b": 1.5}, {"a": "x"})
    assert idle["old"] == {}, "an update that changed nothing is an event with nothing in old"
    assert (delete["old"], "new" in delete) == ({"id": 1, "a": None, "b": 1.5}, False)
    assert (truncate["op"], truncate["key"], "new" in truncate, "old" in truncate) == ("truncate", None, False, False)
    assert [e["type"] for e in (insert, truncate)] == ["public.t.insert", "public.t.truncate"]
    assert [e["subject"] for e in (insert, truncate)] == ["change.public.t.insert", "change.public.t.truncate"]
    assert insert["key_text"] == "1"


async def test_a_rotation_of_keys_pairs_each_old_row_with_its_new_one(installed: asyncpg.Connection, events: Events) -> None:
    """Every row takes another row's key in one statement: paired by key, each pair would be wrong."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, name text)")
    await installed.execute("INSERT INTO t SELECT g, 'row ' || g FROM generate_series(0, 99) AS g")
    await watch(installed, ["t"], old="full")
    await installed.execute("UPDATE t SET id = (id + 1) % 100")
    seen = await events()
    assert len(seen) == 100
    for event in seen:
        assert event["old"]["name"] == event["new"]["name"]
        assert event["new"]["id"] == (event["old"]["id"] + 1) % 100
        assert event["key"] == {"id": event["new"]["id"]}


async def test_composite_key_parts_are_encoded_and_joined(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (b text, a int, PRIMARY KEY (a, b))")
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES ('x,y', 1), ('', 2)")
    assert [e["key_text"] for e in await events()] == ["1,x%2Cy", "2,%E"]
    assert [e["key"] for e in await events()] == [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}]


async def test_a_table_without_key_has_no_subject_but_all_its_changes(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (a int)")
    (entry,) = await watch(installed, ["t"])
    assert entry.key == []
    await installed.execute("INSERT INTO t VALUES (1), (1)")
    await installed.execute("UPDATE t SET a = 2")
    await installed.execute("DELETE FROM t")
    seen = await events()
    assert [e["op"] for e in seen] == ["insert"] * 2 + ["update"] * 2 + ["delete"] * 2
    assert all(e["key"] is None and e["key_text"] is None for e in seen)


HOSTILE = [
    "n",
    "o",
    "d",
    "x",
    "row",
    "whole",
    "whole_",
    "base",
    "tocsin new",
    'a"b',
    "x;drop table t--",
    "%I",
    "é",
    "ü" * 31,
    "SELECT",
    "seq",
    "xid",
    "leaf",
    "subject",
    "'q'",
    "{}",
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_any_name_of_schema_table_and_column(installed: asyncpg.Connection, events: Events, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    await installed.execute(f"CREATE SCHEMA {quoted}; CREATE TABLE {quoted}.{quoted} ({quoted} int PRIMARY KEY, note text)")
    await watch(installed, [f"{name}.{name}"], route=[name], old="changed")
    await installed.execute(f"INSERT INTO {quoted}.{quoted} VALUES (1, 'a'), (2, 'b')")
    await installed.execute(f"UPDATE {quoted}.{quoted} SET note = 'c', {quoted} = {quoted} + 10")
    await installed.execute(f"DELETE FROM {quoted}.{quoted}; TRUNCATE {quoted}.{quoted}")
    seen = await events()
    token = encode_token(name)
    assert [e["subject"] for e in seen[:2]] == [f"change.{token}.{token}.insert.{n}" for n in (1, 2)]
    assert (seen[2]["new"], seen[2]["old"]) == ({name: 11, "note": "c"}, {name: 1, "note": "a"})
    assert seen[2]["old_subject"] == f"change.{token}.{token}.update.1"
    assert (len(seen), {(e["schema"], e["table"]) for e in seen}) == (7, {(name, name)})


async def test_tokens_in_sql_are_the_shared_ones(installed: asyncpg.Connection) -> None:
    values = [None, "", "abc", "a.b", "*", ">", "%", "%N", " ", "Ü", "x" * 128, "x" * 129, "é" * 42, "é" * 43, "\x01", "日本", "-_"]
    rows = await installed.fetch("SELECT v, tocsin.token(v) AS t FROM unnest($1::text[]) AS v", values)
    assert {r["v"]: r["t"] for r in rows} == {v: encode_token(v) for v in values}


async def test_the_writers_settings_do_not_show(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, day date, i interval, f float8, b bytea, m money, r tstzrange)")
    await watch(installed, ["t"], route=["at"])
    row = "(%d, '2026-01-02 03:04:05+00', '2026-01-02', '1 day 2 hours', 0.1::float8 + 0.2, '\\xff', '12.34', '[2026-01-02 03:04:05+00,)')"
    await installed.execute("INSERT INTO t VALUES " + row % 1)
    await installed.execute("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET intervalstyle = 'sql_standard'; SET extra_float_digits = -5")
    await installed.execute("SET bytea_output = 'escape'; SET search_path = ''")
    await installed.execute("INSERT INTO public.t VALUES " + row % 2)
    first, second = await events()
    assert {**first["new"], "id": 2} == second["new"]
    assert second["new"]["at"] == "2026-01-02T03:04:05+00:00"
    assert first["subject"] == second["subject"]


async def test_the_writers_time_zone_does_not_show_and_stays_its_own(installed: asyncpg.Connection, events: Events) -> None:
    """Nor the style of dates, which is not pinned where JSON alone is told."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, day date)")
    await watch(installed, ["t"], old="full")
    for zone in ("UTC", "Etc/UTC", "Asia/Tokyo", "<+05>-05"):
        await installed.execute(f"SET timezone = '{zone}'; SET datestyle = 'German'")
        async with installed.transaction():
            await installed.execute("INSERT INTO t VALUES (1, '2026-01-02 03:04:05+00', '2026-01-02'), (2, NULL, NULL)")
            await installed.execute("UPDATE t SET day = day WHERE id = 1; UPDATE t SET day = day; DELETE FROM t")
        assert await installed.fetchval("SELECT current_setting('timezone')") == zone
        assert await installed.fetchval("SELECT current_setting('enable_nestloop')") == "on"
    seen = [e for e in await events() if e["key"] == {"id": 1}]
    assert len(seen) == 16
    assert all(row == {"id": 1, "at": "2026-01-02T03:04:05+00:00", "day": "2026-01-02"} for e in seen for row in (e.get("new"), e.get("old")) if row)


async def test_a_partitioned_table_rings_from_the_root_and_from_a_leaf(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text) PARTITION BY RANGE (id)")
    await installed.execute("CREATE TABLE low (a text, id int NOT NULL); ALTER TABLE t ATTACH PARTITION low FOR VALUES FROM (0) TO (10)")
    await installed.execute("CREATE TABLE high PARTITION OF t FOR VALUES FROM (10) TO (20)")
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1, 'a'), (15, 'b')")
    await installed.execute("INSERT INTO low (id, a) VALUES (2, 'c')")
    await installed.execute("UPDATE t SET id = id + 9, a = a || '!' WHERE id < 10")
    await installed.execute("DELETE FROM high WHERE id = 15")
    await installed.execute("TRUNCATE low")
    seen = await events()
    assert [(e["op"], e["key"]["id"]) for e in seen[:3]] == [("insert", 1), ("insert", 15), ("insert", 2)]
    assert sorted(e["key"]["id"] for e in seen[3:5] if e["op"] == "update") == [10, 11], "a row that moved to another partition is one update"
    assert [(e["op"], e["key"] and e["key"]["id"]) for e in seen[5:]] == [("delete", 15), ("truncate", None)]
    assert {e["table"] for e in seen} == {"t"}
    assert ({"id": 1, "a": "a"}, {"id": 10, "a": "a!"}) in [(e["old"], e["new"]) for e in seen if e["op"] == "update"]
    assert seen[-1]["partition"] == {"schema": "public", "table": "low"}


async def test_nested_statements_come_after_the_one_that_caused_them(installed: asyncpg.Connection, events: Events) -> None:
    """An AFTER ROW trigger updates its own row: the inner statement is captured first, and must be published second."""
    await installed.execute("""
        CREATE TABLE t (id int PRIMARY KEY, n int);
        CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF pg_trigger_depth() < 4 THEN UPDATE t SET n = n + 1 WHERE id = NEW.id; END IF; RETURN NULL; END $$;
        CREATE TRIGGER bump AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION bump();
    """)
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1, 0)")
    await installed.execute("INSERT INTO t VALUES (2, 0)")
    seen = await events()
    for key in (1, 2):
        assert [e["new"]["n"] for e in seen if e["key"]["id"] == key] == [0, 1, 2, 3]


async def test_a_rolled_back_savepoint_leaves_no_number_behind(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    async with installed.transaction():
        await installed.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with installed.transaction():
                await installed.execute("INSERT INTO t VALUES (2), (1)")
        await installed.execute("INSERT INTO t VALUES (3)")
    assert [e["key"]["id"] for e in await events()] == [1, 3]


async def test_cascades_merge_and_upsert(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE)")
    await installed.execute("INSERT INTO p VALUES (1), (2); INSERT INTO c VALUES (1, 1), (2, 1), (3, 2)")
    await watch(installed, ["p", "c"])
    await installed.execute("UPDATE p SET id = 10 WHERE id = 1")
    await installed.execute("DELETE FROM p WHERE id = 10")
    await installed.execute("INSERT INTO p VALUES (2), (3) ON CONFLICT (id) DO UPDATE SET id = p.id")
    await installed.execute(
        "MERGE INTO c USING (VALUES (3), (4)) AS v (id) ON c.id = v.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id, 2)"
    )
    seen = [(e["table"], e["op"], e["key"]["id"]) for e in await events()]
    assert sorted(seen[:3]) == [("c", "update", 1), ("c", "update", 2), ("p", "update", 10)]
    assert sorted(seen[3:6]) == [("c", "delete", 1), ("c", "delete", 2), ("p", "delete", 10)]
    assert sorted(seen[6:8]) == [("p", "insert", 3), ("p", "update", 2)]
    assert sorted(seen[8:]) == [("c", "delete", 3), ("c", "insert", 4)]


async def test_what_is_too_large_is_sent_with_its_key_and_never_fails_the_writer(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, a text, j json, b bytea)")
    await watch(installed, ["t"], old="full")
    await installed.execute("INSERT INTO t (id, a) VALUES (1, repeat('x', 2000000)), (2, 'small')")
    await installed.execute("UPDATE t SET b = decode(repeat('ff', 600000), 'hex') WHERE id = 2")
    await installed.execute("UPDATE t SET a = repeat(E'\\x01', 800000) WHERE id = 1")
    await installed.execute("DELETE FROM t")
    big, small, update, control, *deletes = await events()
    assert (big["key"], big["truncated"], "new" in big) == ({"id": 1}, True, False)
    assert small["new"]["a"] == "small"
    assert "truncated" not in small
    assert update["truncated"] is True, "hex doubles the bytes"
    assert control["truncated"] is True, "an escape makes six bytes of one"
    assert [e["truncated"] for e in deletes] == [True, True]


async def test_values_that_json_can_and_jsonb_can_not_hold(installed: asyncpg.Connection) -> None:
    """A json column may hold an escaped NUL or half a surrogate; as jsonb the capture would fail the writer."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, j json)")
    await watch(installed, ["t"])
    await installed.execute(r"""INSERT INTO t VALUES (1, '"\u0000"'), (2, '"\ud800"')""")
    assert await installed.fetchval("SELECT count(*) FROM tocsin.journal") == 2


async def test_columns_left_out_never_enter_the_journal(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, public text, secret text)")
    await watch(installed, ["t"], columns=["id", "public"])
    await installed.execute("INSERT INTO t VALUES (1, 'a', 'hush')")
    await installed.execute("UPDATE t SET public = 'b', secret = 'hush too'")
    await installed.execute("DELETE FROM t")
    assert await installed.fetchval("SELECT count(*) FROM tocsin.journal WHERE journal::text LIKE '%hush%' OR journal::text LIKE '%secret%'") == 0
    assert [e.get("old") for e in await events()] == [None, {"public": "a"}, {"id": 1, "public": "b"}]


async def test_the_condition_lets_through_what_enters_leaves_or_stays(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, status text)")
    await watch(installed, ["t"], when="status <> 'draft'")
    await installed.execute("INSERT INTO t VALUES (1, 'draft'), (2, 'live')")
    for status in ("draft", "live", "draft"):
        await installed.execute(f"UPDATE t SET status = '{status}' WHERE id = 1")
    await installed.execute("DELETE FROM t")
    assert [(e["op"], e["key"]["id"]) for e in await events()] == [("insert", 2), ("update", 1), ("update", 1), ("delete", 2)]


async def test_exact_numbers_are_strings_everywhere(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE DOMAIN amount AS numeric(20, 2)")
    await installed.execute("CREATE TABLE t (id bigint PRIMARY KEY, n numeric, a amount, small int, many bigint[])")
    await watch(installed, ["t"], exact_numbers=True)
    await installed.execute("INSERT INTO t VALUES (9007199254740993, 1e30, 1.10, 3, '{9007199254740993}')")
    await installed.execute("UPDATE t SET n = 'NaN'")
    insert, update = await events()
    assert insert["key"] == {"id": "9007199254740993"}
    assert insert["new"] == {"id": "9007199254740993", "n": "1" + "0" * 30, "a": "1.10", "small": 3, "many": ["9007199254740993"]}
    assert update["old"] == {"n": "1" + "0" * 30}


async def test_ops_are_chosen_and_changed_again(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"], ops=["insert"])
    await installed.execute("INSERT INTO t VALUES (1); DELETE FROM t")
    await watch(installed, ["t"], ops=["delete"])
    await installed.execute("INSERT INTO t VALUES (1); DELETE FROM t; TRUNCATE t")
    assert [e["op"] for e in await events()] == ["insert", "delete"]


async def test_unwatch_leaves_no_trigger_and_uninstall_nothing_at_all(installed: asyncpg.Connection) -> None:
    from tocsin_listener.install import uninstall

    leftovers = """SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tocsin%')
                   + (SELECT count(*) FROM pg_proc WHERE pronamespace = to_regnamespace('tocsin') AND proname ~ '_[0-9]+$')
                   + (SELECT count(*) FROM tocsin.watched)"""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    before = await installed.fetchval("SELECT count(*) FROM pg_depend")
    await watch(installed, ["t", "u"])
    assert await installed.fetchval(leftovers) > 0
    assert await unwatch(installed, ["t", "u"]) == ["t", "u"]
    assert await installed.fetchval(leftovers) == 0
    assert await installed.fetchval("SELECT count(*) FROM pg_depend") == before
    await watch(installed, ["t"])
    await uninstall(installed)
    assert await installed.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tocsin%'") == 0
    assert await installed.fetchval("SELECT to_regnamespace('tocsin')") is None
    await installed.execute("INSERT INTO t VALUES (1)")


async def test_emit_drift_and_notify_become_events(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("""SELECT tocsin.emit('order.paid', '{"id": 1}'), tocsin.report_drift('public', 'a.b', '{"state": "missing"}')""")
    await installed.execute("SELECT tocsin.carry('my channel', 'not json {', 7)")
    rows = await installed.fetch("SELECT subject, type, data FROM tocsin.events ORDER BY seq")
    assert [r["subject"] for r in rows] == ["event.order.paid", "drift.public.a%2Eb", "notify.my%20channel"]
    assert msgspec.json.decode(rows[0]["data"]) == {"id": 1}
    assert msgspec.json.decode(rows[2]["data"])["payload"] == "not json {"
    for bad in ("", "a..b", ".a"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match=r"tocsin\.emit"):
            await installed.execute("SELECT tocsin.emit($1, '1')", bad)


async def test_a_writer_needs_no_grant_and_cannot_read_the_journal(installed: asyncpg.Connection, source_url: str) -> None:
    await installed.execute("DROP ROLE IF EXISTS tocsin_test_writer; CREATE ROLE tocsin_test_writer LOGIN PASSWORD 'w'")
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY); GRANT INSERT ON t TO tocsin_test_writer")
    await watch(installed, ["t"])
    await installed.execute("SET ROLE tocsin_test_writer")
    await installed.execute("INSERT INTO t VALUES (1); SELECT tocsin.emit('mine')")
    for forbidden in ("SELECT FROM tocsin.journal", "SELECT tocsin.canary()", "SELECT tocsin.append('event.x', 'x', NULL, '1')", "SELECT tocsin.insert_1()"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await installed.execute(forbidden)
    await installed.execute("RESET ROLE")
    assert await installed.fetchval("SELECT count(*) FROM tocsin.journal") == 2
    await installed.execute("DROP OWNED BY tocsin_test_writer; DROP ROLE tocsin_test_writer")


async def test_virtual_generated_columns_are_told(installed: asyncpg.Connection, events: Events) -> None:
    kind = "VIRTUAL" if await installed.fetchval("SELECT current_setting('server_version_num')::int >= 180000") else "STORED"
    await installed.execute(f"CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) {kind}, gone int, more int)")
    await installed.execute("ALTER TABLE t DROP COLUMN gone")
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1, 2, DEFAULT, 5)")
    await installed.execute("UPDATE t SET a = 3")
    insert, update = await events()
    assert insert["new"] == {"id": 1, "a": 2, "twice": 4, "more": 5}
    assert (update["new"]["twice"], update["old"]) == (6, {"a": 2, "twice": 4})


async def test_a_column_added_later_is_in_the_new_row(installed: asyncpg.Connection, events: Events) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1)")
    await installed.execute("ALTER TABLE t ADD COLUMN late text DEFAULT 'x'")
    await installed.execute("INSERT INTO t VALUES (2)")
    first, changed, second = await events()
    assert (first["new"], second["new"]) == ({"id": 1}, {"id": 2, "late": "x"})
    assert changed["subject"] == "schema.public.t"


BEGIN_TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgname ~ '_begin$' AND NOT tgisinternal"


async def test_statements_are_numbered_only_where_others_may_run_inside_them(installed: asyncpg.Connection, events: Events) -> None:
    """A trigger that is created later, and a foreign key that cascades, are noticed in the transaction that makes them."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY, n int DEFAULT 0); CREATE TABLE parent (id int PRIMARY KEY)")
    await watch(installed, ["t", "parent"])
    assert await installed.fetchval(BEGIN_TRIGGERS) == 0
    await installed.execute("""
        CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN UPDATE t SET n = n + 1 WHERE id = NEW.id AND n < 1; RETURN NULL; END';
        CREATE TRIGGER bump AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION bump();
    """)
    assert await installed.fetchval(BEGIN_TRIGGERS) == 1
    await installed.execute("CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE)")
    assert await installed.fetchval(BEGIN_TRIGGERS) == 2
    await installed.execute("INSERT INTO t VALUES (1)")
    assert [(e["op"], e["new"]["n"]) for e in await events()] == [("insert", 0), ("update", 1)], "and nothing is announced: the table has its shape"


async def test_what_a_trigger_does_before_the_row_comes_before_it(installed: asyncpg.Connection, events: Events) -> None:
    """An upsert by hand: told the other way round, the row would be gone for whoever applies the events."""
    await installed.execute("""
        CREATE TABLE t (id int PRIMARY KEY, n int);
        CREATE FUNCTION replace() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM t WHERE id = NEW.id; RETURN NEW; END';
        CREATE TRIGGER replace BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION replace();
    """)
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t VALUES (1, 1)")
    await installed.execute("INSERT INTO t VALUES (1, 2)")
    assert [(e["op"], (e.get("new") or e["old"])["n"]) for e in await events()] == [("insert", 1), ("delete", 1), ("insert", 2)]


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [("int", "7", 7), ("bigint", "-7", -7), ("text", "'a\"\\b'", 'a"\\b'), ("varchar(9)", "'ü'", "ü"), ("uuid", "'00000000-0000-0000-0000-0000000000ff'", None),
     ("char(4)", "'a'", "a   "), ("boolean", "true", True), ("numeric", "1.50", 1.5), ("timestamptz", "'2026-01-01 00:00Z'", "2026-01-01T00:00:00+00:00")],
)  # fmt: skip
@pytest.mark.parametrize("exact", [False, True])
async def test_a_key_is_in_the_event_as_it_is_in_the_row(
    installed: asyncpg.Connection, events: Events, kind: str, value: str, told: object, exact: bool
) -> None:
    """Whether its JSON was written or follows from its text."""
    await installed.execute(f"CREATE TABLE t (id {kind} PRIMARY KEY)")
    await watch(installed, ["t"], exact_numbers=exact)
    await installed.execute(f"INSERT INTO t VALUES ({value})")
    (event,) = await events()
    assert event["key"] == event["new"]
    if not exact:
        assert event["key"]["id"] == (told if told is not None else value.strip("'"))
