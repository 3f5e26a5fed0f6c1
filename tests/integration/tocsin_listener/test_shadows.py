"""Capture functions run as their owner, and mostly in the writer's search_path: each name and operator in them must be qualified."""

from __future__ import annotations

import re

import asyncpg

from tests.integration.tocsin_listener.conftest import Events
from tocsin_listener.watch import watch

TABLES = """
CREATE TYPE feeling AS ENUM ('good', 'bad');
CREATE TABLE plain (id bigint PRIMARY KEY, a text, b varchar(20), c numeric, d timestamptz, e jsonb, f bytea, g int[], h feeling, i uuid, j boolean);
CREATE TABLE keyed (a int, b text, c date, d numeric(9, 2), PRIMARY KEY (a, b));
CREATE TABLE keyless (a text, b float8, c interval);
CREATE TABLE parted (id int PRIMARY KEY, a text) PARTITION BY HASH (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE wide (id int PRIMARY KEY, {});
""".format(", ".join(f"c{n} int" for n in range(120)))

WRITES = """
INSERT INTO public.plain VALUES (1, 'x', 'y', 1.5, '2026-01-01', '{"a": 1}', '\\x00ff', '{1,2}', 'good', '00000000-0000-0000-0000-000000000001', true);
INSERT INTO public.plain (id, a) VALUES (2, 'p.q'), (3, NULL);
UPDATE public.plain SET a = 'z', c = 1.50, h = 'bad', g = '{2}' WHERE id == 1;
UPDATE public.plain SET b = 'both';
DELETE FROM public.plain;
INSERT INTO public.keyed VALUES (1, 'a,b', '2026-01-01', 2), (2, 'ü', NULL, NULL);
UPDATE public.keyed SET b = 'c' WHERE a == 1;
UPDATE public.keyed SET c = NULL, d = 3;
DELETE FROM public.keyed;
INSERT INTO public.keyless VALUES ('a', 1.5, '1 day');
UPDATE public.keyless SET b = 2.5;
DELETE FROM public.keyless;
INSERT INTO public.parted VALUES (1, 'a'), (2, 'b');
UPDATE public.parted SET a = 'c';
UPDATE public.parted SET id = 104 WHERE id == 1;
DELETE FROM public.parted;
INSERT INTO public.wide (id, c7) VALUES (1, 1), (2, 2);
UPDATE public.wide SET c7 = 3, c111 = 4;
UPDATE public.wide SET c8 = 3 WHERE id == 1;
DELETE FROM public.wide;
""".replace("==", "OPERATOR(pg_catalog.=)")

SHADOWS = """
DO $do$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments FROM pg_proc AS p
               WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (%(called)s) LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION evil.%%I(%%s) RETURNS text LANGUAGE plpgsql AS %%L', one.proname, one.arguments, 'BEGIN RETURN evil.stolen(); END');
        EXCEPTION WHEN feature_not_supported OR invalid_function_definition OR duplicate_function THEN
            NULL; -- Only C can take "any".
        END;
    END LOOP;
    FOR one IN SELECT o.oid, o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r FROM pg_operator AS o
               WHERE o.oprleft <> 0 AND o.oprname IN ('=', '<>', '||', '~', '<', '>', '<=', '>=', '+', '-', '*', '%%') LOOP
        EXECUTE format('CREATE FUNCTION evil.operator_%%s(%%s, %%s) RETURNS boolean LANGUAGE plpgsql AS %%L', one.oid, one.l, one.r,
                       'BEGIN RETURN evil.stolen(); END');
        EXECUTE format('CREATE OPERATOR evil.%%s (LEFTARG = %%s, RIGHTARG = %%s, FUNCTION = evil.operator_%%s)', one.oprname, one.l, one.r, one.oid);
    END LOOP;
    FOR one IN SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typname = ANY (%(called)s) LOOP
        EXECUTE format('CREATE DOMAIN evil.%%I AS pg_catalog.int4 CHECK (evil.stolen() IS NULL)', one.typname);
    END LOOP;
END $do$;
CREATE TEMP TABLE journal (x int); CREATE TEMP TABLE "tocsin new" (x int); CREATE TEMP TABLE "tocsin old" (x int);
"""

BODIES = """
SELECT proname, prosrc, coalesce(proconfig::text, '') AS config FROM pg_proc
WHERE pronamespace = 'tocsin'::regnamespace AND prorettype = 'trigger'::regtype AND proname ~ '^(insert|update|delete)_[0-9]+$'
"""

GRAMMAR = {"coalesce", "exists", "operator", "row", "array", "over", "or", "and", "not", "when", "then", "else", "select", "from", "if", "by", "in", "join"}
"""What may stand before a parenthesis and is looked up nowhere."""


async def watched(connection: asyncpg.Connection) -> None:
    await connection.execute(TABLES)
    await watch(connection, ["plain"], route=["a", "c"])
    await watch(connection, ["keyed"], exact_numbers=True, old="full")
    await watch(connection, ["keyless", "parted", "wide"])


def unqualified(source: str) -> list[str]:
    """Names and operators in a function's source that a search_path would find, in order."""
    code = re.sub(r"--[^\n]*|'(?:[^']|'')*'", " ", source)
    code = re.sub(r"OPERATOR\(pg_catalog\.[^)]+\)|:=|#variable_conflict use_column", " ", code)
    code = re.sub(r'"(?:[^"]|"")*"', "quoted", code)
    code = re.sub(r"INSERT INTO tocsin\.journal \([a-z_, ]*\)", " ", code)
    code = re.sub(r"\b(?:[nox]|whole)\.\*|pg_catalog\.count\(\*\)", " ", code)
    found = re.findall(r"(?<!:):(?!:)|[-+*/<>=~!@#%^&|`?]+", code)
    found += [m[1] for m in re.finditer(r"(?<![\w.])(\w+)\s*\(", code) if m[1].lower() not in GRAMMAR]
    found += [m[1] for m in re.finditer(r"::(\w+)(?!\w*\.)", code) if m[1] != "pg_catalog"]
    found += [m[0] for m in re.finditer(r"\b(NULLIF|DISTINCT FROM|IN \(|LIKE|BETWEEN|SIMILAR|ANY|ALL)\b", code, re.IGNORECASE)]
    return found + [m[1] for m in re.finditer(r"COLLATE (\w+)(?!\w*\.)", code) if m[1] != "pg_catalog"]


async def test_no_name_is_left_to_the_search_path(installed: asyncpg.Connection) -> None:
    await watched(installed)
    bodies = await installed.fetch(BODIES)
    assert len(bodies) == 15
    for name, source, config in bodies:
        assert "search_path" not in config, f"{name}: it costs each statement about a microsecond"
        assert unqualified(source) == [], name
    assert unqualified("SELECT a = b, f(x), g::text, nullif (a, b) COLLATE c") == ["=", "f", "nullif", "text", "nullif", "c"]


async def test_all_that_a_writer_can_shadow_changes_nothing(installed: asyncpg.Connection, events: Events, source_url: str) -> None:
    """Every operator, and every function and type that the functions name, stands first in the writer's path, and fails when it is run."""
    await watched(installed)
    called = {name for body in await installed.fetch(BODIES) for name in re.findall(r"pg_catalog\.(\w+)", body["prosrc"])}
    assert {"row_to_json", "concat_ws", "numeric_send"} < called
    await installed.execute("DROP ROLE IF EXISTS tocsin_test_attacker; CREATE ROLE tocsin_test_attacker LOGIN")
    await installed.execute("CREATE SCHEMA evil AUTHORIZATION tocsin_test_attacker; GRANT ALL ON ALL TABLES IN SCHEMA public TO tocsin_test_attacker")
    attacker = await asyncpg.connect(source_url, user="tocsin_test_attacker")
    try:
        await attacker.execute(WRITES)
        expected = await events()
        await attacker.execute("CREATE FUNCTION evil.stolen() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$")
        await attacker.execute(SHADOWS % {"called": "ARRAY['" + "','".join(called) + "']"})
        await attacker.execute("SET search_path = evil, pg_temp, pg_catalog, public")
        await attacker.execute(WRITES)
        seen = (await events())[len(expected) :]
        assert len(expected) == 34
        assert seen == expected
    finally:
        await attacker.close()
        await installed.execute("DROP OWNED BY tocsin_test_attacker CASCADE; DROP ROLE tocsin_test_attacker")
