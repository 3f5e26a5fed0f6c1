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
SELECT string_agg(CASE WHEN s.name IS NULL THEN $q$ || '.%N'$q$ -- A column that is gone: the subject keeps its tokens.
                  ELSE format($q$ || '.' || %s$q$, tocsin.token_source(tocsin.value_source(s, "row", w.relation))) END, '' ORDER BY r.place)
FROM unnest(w.route) WITH ORDINALITY AS r (name, place) LEFT JOIN tocsin.shape(w.relation) AS s ON s.name = r.name
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

-- JSON of the old values of the columns that an update changed. Equal means bit for bit, where = could call other things equal. The executor
-- prepares each call anew in every statement, which costs more than to run it for one row: so there are few.
CREATE OR REPLACE FUNCTION tocsin.changed_source(w tocsin.watched, old text, new text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE count(*) WHEN 0 THEN '''{}''' WHEN 1 THEN format($q$concat('{', %s, '}')$q$, min(part))
            ELSE format($q$concat('{', concat_ws(',', %s), '}')$q$, string_agg(format($q$nullif(%s, '')$q$, part), ', ' ORDER BY part_number)) END
FROM (
    SELECT part_number, format($q$concat_ws(',', %s)$q$, string_agg(format(
        CASE WHEN type IN ('smallint', 'integer', 'bigint', 'boolean', 'uuid', 'date', 'timestamp without time zone', 'timestamp with time zone', 'oid')
                  OR (type IN ('text', 'character varying') AND tocsin.is_bytewise(w.relation, s.name))
             THEN $q$CASE WHEN %1$s IS DISTINCT FROM %2$s THEN concat(%3$L, coalesce(to_json(%4$s), 'null')) END$q$
             WHEN type = 'numeric' THEN $q$CASE WHEN numeric_send(%1$s) IS DISTINCT FROM numeric_send(%2$s) THEN concat(%3$L, coalesce(to_json(%4$s), 'null')) END$q$
             ELSE $q$CASE WHEN record_image_ne(ROW(%1$s), ROW(%2$s)) THEN concat(%3$L, coalesce(to_json(%4$s), 'null')) END$q$ END,
        tocsin.value_source(s, old, w.relation), tocsin.value_source(s, new, w.relation), to_json(s.name::text) || ':', tocsin.json_source(s, old, w)),
        ', ' ORDER BY s.place)) AS part
    -- A call has at most 100 arguments.
    FROM tocsin.shape(w.relation) AS s, LATERAL (SELECT s.place / 80 AS part_number) AS p
    WHERE w.columns IS NULL OR name = ANY (w.columns)
    GROUP BY part_number
) AS parts
$$;

-- Whether two values of a text column are equal only if they are the same bytes.
CREATE OR REPLACE FUNCTION tocsin.is_bytewise(relation regclass, name name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT coalesce(bool_and(c.collisdeterministic), false)
FROM pg_attribute AS a JOIN pg_collation AS c ON c.oid = a.attcollation WHERE a.attrelid = relation AND a.attname = is_bytewise.name
$$;

-- Which leaf is written; evaluated once a statement, and not where it has no row. Only a sleeping listener holds the lock exclusively: a
-- writer that gets it lets the listener stay awake until it has committed, and one that does not rings.
CREATE OR REPLACE FUNCTION tocsin.leaf_source() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$(SELECT (CASE WHEN pg_try_advisory_xact_lock_shared(8390040714906399854) OR pg_notify('tocsin', '') IS NOT NULL
                THEN coalesce(pg_sequence_last_value(%s), 0) %% 8 END)::smallint)$q$, 'tocsin.leaf'::regclass::oid)
$$;

-- What every row begins with: leaf, stmt, annotation.
CREATE OR REPLACE FUNCTION tocsin.common_source(w tocsin.watched, number text DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT concat_ws(', ', tocsin.leaf_source(), CASE WHEN w.nests THEN coalesce(number, tocsin.number_source(NULL)) ELSE 'NULL::bigint' END,
                 $q$left(nullif(current_setting('tocsin.annotation', true), ''), 1024)$q$)
$$;

-- How a key of one column becomes JSON: as a number, quoted, or (NULL) as to_json says.
CREATE OR REPLACE FUNCTION tocsin.key_kind(w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE WHEN count(*) <> 1 THEN NULL
            WHEN min(type) IN ('smallint', 'integer') OR (min(type) = 'bigint' AND NOT w.exact_numbers) THEN 'number'
            WHEN min(type) IN ('bigint', 'text', 'character varying', 'uuid') THEN 'quoted' END
FROM tocsin.shape(w.relation) WHERE key_place IS NOT NULL AND expression IS NULL
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
    e.key_head := CASE WHEN kind IS NULL THEN '' ELSE format('{%s:', (SELECT to_json(name::text) FROM tocsin.shape(w.relation) WHERE key_place = 1)) END;
    e.key_quoted := kind IS NOT DISTINCT FROM 'quoted';
    INSERT INTO tocsin.envelope (subject, type, head, key_head, key_quoted) VALUES (e.subject, e.type, e.head, e.key_head, e.key_quoted)
    ON CONFLICT DO NOTHING RETURNING id INTO found_id;
    IF found_id IS NULL THEN
        SELECT o.id INTO STRICT found_id FROM tocsin.envelope AS o
        WHERE md5(o.head) = md5(e.head) AND o.head = e.head AND o.key_head = e.key_head AND o.key_quoted = e.key_quoted;
    END IF;
    RETURN found_id;
END $$;

-- The INSERT into the journal for one operation: `from` is a FROM list, `new` and `old` are how their columns are reached, `whole_new`
-- and `whole_old` how the rows are; `place` is a row's place in its statement, where that is known. What would make an event too large is left NULL, and the event is told as truncated.
CREATE OR REPLACE FUNCTION tocsin.insert_source(
    w tocsin.watched, op text, "from" text, new text, whole_new text, old text, whole_old text, place text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    most integer := (SELECT max_event FROM tocsin.identity);
    "row" text := coalesce(new, old);
    size text := concat_ws(' + ', tocsin.size_source(w, new), tocsin.size_source(w, old));
    -- One byte of a value has at most six of JSON.
    small boolean := size = '' AND (SELECT sum(s.largest * 6 + 2 * octet_length(s.name::text) + 20) * 2 <= most FROM tocsin.shape(w.relation) AS s);
    new_value text := CASE WHEN new IS NOT NULL THEN tocsin.row_source(w, new, whole_new) END;
    old_value text := CASE WHEN op = 'delete' OR (op = 'update' AND w.old = 'full') THEN tocsin.row_source(w, old, whole_old)
                           WHEN op = 'update' AND w.old = 'changed' THEN tocsin.changed_source(w, old, new) END;
    fits text := concat_ws(' + ', CASE WHEN new_value IS NOT NULL THEN 'octet_length(d.new)' END, CASE WHEN old_value IS NOT NULL THEN 'octet_length(d.old)' END);
    names text := 'leaf, stmt, annotation, envelope';
    numbered boolean := place IS NOT NULL AND w.nests;
    outer_list text := concat_ws(', ', tocsin.common_source(w, CASE WHEN numbered THEN 'd.number' END), tocsin.envelope_of(w, op));
    inner_list text := CASE WHEN numbered THEN tocsin.number_source(place) || ' AS number' END;
    field record;
BEGIN
    FOR field IN
        SELECT * FROM (VALUES
            ('subject', ltrim(tocsin.route_source(w, "row"), ' |'), false),
            ('old_subject', CASE WHEN op = 'update' THEN format('nullif(%s, %s)', ltrim(tocsin.route_source(w, old), ' |'), ltrim(tocsin.route_source(w, new), ' |')) END, false),
            ('key', nullif(tocsin.key_source(w, "row", false), 'NULL::text'), false),
            ('key_json', CASE WHEN tocsin.key_kind(w) IS NULL THEN nullif(tocsin.key_source(w, "row", true), '''null''') END, false),
            ('new', new_value, true),
            ('old', old_value, true)) AS v (name, value, bounded)
        WHERE v.value IS NOT NULL AND (v.name NOT LIKE '%subject' OR w.route <> '{}')
    LOOP
        names := names || ', ' || field.name;
        inner_list := concat_ws(', ', inner_list, format(
            CASE WHEN field.bounded AND size <> '' THEN 'CASE WHEN %3$s <= %4$s THEN %1$s END AS %2$s' ELSE '%1$s AS %2$s' END, field.value, field.name, size, most));
        outer_list := concat_ws(', ', outer_list, format(
            CASE WHEN field.bounded AND NOT small THEN 'CASE WHEN %2$s <= %3$s THEN d.%1$s END' ELSE 'd.%1$s' END, field.name, fits, most));
    END LOOP;
    RETURN format($q$
    INSERT INTO tocsin.journal (%1$s)
    SELECT %2$s
    FROM (SELECT %3$s
          FROM %4$s%5$s OFFSET 0) AS d$q$,
        names, outer_list, inner_list, "from",
        coalesce(' WHERE ' || nullif(concat_ws(' AND ',
            CASE WHEN w.condition IS NOT NULL THEN '(' || concat_ws(' OR ', tocsin.condition_source(w, new), tocsin.condition_source(w, old)) || ')' END,
            CASE WHEN op = 'update' AND place IS NULL THEN 'NOT EXISTS (SELECT FROM "tocsin new" OFFSET 1)' END), ''), '')
        || CASE WHEN position('n.i' IN "from") > 0 THEN ' ORDER BY n.i' ELSE '' END);
END $$;

-- The body of the trigger function of one operation, without what frames it.
CREATE OR REPLACE FUNCTION tocsin.statement_source(w tocsin.watched, op text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    every text := 'row';
    pairs text;
BEGIN
    -- A name alone means the whole row only while no column has it.
    WHILE EXISTS (SELECT FROM tocsin.family(w.relation) AS f JOIN pg_attribute ON attrelid = f AND attname = every) LOOP
        every := every || '_';
    END LOOP;
    every := quote_ident(every);
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
                "tocsin:nestloop" text := current_setting('enable_nestloop');
            BEGIN
                PERFORM set_config('enable_nestloop', 'off', true);%s;
                PERFORM set_config('enable_nestloop', "tocsin:nestloop", true);
            END;
        END IF;
    END IF;$q$,
            tocsin.insert_source(w, op, '"tocsin new" AS n, "tocsin old" AS o', 'n', 'n.*', 'o', 'o.*'),
            tocsin.insert_source(w, op, format(
                '(SELECT row_number() OVER () AS i, %1$s AS r FROM "tocsin new" AS %1$s) AS n JOIN (SELECT row_number() OVER () AS i, %1$s AS r FROM "tocsin old" AS %1$s) AS o ON o.i = n.i',
                every), '(n.r)', 'n.r', '(o.r)', 'o.r', 'n.i'));
        -- But a row that leaves its partition, and that a BEFORE INSERT trigger of the other one refuses, is deleted, and is in the
        -- old table alone. Then no place says anything; what is told instead is what became of the table.
        IF (SELECT relkind = 'p' FROM pg_class WHERE oid = w.relation) THEN
            pairs := format($q$IF (SELECT count(*) FROM "tocsin new") <> (SELECT count(*) FROM "tocsin old") THEN %s;%s;
    ELSE%s
    END IF;$q$, tocsin.insert_source(w, 'delete', '"tocsin old" AS o', NULL, NULL, 'o', 'o.*'),
                tocsin.insert_source(w, 'insert', '"tocsin new" AS n', 'n', 'n.*', NULL, NULL), pairs);
        END IF;
        RETURN E'\n    ' || pairs;
    END CASE;
END $$;

-- Of INSERT and DELETE, whose rows are in one table; with the place of each only where the rows of one statement have several numbers.
CREATE OR REPLACE FUNCTION tocsin.one_sided_source(w tocsin.watched, op text, every text) RETURNS text
LANGUAGE sql SET search_path = pg_catalog AS $$
SELECT CASE WHEN w.nests THEN format(E'\n    IF "tocsin:numbers" IS NULL THEN%s\n    ELSE%s\n    END IF;', plain || ';', placed || ';') ELSE plain || ';' END
FROM (SELECT CASE op WHEN 'insert' THEN tocsin.insert_source(w, op, '"tocsin new" AS n', 'n', 'n.*', NULL, NULL)
                     ELSE tocsin.insert_source(w, op, '"tocsin old" AS o', NULL, NULL, 'o', 'o.*') END AS plain,
             CASE op WHEN 'insert' THEN tocsin.insert_source(w, op, format('(SELECT row_number() OVER () AS i, %1$s AS r FROM "tocsin new" AS %1$s) AS n', every),
                                                             '(n.r)', 'n.r', NULL, NULL, 'n.i')
                     ELSE tocsin.insert_source(w, op, format('(SELECT row_number() OVER () AS i, %1$s AS r FROM "tocsin old" AS %1$s) AS o', every),
                                               NULL, NULL, '(o.r)', 'o.r', 'o.i') END AS placed) AS sources
$$;

CREATE OR REPLACE FUNCTION tocsin.truncate_source(w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$
    INSERT INTO tocsin.journal (leaf, stmt, annotation, subject, type, data)
    SELECT %s, %L, %L, %L || CASE WHEN TG_TABLE_SCHEMA = %L AND TG_TABLE_NAME = %L THEN '}'
                 ELSE ',"partition":' || json_build_object('schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME) || '}' END;$q$,
    tocsin.common_source(w), 'change.' || tail, tail, head, schema, name)
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
    INSERT INTO tocsin.journal (leaf, stmt, annotation, subject, type, key, data)
    SELECT %s, %L%s, %L, %s, %L || %s || ',"truncated":true}'
    FROM (SELECT CASE WHEN pg_column_size(t.*)::bigint * 2 <= %s THEN row_to_json(t.*) END AS r FROM %s AS t OFFSET 0) AS j;$q$,
    tocsin.common_source(w), 'change.' || place.tail,
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
) AS place, (SELECT coalesce(array_agg(name::text ORDER BY key_place), '{}') AS names FROM tocsin.shape(w.relation) WHERE key_place IS NOT NULL) AS key
$$;

-- At last, that rows changed, and how many: nothing in this can fail but what fails the server.
CREATE OR REPLACE FUNCTION tocsin.blind_source(w tocsin.watched, op text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format($q$
    INSERT INTO tocsin.journal (leaf, stmt, annotation, subject, type, data)
    SELECT %s, %L, %L, %L FROM %s;$q$,
    tocsin.common_source(w), 'change.' || tail || repeat('.%N', cardinality(w.route)), tail,
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
        RETURN tocsin.numbered_source(w, op, source);
    END IF;
    RETURN format($q$#variable_conflict use_column
BEGIN%s
    RETURN NULL;
END $q$, source);
END $body$;

-- The settings that the text of this table's values depends on, pinned. Each costs every statement up to a microsecond. In JSON, dates are ISO
-- always. (Every function is without jit besides: the plan of a statement of a million rows is kept for the session, and would be compiled anew
-- for each single row after it, in 0.2 s.)
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
    SELECT DISTINCT type FROM tocsin.shape(w.relation)
    WHERE type <> ALL ('{boolean,smallint,integer,bigint,oid,numeric,text,character varying,character,uuid,json,jsonb,time without time zone}')
)
SELECT coalesce(string_agg(setting, ' '), '') FROM every
WHERE (types && ARRAY(SELECT type FROM present) AND (setting NOT LIKE '%datestyle%' OR EXISTS (
           SELECT FROM tocsin.shape(w.relation) AS s WHERE s.type = ANY (types) AND (s.key_place IS NOT NULL OR s.name = ANY (w.route)))))
   -- An array, a range, a type of the application's or a condition may depend on any.
   OR w.risky OR EXISTS (SELECT FROM present WHERE type <> ALL (SELECT unnest(e.types) FROM every AS e))
$$;

-- Whether the function as it stands can be planned: names, types and the condition. NULL, or what is wrong.
CREATE OR REPLACE FUNCTION tocsin.trouble(w tocsin.watched) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    EXECUTE (SELECT format('SELECT %s FROM (SELECT %s) AS n LIMIT 0',
                           concat_ws(', ', CASE WHEN w.condition IS NOT NULL THEN tocsin.condition_source(w, 'n') END, tocsin.key_source(w, 'n', false)),
                           string_agg(format('NULL::%s AS %s', format_type(a.atttypid, a.atttypmod), quote_ident(a.attname)), ', '))
             FROM pg_attribute AS a WHERE a.attrelid = w.relation AND a.attnum > 0 AND NOT a.attisdropped);
    RETURN NULL;
EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception OR feature_not_supported THEN
    RETURN SQLERRM;
END $$;

-- Create the functions and triggers of a watch as its row in tocsin.watched says; those of operations left out are dropped.
-- What stands in the way of capturing everything, for people to read.
DROP FUNCTION IF EXISTS tocsin.build(integer);
CREATE FUNCTION tocsin.build(watch integer) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog AS $build$
DECLARE
    w tocsin.watched;
    op text;
    member oid;
    trouble text;
    troubles text[] := '{}';
BEGIN
    UPDATE tocsin.watched AS u SET nests = tocsin.may_nest(u.relation), risky = tocsin.is_risky(u) WHERE u.id = watch RETURNING u.* INTO STRICT w;
    trouble := tocsin.trouble(w);
    IF trouble IS NOT NULL THEN
        troubles := troubles || format('only keys are told, since the condition can''t be judged: %s', trouble);
    END IF;
    PERFORM tocsin.build_numbering(w);
    FOREACH op IN ARRAY '{insert,update,delete,truncate}'::text[] LOOP
        IF op <> ALL (w.ops) THEN
            EXECUTE format('DROP FUNCTION IF EXISTS tocsin.%s_%s() CASCADE', op, w.id);
            CONTINUE;
        END IF;
        EXECUTE format($q$CREATE OR REPLACE FUNCTION tocsin.%s_%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp SET jit = off %s AS %L$q$, op, w.id,
            tocsin.settings_source(w), tocsin.body(w, op, trouble IS NOT NULL));
        EXECUTE format('REVOKE ALL ON FUNCTION tocsin.%s_%s() FROM PUBLIC', op, w.id);
    END LOOP;
    FOR member IN SELECT * FROM tocsin.family(w.relation) LOOP
        troubles := troubles || tocsin.attach(w, member);
    END LOOP;
    -- What has left the family rings no more.
    -- By the functions' dependants, which have an index: every trigger of the database has none by name.
    FOR member IN SELECT DISTINCT t.tgrelid
                  FROM pg_proc AS p
                  JOIN pg_depend AS d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid AND d.classid = 'pg_trigger'::regclass
                  JOIN pg_trigger AS t ON t.oid = d.objid
                  WHERE p.proname = ANY (ARRAY(SELECT format('%s_%s', o, w.id) FROM unnest('{begin,insert,update,delete,truncate}'::text[]) AS o))
                    AND p.pronamespace = 'tocsin'::regnamespace AND t.tgparentid = 0
                    AND t.tgrelid NOT IN (SELECT f FROM tocsin.family(w.relation) AS f) LOOP
        troubles := troubles || tocsin.detach(w, member);
    END LOOP;
    UPDATE tocsin.watched SET form = tocsin.form(relation) WHERE id = watch;
    RETURN troubles;
END $build$;

-- The triggers of one table, those that are missing alone: to create one waits for the table's writers.
CREATE OR REPLACE FUNCTION tocsin.attach(w tocsin.watched, member regclass) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    op text;
    there text[] := ARRAY(SELECT tgname || tgtype FROM pg_trigger WHERE tgrelid = member AND NOT tgisinternal);
BEGIN
    IF w.nests THEN
        PERFORM tocsin.attach_numbering(w, member, there);
    END IF;
    -- MERGE into a partitioned table puts the row that it inserted last into the new rows of an UPDATE, instead of the updated one, unless a
    -- partition has a trigger BEFORE INSERT. This one never fires.
    IF member = w.relation AND tocsin.is_partitioned(member) AND 'update' = ANY (w.ops) AND format('tocsin_%s_merge7', w.id) <> ALL (there) THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER tocsin_%1$s_merge BEFORE INSERT ON %2$s FOR EACH ROW WHEN (false) EXECUTE FUNCTION tocsin.begin_%1$s()', w.id, member);
    END IF;
    FOREACH op IN ARRAY w.ops LOOP
        IF format('tocsin_%s_%s%s', w.id, op, CASE op WHEN 'insert' THEN 4 WHEN 'delete' THEN 8 WHEN 'update' THEN 16 ELSE 32 END) <> ALL (there) THEN
            EXECUTE format('CREATE OR REPLACE TRIGGER tocsin_%1$s_%2$s AFTER %2$s ON %3$s %4$s FOR EACH STATEMENT EXECUTE FUNCTION tocsin.%2$s_%1$s()',
                w.id, op, member,
                CASE op WHEN 'insert' THEN 'REFERENCING NEW TABLE AS "tocsin new"'
                        WHEN 'delete' THEN 'REFERENCING OLD TABLE AS "tocsin old"'
                        WHEN 'update' THEN 'REFERENCING NEW TABLE AS "tocsin new" OLD TABLE AS "tocsin old"' ELSE '' END);
        END IF;
    END LOOP;
    RETURN '{}';
EXCEPTION WHEN insufficient_privilege THEN
    IF member = w.relation THEN
        RAISE;
    END IF;
    RETURN ARRAY[format('what is written straight into %s is not told: GRANT TRIGGER ON %s TO %s, then tocsin install', member, member, quote_ident(current_user))];
END $$;

CREATE OR REPLACE FUNCTION tocsin.detach(w tocsin.watched, member regclass) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = member AND tgparentid = 0 AND tgname ~ format('^tocsin_%s_', w.id) LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', name, member);
    END LOOP;
    RETURN '{}';
EXCEPTION WHEN insufficient_privilege THEN
    RETURN ARRAY[format('%s left and still rings as before: its owner may drop its triggers tocsin_%s_*', member, w.id)];
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
    -- In the order in which DDL takes them: the table, then its row in tocsin.watched. It keeps no writer waiting.
    IF EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'tocsin_ddl') THEN
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', watch.relation);
    END IF;
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
    number integer := (SELECT w.id FROM tocsin.watched AS w WHERE w.relation = unwatch.relation);
BEGIN
    PERFORM tocsin.forget(number) WHERE number IS NOT NULL;
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
