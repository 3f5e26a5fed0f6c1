-- The capture triggers' source code, written for one table: static SQL, so that its plans are kept. What the executor prepares for it in each
-- statement is most of its cost, so it is one flat INSERT: nothing volatile stands in its SELECT, which would make that a subquery with a
-- scan of its own. The leaf and the number are the journal's defaults.

-- Only a sleeping listener holds the lock exclusively: a writer that gets it lets the listener stay awake until it has committed, and one that
-- does not rings.
CREATE OR REPLACE FUNCTION tocsin.bell_source() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT $q$
    IF FOUND AND NOT pg_catalog.pg_try_advisory_xact_lock_shared(8390040714906399854) THEN
        PERFORM pg_catalog.pg_notify('tocsin', '');
    END IF;$q$
$$;

-- What the writer said of its transaction; '' is nothing, once a session has known the setting.
CREATE OR REPLACE FUNCTION tocsin.annotation_source() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT $q$pg_catalog.left(pg_catalog.current_setting('tocsin.annotation', true), 1024)$q$
$$;

-- The statement's number, where it has one.
CREATE OR REPLACE FUNCTION tocsin.stmt_source(w tocsin.watched) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT CASE WHEN w.nests THEN tocsin.number_source(NULL) ELSE 'NULL::pg_catalog.int8' END
$$;

-- How a key of one column becomes JSON: as a number, quoted, or (NULL) as to_json says.
CREATE OR REPLACE FUNCTION tocsin.key_kind(w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE WHEN count(*) <> 1 THEN NULL
            WHEN min(type) IN ('smallint', 'integer') OR (min(type) = 'bigint' AND NOT w.exact_numbers) THEN 'number'
            WHEN min(type) IN ('bigint', 'text', 'character varying', 'uuid') THEN 'quoted' END
FROM unnest(w.shape) WHERE key_place IS NOT NULL AND expression IS NULL
$$;

-- The envelope of a table's operation, made where there is none yet.
CREATE OR REPLACE FUNCTION tocsin.envelope_of(w tocsin.watched, op text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    place record;
    e tocsin.envelope;
    kind text := tocsin.key_kind(w);
    found_id integer;
BEGIN
    SELECT n.nspname, c.relname INTO place FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = w.relation;
    e.type := format('%s.%s.%s', tocsin.token(place.nspname), tocsin.token(place.relname), op);
    e.subject := 'change.' || e.type;
    e.head := format('{"op":"%s","schema":%s,"table":%s,"key":', op, to_json(place.nspname::text), to_json(place.relname::text));
    e.key_head := CASE WHEN kind IS NULL THEN '' ELSE format('{%s:', (SELECT to_json(name::text) FROM unnest(w.shape) WHERE key_place = 1)) END;
    e.key_quoted := kind IS NOT DISTINCT FROM 'quoted';
    e.max_event := (SELECT max_event FROM tocsin.identity);
    INSERT INTO tocsin.envelope (subject, type, head, key_head, key_quoted, max_event)
    VALUES (e.subject, e.type, e.head, e.key_head, e.key_quoted, e.max_event)
    ON CONFLICT DO NOTHING RETURNING id INTO found_id;
    IF found_id IS NULL THEN
        SELECT o.id INTO STRICT found_id FROM tocsin.envelope AS o
        WHERE md5(o.head) = md5(e.head) AND o.head = e.head AND o.key_head = e.key_head AND o.key_quoted = e.key_quoted AND o.max_event = e.max_event;
    END IF;
    RETURN found_id;
END $$;

-- The INSERT into the journal for one operation: `from` is a FROM list, `new` and `old` are how their columns are reached, `whole_new`
-- and `whole_old` how the rows are; `place` is a row's place in its statement, where that is known. Of rows whose values alone exceed an
-- event no JSON is built, `new` first; where only the JSON does, tocsin.events leaves it out.
CREATE OR REPLACE FUNCTION tocsin.insert_source(
    w tocsin.watched, op text, "from" text, new text, whole_new text, old text, whole_old text, place text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    "row" text := coalesce(new, old);
    condition text := CASE WHEN w.condition IS NOT NULL THEN concat_ws(' OR ', tocsin.condition_source(w, new), tocsin.condition_source(w, old)) END;
    names text := 'annotation, envelope';
    list text := concat_ws(', ', tocsin.annotation_source(), tocsin.envelope_of(w, op));
    field record;
BEGIN
    FOR field IN
        SELECT * FROM (VALUES
            ('stmt', CASE WHEN w.nests THEN tocsin.number_source(place) END, NULL),
            ('subject', tocsin.route_source(w, "row"), NULL),
            ('old_subject', CASE WHEN op = 'update' THEN tocsin.route_source(w, old) END, NULL),
            ('key', tocsin.key_source(w, "row", false), NULL),
            ('key_json', CASE WHEN tocsin.key_kind(w) IS NULL THEN tocsin.key_source(w, "row", true) END, NULL),
            ('new', CASE WHEN new IS NOT NULL THEN tocsin.row_source(w, new, whole_new) END, tocsin.oversized_source(w, array_remove(ARRAY[new, old], NULL))),
            ('old', CASE WHEN op = 'delete' OR (op = 'update' AND w.old = 'full') THEN tocsin.row_source(w, old, whole_old)
                         WHEN op = 'update' AND w.old = 'changed' THEN tocsin.changed_source(w, old, new) END, tocsin.oversized_source(w, ARRAY[old]))) AS v (name, value, oversized)
        WHERE v.value IS NOT NULL
    LOOP
        names := names || ', ' || field.name;
        list := list || ', ' || CASE WHEN field.oversized IS NULL THEN field.value ELSE format('CASE WHEN %s THEN NULL ELSE %s END', field.oversized, field.value) END;
    END LOOP;
    RETURN format($q$
    INSERT INTO tocsin.journal (%s)
    SELECT %s
    FROM %s%s%s$q$, names, list, "from", ' WHERE ' || condition, CASE WHEN position('n.i' IN "from") > 0 THEN ' ORDER BY n.i' END);
END $$;

-- The body of the trigger function of one operation, without what frames it.
CREATE OR REPLACE FUNCTION tocsin.statement_source(w tocsin.watched, op text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    every text := 'whole';
    pairs text;
BEGIN
    -- A name alone means the whole row only while no column has it, nor the place, which has one more underscore.
    WHILE EXISTS (SELECT FROM pg_attribute WHERE attrelid = ANY (ARRAY(SELECT tocsin.family(w.relation)::oid)) AND attname IN (every, every || '_')) LOOP
        every := every || '_';
    END LOOP;
    CASE op
    WHEN 'insert', 'delete' THEN
        RETURN tocsin.one_sided_source(w, op, every);
    WHEN 'update' THEN
        -- The executor adds to both transition tables at once, row by row, so a row's place in one is its place in the other,
        -- whatever became of its key.
        -- One row, as most UPDATEs have, needs no places: the first INSERT writes nothing where there are more. The second one's plan is made for
        -- the first such statement's number of rows and kept: a nested loop for two would be quadratic for a million.
        pairs := format($q$%s;
    IF NOT FOUND THEN
        -- On its own, since what reads a table is run by the executor.
        IF EXISTS (SELECT FROM "tocsin new" OFFSET 1) THEN
            DECLARE
                "tocsin:nestloop" pg_catalog.text := pg_catalog.current_setting('enable_nestloop');
                "tocsin:off" pg_catalog.text := pg_catalog.set_config('enable_nestloop', 'off', true);
            BEGIN%s;
                -- PERFORM would change FOUND.
                "tocsin:nestloop" := pg_catalog.set_config('enable_nestloop', "tocsin:nestloop", true);
            END;
        END IF;
    END IF;$q$,
            tocsin.insert_source(w, op, '"tocsin new" AS n, "tocsin old" AS o, (SELECT WHERE NOT EXISTS (SELECT FROM "tocsin new" OFFSET 1)) AS alone', 'n', 'n.*', 'o', 'o.*'),
            tocsin.insert_source(w, op, format('%s JOIN %s ON o.%3$s OPERATOR(pg_catalog.=) n.%3$s', tocsin.placed_source('new', every), tocsin.placed_source('old', every), every || '_'),
                                 'n', 'n.' || every, 'o', 'o.' || every, format('n.%s_', every)));
        -- But a row that leaves its partition, and that a BEFORE INSERT trigger of the other one refuses, is deleted, and is in the
        -- old table alone. Then no place says anything; what is told instead is what became of the table.
        IF (SELECT relkind = 'p' FROM pg_class WHERE oid = w.relation) THEN
            pairs := format($q$IF (SELECT pg_catalog.count(*) FROM "tocsin new") OPERATOR(pg_catalog.<>) (SELECT pg_catalog.count(*) FROM "tocsin old") THEN%s;%s%s;
    ELSE%s
    END IF;$q$, tocsin.insert_source(w, 'delete', '"tocsin old" AS o', NULL, NULL, 'o', 'o.*'), tocsin.bell_source(),
                tocsin.insert_source(w, 'insert', '"tocsin new" AS n', 'n', 'n.*', NULL, NULL), pairs);
        END IF;
        RETURN E'\n    ' || pairs;
    END CASE;
END $$;

-- The rows of a transition table with their columns, each whole, and its place. A column is never asked of the whole row: PostgreSQL counts the
-- columns of such a record without those that were dropped, and takes the wrong one.
CREATE OR REPLACE FUNCTION tocsin.placed_source("table" text, every text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT format('(SELECT pg_catalog.row_number() OVER () AS %1$s_, %1$s.*, %1$s AS %1$s FROM "tocsin %2$s" AS %1$s) AS %3$s', every, "table", left("table", 1))
$$;

-- Of INSERT and DELETE, whose rows are in one table; with the place of each only where the rows of one statement have several numbers.
CREATE OR REPLACE FUNCTION tocsin.one_sided_source(w tocsin.watched, op text, every text) RETURNS text
LANGUAGE sql SET search_path = pg_catalog AS $$
SELECT CASE WHEN w.nests THEN format(E'\n    IF "tocsin:numbers" IS NULL THEN%s\n    ELSE%s\n    END IF;', plain || ';', placed || ';') ELSE plain || ';' END
FROM (SELECT CASE op WHEN 'insert' THEN tocsin.insert_source(w, op, '"tocsin new" AS n', 'n', 'n.*', NULL, NULL)
                     ELSE tocsin.insert_source(w, op, '"tocsin old" AS o', NULL, NULL, 'o', 'o.*') END AS plain,
             CASE op WHEN 'insert' THEN tocsin.insert_source(w, op, tocsin.placed_source('new', every), 'n', 'n.' || every, NULL, NULL, format('n.%s_', every))
                     ELSE tocsin.insert_source(w, op, tocsin.placed_source('old', every), NULL, NULL, 'o', 'o.' || every, format('o.%s_', every)) END AS placed) AS sources
$$;

CREATE OR REPLACE FUNCTION tocsin.truncate_source(w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$
    INSERT INTO tocsin.journal (annotation, stmt, subject, type, data)
    SELECT %s, %s, %L, %L, %L || CASE WHEN TG_TABLE_SCHEMA = %L AND TG_TABLE_NAME = %L THEN '}'
                 ELSE ',"partition":' || json_build_object('schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME) || '}' END;$q$,
    tocsin.annotation_source(), tocsin.stmt_source(w), 'change.' || tail, tail, head, schema, name)
FROM (
    SELECT n.nspname AS schema, c.relname AS name, format('%s.%s.truncate', tocsin.token(n.nspname), tocsin.token(c.relname)) AS tail,
           format('{"op":"truncate","schema":%s,"table":%s,"key":null', to_json(n.nspname::text), to_json(c.relname::text)) AS head
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = w.relation
) AS place
$$;

-- What is left to tell where a function can't be written or fails: the key and the route, read from JSON, where a name that is gone
-- is NULL instead of an error. No other value enters it, since the condition and the columns can't be judged.
CREATE OR REPLACE FUNCTION tocsin.keys_source(w tocsin.watched, op text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$
    INSERT INTO tocsin.journal (annotation, stmt, subject, type, key, data)
    SELECT %s, %s, %L%s, %L, %s, %L || %s || ',"truncated":true}'
    FROM (SELECT CASE WHEN pg_column_size(t.*)::bigint * 2 <= %s THEN row_to_json(t.*) END AS r FROM %s AS t OFFSET 0) AS j;$q$,
    tocsin.annotation_source(), tocsin.stmt_source(w), 'change.' || place.tail,
    (SELECT string_agg(format($q$ || '.' || tocsin.token(r ->> %L)$q$, name), '' ORDER BY n) FROM unnest(w.route) WITH ORDINALITY AS u (name, n)),
    place.tail,
    CASE cardinality(key.names) WHEN 0 THEN 'NULL::text' WHEN 1 THEN format('r ->> %L', key.names[1])
        ELSE (SELECT string_agg(format('tocsin.token(r ->> %L)', name), $q$ || ',' || $q$ ORDER BY n) FROM unnest(key.names) WITH ORDINALITY AS u (name, n)) END,
    place.head,
    CASE cardinality(key.names) WHEN 0 THEN $q$'null'$q$
        ELSE (SELECT format($q$CASE WHEN %s THEN '{' || %s || '}' ELSE 'null' END$q$, string_agg(format('r -> %L IS NOT NULL', name), ' AND '),
                     string_agg(format('%L || (r -> %L)', CASE WHEN n > 1 THEN ',' ELSE '' END || to_json(name) || ':', name), ' || ' ORDER BY n))
              FROM unnest(key.names) WITH ORDINALITY AS u (name, n)) END,
    (SELECT max_event FROM tocsin.identity), CASE op WHEN 'delete' THEN '"tocsin old"' ELSE '"tocsin new"' END)
FROM (
    SELECT format('%s.%s.%s', tocsin.token(n.nspname), tocsin.token(c.relname), op) AS tail,
           format('{"op":"%s","schema":%s,"table":%s,"key":', op, to_json(n.nspname::text), to_json(c.relname::text)) AS head
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = w.relation
) AS place, (SELECT coalesce(array_agg(name::text ORDER BY key_place), '{}') AS names FROM unnest(w.shape) WHERE key_place IS NOT NULL) AS key
$$;

-- At last, that rows changed, and how many: nothing in this can fail but what fails the server.
CREATE OR REPLACE FUNCTION tocsin.blind_source(w tocsin.watched, op text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$
    INSERT INTO tocsin.journal (annotation, stmt, subject, type, data)
    SELECT %s, %s, %L, %L, %L FROM %s;$q$,
    tocsin.annotation_source(), tocsin.stmt_source(w), 'change.' || tail || repeat('.%N', cardinality(w.route)), tail,
    format('{"op":"%s","schema":%s,"table":%s,"key":null,"truncated":true}', op, to_json(schema), to_json("table")),
    CASE op WHEN 'delete' THEN '"tocsin old"' ELSE '"tocsin new"' END)
FROM (
    SELECT n.nspname::text AS schema, c.relname::text AS "table", format('%s.%s.%s', tocsin.token(n.nspname), tocsin.token(c.relname), op) AS tail
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = w.relation
) AS place
$$;

-- One piece of source, and what is done instead where it fails by an error of its own; what concerns the transaction or the server
-- (deadlock, serialization, disk, memory, cancel) goes on to the writer. The subtransaction takes back what was written so far, so that
-- either all rows are told in the first way, or all in the second.
CREATE OR REPLACE FUNCTION tocsin.guarded(source text, instead text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT format($q$
    BEGIN%s
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception OR plpgsql_error OR program_limit_exceeded OR feature_not_supported
        OR cardinality_violation OR external_routine_exception OR integrity_constraint_violation THEN%s
    END;$q$, source, instead)
$$;

-- Whether the function may meet an error that the writer's own statement does not: by a condition, a virtual column's expression, a
-- type's own functions, or a change of the table that no event trigger tells of.
CREATE OR REPLACE FUNCTION tocsin.is_risky(w tocsin.watched) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT w.condition IS NOT NULL
    OR NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'tocsin_ddl' AND evtenabled <> 'D')
    OR EXISTS (
        SELECT FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid IN (SELECT f FROM tocsin.family(w.relation) AS f) AND a.attnum > 0 AND NOT a.attisdropped
          AND (a.attgenerated = 'v' OR (t.typnamespace <> 'pg_catalog'::regnamespace
                AND (t.typtype <> 'e' OR EXISTS (SELECT FROM pg_cast WHERE castsource = t.oid AND casttarget = 'json'::regtype)))))
$$;

-- The source code of the trigger function of one operation; `keys_only`: without whatever may not be valid any more.
CREATE OR REPLACE FUNCTION tocsin.body(w tocsin.watched, op text, keys_only boolean) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    source text;
BEGIN
    IF op = 'truncate' THEN
        source := tocsin.truncate_source(w);
    ELSIF keys_only THEN
        source := tocsin.guarded(tocsin.keys_source(w, op), tocsin.blind_source(w, op));
    ELSE
        source := tocsin.statement_source(w, op);
        IF w.risky THEN
            source := tocsin.guarded(source, tocsin.guarded(tocsin.keys_source(w, op), tocsin.blind_source(w, op)));
        END IF;
    END IF;
    IF w.nests THEN
        RETURN tocsin.numbered_source(w, op, source || tocsin.bell_source());
    END IF;
    RETURN format($q$#variable_conflict use_column
BEGIN%s
    RETURN NULL;
END $q$, source || tocsin.bell_source());
END $body$;

-- The settings that the text of this table's values depends on, pinned. Each costs every statement up to a microsecond. In JSON, dates are ISO
-- always.
CREATE OR REPLACE FUNCTION tocsin.settings_source(w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH every (setting, types) AS (VALUES
    ($q$SET timezone = 'UTC'$q$, '{timestamp with time zone}'::text[]),
    ($q$SET datestyle = 'ISO, YMD'$q$, '{timestamp with time zone,timestamp without time zone,date}'),
    ($q$SET intervalstyle = 'iso_8601'$q$, '{interval}'),
    ($q$SET extra_float_digits = 1$q$, '{real,double precision}'),
    ($q$SET bytea_output = 'hex'$q$, '{bytea}'),
    ($q$SET lc_monetary = 'C'$q$, '{money}')
), present AS (
    SELECT DISTINCT type FROM unnest(w.shape)
    WHERE type <> ALL ('{boolean,smallint,integer,bigint,oid,numeric,text,character varying,character,uuid,json,jsonb,time without time zone}')
)
SELECT coalesce(string_agg(setting, ' '), '') FROM every
WHERE (types && ARRAY(SELECT type FROM present) AND (setting NOT LIKE '%datestyle%' OR EXISTS (
           SELECT FROM unnest(w.shape) AS s WHERE s.type = ANY (types) AND (s.key_place IS NOT NULL OR s.name = ANY (w.route)))))
   -- An array, a range, a type of the application's or a condition may depend on any.
   OR w.risky OR EXISTS (SELECT FROM present WHERE type <> ALL (SELECT unnest(e.types) FROM every AS e))
$$;

-- The settings of a capture function. What is risky or numbered, and what is left of it where it can't be planned, has names that are not
-- qualified. Where the server has a compiler, it must not have the function: the plan of a statement of a million rows is kept for the session,
-- and would be compiled anew for each single row after it, in 0.2 s.
CREATE OR REPLACE FUNCTION tocsin.config_source(w tocsin.watched, op text, keys_only boolean) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT concat_ws(' ', CASE WHEN w.risky OR w.nests OR keys_only OR op = 'truncate' THEN 'SET search_path = pg_catalog, pg_temp' END,
                 CASE WHEN tocsin.has_compiler() THEN 'SET jit = off' END, tocsin.settings_source(w))
$$;

-- Whatever the setting says now; PostgreSQL finds out by loading it.
CREATE OR REPLACE FUNCTION tocsin.has_compiler() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog SET jit = on AS $$
SELECT pg_jit_available()
$$;
