-- The capture triggers' source code, written for one table: static SQL, so that its plans are kept.
-- Names come from the catalog and are quoted here; nothing that a user typed is pasted in but the condition of --when.

-- A column as the generator needs it: its name plain and quoted, its type below domains, the bytes that its text can't exceed (NULL:
-- no such limit), its place in the table and in the key, and the expression of a column that is virtual.
DO $$
BEGIN
    IF to_regtype('tocsin.shape_column') IS NULL THEN
        CREATE TYPE tocsin.shape_column AS (name name, ident text, type text, largest integer, place integer, key_place integer, expression text);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tocsin.shape(relation regclass) RETURNS SETOF tocsin.shape_column
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH RECURSIVE base (attnum, type, modifier) AS (
    SELECT attnum, atttypid, atttypmod FROM pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT b.attnum, t.typbasetype, greatest(b.modifier, t.typtypmod) FROM base AS b JOIN pg_type AS t ON t.oid = b.type WHERE t.typtype = 'd'
), key AS (
    SELECT k.attnum, k.place
    FROM (SELECT indkey, indnkeyatts FROM pg_index
          WHERE indrelid = relation AND indisvalid AND (indisprimary OR indisreplident)
          ORDER BY indisprimary DESC LIMIT 1) AS i,
    unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
    WHERE k.place <= i.indnkeyatts
)
SELECT a.attname, quote_ident(a.attname), format_type(t.oid, NULL),
       CASE WHEN t.typlen > 0 THEN 40
            WHEN t.oid IN ('varchar'::regtype, 'bpchar'::regtype) AND b.modifier BETWEEN 0 AND 10000 THEN 4 * b.modifier
            WHEN t.oid = 'numeric'::regtype AND b.modifier > 0 THEN 1100 END,
       (row_number() OVER (ORDER BY a.attnum))::integer,
       k.place::integer,
       CASE WHEN a.attgenerated = 'v' THEN pg_get_expr(d.adbin, d.adrelid) END
FROM pg_attribute AS a
JOIN base AS b USING (attnum)
JOIN pg_type AS t ON t.oid = b.type AND t.typtype <> 'd'
LEFT JOIN key AS k USING (attnum)
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = relation
ORDER BY a.attnum
$$;

-- The relations whose statements a watch hears: the table, its partitions and its heirs.
CREATE OR REPLACE FUNCTION tocsin.family(relation regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH RECURSIVE tree (oid) AS (
    SELECT relation::oid
    UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid
)
SELECT c.oid::regclass FROM tree JOIN pg_class AS c USING (oid) WHERE c.relkind IN ('r', 'p') ORDER BY c.oid <> relation, c.oid
$$;

-- `row` is how the row's columns are reached, such as n or (n.r).
CREATE OR REPLACE FUNCTION tocsin.value_source(c tocsin.shape_column, "row" text, relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE WHEN c.expression IS NULL THEN format('%s.%s', "row", c.ident)
    -- A virtual column is not stored in a transition table. Its expression names its columns alone, so they are given alone.
    ELSE format('(SELECT (%s) FROM (SELECT %s) AS base)', c.expression, tocsin.base_source("row", relation)) END
$$;

CREATE OR REPLACE FUNCTION tocsin.base_source("row" text, relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT string_agg(format('%s.%s AS %s', "row", ident, ident), ', ') FROM tocsin.shape(relation) WHERE expression IS NULL
$$;

CREATE OR REPLACE FUNCTION tocsin.json_source(c tocsin.shape_column, "row" text, w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT tocsin.value_source(c, "row", w.relation) || CASE
    WHEN w.exact_numbers AND c.type IN ('bigint', 'numeric') THEN '::text'
    WHEN w.exact_numbers AND c.type IN ('bigint[]', 'numeric[]') THEN '::text[]'
    ELSE '' END
$$;

-- JSON text of a whole row, of the columns that the watch lets through.
CREATE OR REPLACE FUNCTION tocsin.row_source(w tocsin.watched, "row" text, whole text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    -- The short form can't leave anything out, and an heir's own columns would come with it.
    IF w.columns IS NULL AND NOT w.exact_numbers
       AND NOT EXISTS (SELECT FROM tocsin.shape(w.relation) AS s WHERE s.expression IS NOT NULL)
       AND NOT EXISTS (SELECT FROM pg_inherits AS i JOIN pg_class AS p ON p.oid = i.inhparent WHERE p.oid = w.relation AND p.relkind = 'r') THEN
        RETURN format('row_to_json(%s)::text', whole);
    END IF;
    RETURN (SELECT format('(SELECT row_to_json(x.*)::text FROM (SELECT %s) AS x)',
                          string_agg(format('%s AS %s', tocsin.json_source(s, "row", w), s.ident), ', '))
            FROM tocsin.shape(w.relation) AS s WHERE w.columns IS NULL OR s.name = ANY (w.columns));
END $$;

CREATE OR REPLACE FUNCTION tocsin.key_source(w tocsin.watched, "row" text, as_json boolean) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE
    WHEN count(*) = 0 THEN CASE WHEN as_json THEN quote_literal('null') ELSE 'NULL::text' END
    WHEN as_json THEN quote_literal('{') || ' || ' || string_agg(
        format('%L || coalesce(to_json(%s)::text, %L)', CASE WHEN key_place > 1 THEN ',' ELSE '' END || to_json(s.name::text) || ':', tocsin.json_source(s, "row", w), 'null'),
        ' || ' ORDER BY key_place) || ' || ' || quote_literal('}')
    WHEN count(*) = 1 THEN min(format('%s::text', tocsin.value_source(s, "row", w.relation)))
    ELSE string_agg(tocsin.token_source(tocsin.value_source(s, "row", w.relation)), $q$ || ',' || $q$ ORDER BY key_place)
END
FROM tocsin.shape(w.relation) AS s WHERE s.key_place IS NOT NULL
$$;

-- Plain values, which are most, are recognised without a call.
CREATE OR REPLACE FUNCTION tocsin.token_source(value text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT format($q$CASE WHEN (%1$s)::text COLLATE "C" ~ '^[A-Za-z0-9_-]{1,128}$' THEN (%1$s)::text ELSE tocsin.token((%1$s)::text) END$q$, value)
$$;

CREATE OR REPLACE FUNCTION tocsin.route_source(w tocsin.watched, "row" text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT string_agg(format($q$ || '.' || %s$q$, tocsin.token_source(tocsin.value_source(s, "row", w.relation))), '' ORDER BY r.place)
FROM unnest(w.route) WITH ORDINALITY AS r (name, place) JOIN tocsin.shape(w.relation) AS s ON s.name = r.name
$$;

CREATE OR REPLACE FUNCTION tocsin.condition_source(w tocsin.watched, "row" text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format('(SELECT (%s) FROM (SELECT %s) AS %I)', w.condition,
              string_agg(format('%s AS %s', tocsin.value_source(s, "row", w.relation), s.ident), ', '), (SELECT relname FROM pg_class WHERE oid = w.relation))
FROM tocsin.shape(w.relation) AS s WHERE "row" IS NOT NULL
$$;

-- About how many bytes a row's values have, measured without building their text; NULL where they can't be many.
-- Compressed values count twice: their text, at most 255 times as long and six times that in JSON, stays below PostgreSQL's 1 GB.
CREATE OR REPLACE FUNCTION tocsin.size_source(w tocsin.watched, "row" text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT string_agg(format(CASE
    WHEN type IN ('text', 'character varying', 'character') THEN 'coalesce(octet_length(%1$s), 0)::bigint'
    WHEN type = 'bytea' THEN 'coalesce(octet_length(%1$s), 0)::bigint * 2'
    ELSE 'coalesce(pg_column_size(%1$s) * CASE WHEN pg_column_compression(%1$s) IS NULL THEN 1 ELSE 2 END, 0)::bigint'
    END, "row" || '.' || ident), ' + ')
FROM tocsin.shape(w.relation)
WHERE "row" IS NOT NULL AND expression IS NULL AND largest IS NULL AND (w.columns IS NULL OR name = ANY (w.columns))
$$;

-- JSON of the old values of the columns that an update changed. Equal means bit for bit, where = could call other things equal.
CREATE OR REPLACE FUNCTION tocsin.changed_source(w tocsin.watched, old text, new text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$'{' || %s || '}'$q$, coalesce('concat_ws('','', ' || string_agg(part, ', ' ORDER BY part_number) || ')', ''''''))
FROM (
    SELECT part_number, format('nullif(concat_ws('','', %s), '''')', string_agg(format(
        CASE WHEN type IN ('smallint', 'integer', 'bigint', 'boolean', 'uuid', 'date', 'timestamp without time zone', 'timestamp with time zone', 'oid')
             THEN 'CASE WHEN %1$s IS DISTINCT FROM %2$s THEN %3$L || coalesce(to_json(%4$s)::text, ''null'') END'
             ELSE 'CASE WHEN record_image_ne(ROW(%1$s), ROW(%2$s)) THEN %3$L || coalesce(to_json(%4$s)::text, ''null'') END' END,
        tocsin.value_source(s, old, w.relation), tocsin.value_source(s, new, w.relation), to_json(s.name::text) || ':', tocsin.json_source(s, old, w)),
        ', ' ORDER BY s.place)) AS part
    -- A call has at most 100 arguments.
    FROM tocsin.shape(w.relation) AS s, LATERAL (SELECT s.place / 80 AS part_number) AS p
    WHERE w.columns IS NULL OR name = ANY (w.columns)
    GROUP BY part_number
) AS parts
$$;

-- The INSERT into the journal for one operation. `parts` has from (a FROM list), new and old (how their columns are reached), and
-- whole_new and whole_old (how the rows are).
CREATE OR REPLACE FUNCTION tocsin.insert_source(w tocsin.watched, op text, "from" text, new text, whole_new text, old text, whole_old text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
    largest integer := (SELECT max_event FROM tocsin.identity);
    place record;
    "row" text := coalesce(new, old);
    rest text := '';
    size text := concat_ws(' + ', tocsin.size_source(w, new), tocsin.size_source(w, old));
    tail text;
    head text;
    old_subject text := 'NULL::text';
BEGIN
    SELECT n.nspname, c.relname INTO place FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = w.relation;
    tail := format('%s.%s.%s', tocsin.token(place.nspname), tocsin.token(place.relname), op);
    head := format('{"op":"%s","schema":%s,"table":%s,"key":', op, to_json(place.nspname::text), to_json(place.relname::text));
    IF new IS NOT NULL THEN
        rest := format($q$',"new":' || %s$q$, tocsin.row_source(w, new, whole_new));
    END IF;
    IF op = 'delete' OR (op = 'update' AND w.old = 'full') THEN
        rest := concat_ws(' || ', nullif(rest, ''), format($q$',"old":' || %s$q$, tocsin.row_source(w, old, whole_old)));
    ELSIF op = 'update' AND w.old = 'changed' THEN
        rest := rest || format($q$ || ',"old":' || %s$q$, tocsin.changed_source(w, old, new));
    END IF;
    IF size <> '' THEN
        rest := format('CASE WHEN %s <= %s THEN %s END', size, largest, rest);
    END IF;
    IF op = 'update' AND w.route <> '{}' THEN
        old_subject := format('nullif(%1$L%2$s, %1$L%3$s)', 'change.' || tail, tocsin.route_source(w, old), tocsin.route_source(w, new));
    END IF;
    RETURN format($q$
    INSERT INTO tocsin.journal (leaf, stmt, subject, old_subject, type, key, data)
    SELECT (SELECT (last_value %% 8)::smallint FROM tocsin.leaf), "tocsin:number", d.subject, d.old_subject, %1$L, d.key,
           CASE WHEN octet_length(d.rest) <= %2$s THEN %3$L || d.key_json || d.rest || '}' ELSE %3$L || d.key_json || ',"truncated":true}' END
    FROM (SELECT %4$L%5$s AS subject, %6$s AS old_subject, %7$s AS key, %8$s AS key_json, %9$s AS rest
          FROM %10$s%11$s OFFSET 0) AS d$q$,
        tail, largest, head, 'change.' || tail, coalesce(tocsin.route_source(w, "row"), ''), old_subject,
        tocsin.key_source(w, "row", false), tocsin.key_source(w, "row", true), rest, "from",
        CASE WHEN w.condition IS NOT NULL THEN
            ' WHERE ' || concat_ws(' OR ', tocsin.condition_source(w, new), tocsin.condition_source(w, old)) ELSE '' END
        || CASE WHEN position('n.i' IN "from") > 0 THEN ' ORDER BY n.i' ELSE '' END);
END $$;

-- The body of the trigger function of one operation, without what frames it.
CREATE OR REPLACE FUNCTION tocsin.statement_source(w tocsin.watched, op text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
    every text := 'row';
BEGIN
    -- A name alone means the whole row only while no column has it.
    WHILE EXISTS (SELECT FROM tocsin.family(w.relation) AS f JOIN pg_attribute ON attrelid = f AND attname = every) LOOP
        every := every || '_';
    END LOOP;
    every := quote_ident(every);
    CASE op
    WHEN 'insert' THEN
        RETURN tocsin.insert_source(w, op, '"tocsin new" AS n', 'n', 'n.*', NULL, NULL) || ';';
    WHEN 'delete' THEN
        RETURN tocsin.insert_source(w, op, '"tocsin old" AS o', NULL, NULL, 'o', 'o.*') || ';';
    WHEN 'update' THEN
        -- The executor adds to both transition tables at once, row by row, so a row's place in one is its place in the other,
        -- whatever became of its key.
        RETURN format($q$
    IF (SELECT count(*) FROM (SELECT FROM "tocsin new" LIMIT 2) AS two) < 2 THEN %s;
    ELSE %s;
    END IF;$q$,
            tocsin.insert_source(w, op, '"tocsin new" AS n, "tocsin old" AS o', 'n', 'n.*', 'o', 'o.*'),
            tocsin.insert_source(w, op, format(
                '(SELECT row_number() OVER () AS i, %1$s AS r FROM "tocsin new" AS %1$s) AS n JOIN (SELECT row_number() OVER () AS i, %1$s AS r FROM "tocsin old" AS %1$s) AS o ON o.i = n.i',
                every), '(n.r)', 'n.r', '(o.r)', 'o.r'));
    END CASE;
END $$;

CREATE OR REPLACE FUNCTION tocsin.truncate_source(w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$
    INSERT INTO tocsin.journal (leaf, stmt, subject, type, key, data)
    SELECT (last_value %% 8)::smallint, "tocsin:number", %L, %L, NULL,
           %L || CASE WHEN TG_TABLE_SCHEMA = %L AND TG_TABLE_NAME = %L THEN '}'
                 ELSE ',"partition":' || json_build_object('schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME) || '}' END
    FROM tocsin.leaf;$q$,
    'change.' || tail, tail, head, schema, name)
FROM (
    SELECT n.nspname AS schema, c.relname AS name, format('%s.%s.truncate', tocsin.token(n.nspname), tocsin.token(c.relname)) AS tail,
           format('{"op":"truncate","schema":%s,"table":%s,"key":null', to_json(n.nspname::text), to_json(c.relname::text)) AS head
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = w.relation
) AS place
$$;

-- Create the functions and triggers of a watch as its row in tocsin.watched says; those of operations left out are dropped.
CREATE OR REPLACE FUNCTION tocsin.build(watch integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $build$
DECLARE
    w tocsin.watched;
    op text;
    member regclass;
BEGIN
    SELECT * INTO STRICT w FROM tocsin.watched WHERE id = watch;
    EXECUTE format('CREATE OR REPLACE FUNCTION tocsin.begin_%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS %L',
                   w.id, (SELECT prosrc FROM pg_proc WHERE oid = 'tocsin.begin_statement'::regproc));
    EXECUTE format('REVOKE ALL ON FUNCTION tocsin.begin_%s() FROM PUBLIC', w.id);
    FOREACH op IN ARRAY '{insert,update,delete,truncate}'::text[] LOOP
        IF op <> ALL (w.ops) THEN
            EXECUTE format('DROP FUNCTION IF EXISTS tocsin.%s_%s() CASCADE', op, w.id);
            CONTINUE;
        END IF;
        EXECUTE format($q$CREATE OR REPLACE FUNCTION tocsin.%s_%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'iso_8601'
            SET extra_float_digits = 1 SET bytea_output = 'hex' SET lc_monetary = 'C' AS %L$q$,
            op, w.id, format($body$#variable_conflict use_column
DECLARE
    "tocsin:stack" text := current_setting('tocsin.s' || TG_RELID || TG_OP, true);
    "tocsin:number" bigint := nullif(split_part("tocsin:stack", ' ', 1), '');
BEGIN
    IF "tocsin:number" IS NULL THEN
        "tocsin:number" := nextval('tocsin.statement');
    ELSE
        PERFORM set_config('tocsin.s' || TG_RELID || TG_OP, substr("tocsin:stack", strpos("tocsin:stack", ' ') + 1), true);
    END IF;%s
    -- Only a sleeping listener holds this lock exclusively; a writer that gets it lets the listener stay awake until it has committed.
    IF FOUND AND NOT pg_try_advisory_xact_lock_shared(8390040714906399854) THEN
        PERFORM pg_notify('tocsin', '');
    END IF;
    RETURN NULL;
END $body$, CASE WHEN op = 'truncate' THEN tocsin.truncate_source(w) ELSE tocsin.statement_source(w, op) END));
        EXECUTE format('REVOKE ALL ON FUNCTION tocsin.%s_%s() FROM PUBLIC', op, w.id);
    END LOOP;
    FOR member IN SELECT * FROM tocsin.family(w.relation) LOOP
        PERFORM tocsin.attach(w, member);
    END LOOP;
END $build$;

CREATE OR REPLACE FUNCTION tocsin.attach(w tocsin.watched, member regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    op text;
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER tocsin_%s_begin BEFORE %s ON %s FOR EACH STATEMENT EXECUTE FUNCTION tocsin.begin_%s()',
                   w.id, array_to_string(w.ops, ' OR '), member, w.id);
    FOREACH op IN ARRAY w.ops LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER tocsin_%1$s_%2$s AFTER %2$s ON %3$s %4$s FOR EACH STATEMENT EXECUTE FUNCTION tocsin.%2$s_%1$s()',
            w.id, op, member,
            CASE op WHEN 'insert' THEN 'REFERENCING NEW TABLE AS "tocsin new"'
                    WHEN 'delete' THEN 'REFERENCING OLD TABLE AS "tocsin old"'
                    WHEN 'update' THEN 'REFERENCING NEW TABLE AS "tocsin new" OLD TABLE AS "tocsin old"' ELSE '' END);
    END LOOP;
END $$;

-- Watch a table, or change how it is watched; its number in tocsin.watched. Needs the privilege TRIGGER on the table.
CREATE OR REPLACE FUNCTION tocsin.watch(
    relation regclass, ops text[] DEFAULT '{insert,update,delete,truncate}', columns text[] DEFAULT NULL, route text[] DEFAULT '{}',
    old text DEFAULT 'changed', condition text DEFAULT NULL, exact_numbers boolean DEFAULT false
) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
#variable_conflict use_column
DECLARE
    number integer;
BEGIN
    IF watch.condition IS NOT NULL THEN
        -- Wrong names and types fail here, not in a writer's transaction.
        EXECUTE format('SELECT FROM %s WHERE (%s) LIMIT 0', watch.relation, watch.condition);
    END IF;
    INSERT INTO tocsin.watched AS w (relation, ops, columns, route, old, condition, exact_numbers)
    VALUES (watch.relation, watch.ops, watch.columns, watch.route, watch.old, watch.condition, watch.exact_numbers)
    ON CONFLICT (relation) DO UPDATE SET ops = excluded.ops, columns = excluded.columns, route = excluded.route, old = excluded.old,
        condition = excluded.condition, exact_numbers = excluded.exact_numbers
    RETURNING w.id INTO number;
    PERFORM tocsin.build(number);
    RETURN number;
END $$;

CREATE OR REPLACE FUNCTION tocsin.unwatch(relation regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    number integer;
    name text;
BEGIN
    DELETE FROM tocsin.watched AS w WHERE w.relation = unwatch.relation RETURNING id INTO number;
    FOREACH name IN ARRAY '{begin,insert,update,delete,truncate}'::text[] LOOP
        -- The triggers depend on the functions, and the functions' owner need not own the table.
        EXECUTE format('DROP FUNCTION IF EXISTS tocsin.%s_%s() CASCADE', name, number);
    END LOOP;
    RETURN number IS NOT NULL;
END $$;

-- A relation by its name as SQL reads it, or NULL, also for what is no name at all.
CREATE OR REPLACE FUNCTION tocsin.named(name text) RETURNS oid
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN to_regclass(name);
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
