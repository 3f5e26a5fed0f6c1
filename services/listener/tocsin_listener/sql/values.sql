-- A row's values in the capture triggers' source code, which is written for one table. Names come from the catalog and are quoted here; nothing
-- that a user typed is pasted in but the condition of --when. Everything else is qualified, operators too, and nothing is used that looks an
-- operator up by itself (IN, nullif, IS DISTINCT FROM): the functions run as their owner, most of them in the writer's search_path, since a
-- setting of their own costs each statement a microsecond. Only what is risky or numbered has one (see tocsin.config_source).

-- A column as the generator needs it: its name plain and quoted, its type below domains, the bytes that its text can't exceed (NULL:
-- no such limit), its place in the table and in the key, and the expression of a column that is virtual.
DO $$
BEGIN
    IF to_regtype('tocsin.shape_column') IS NULL THEN
        CREATE TYPE tocsin.shape_column AS (name name, ident text, type text, largest integer, place integer, key_place integer, expression text);
    END IF;
END $$;
-- The table's, when its functions were written; asked once, as `nests` is.
ALTER TABLE tocsin.watched ADD COLUMN IF NOT EXISTS shape tocsin.shape_column[];

-- A table's columns, in their order. Here and below, LATERAL with OFFSET 0 and = ANY (ARRAY(…)) find catalog rows by their index: a plain join
-- is planned as a hash of the whole catalog, which grows with what is watched.
CREATE OR REPLACE FUNCTION tocsin.shape(relation regclass) RETURNS SETOF tocsin.shape_column
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH RECURSIVE base (attnum, type, modifier) AS (
    SELECT attnum, atttypid, atttypmod FROM pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT b.attnum, t.typbasetype, greatest(b.modifier, t.typtypmod) FROM base AS b, LATERAL (SELECT * FROM pg_type WHERE oid = b.type OFFSET 0) AS t WHERE t.typtype = 'd'
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
JOIN LATERAL (SELECT * FROM pg_type WHERE oid = b.type OFFSET 0) AS t ON t.typtype <> 'd'
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
SELECT c.oid::regclass FROM pg_class AS c WHERE c.oid = ANY (ARRAY(SELECT oid FROM tree)) AND c.relkind IN ('r', 'p') ORDER BY c.oid <> relation, c.oid
$$;

-- The foreign tables below a table. Where a trigger would see the rows, PostgreSQL refuses to write to them through it.
CREATE OR REPLACE FUNCTION tocsin.far_below(relation regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH RECURSIVE tree (oid) AS (
    SELECT relation::oid
    UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid
)
SELECT oid::regclass FROM pg_class WHERE oid = ANY (ARRAY(SELECT oid FROM tree)) AND relkind = 'f' ORDER BY oid
$$;

-- What a table is a partition or an heir of, the last above it; NULL where it is neither. What is written through that is not the table's statement.
CREATE OR REPLACE FUNCTION tocsin.root_of(relation regclass) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH RECURSIVE up (oid, steps) AS (
    SELECT inhparent, 1 FROM pg_inherits WHERE inhrelid = relation
    UNION
    SELECT i.inhparent, steps + 1 FROM up JOIN pg_inherits AS i ON i.inhrelid = up.oid
)
SELECT oid::regclass FROM up ORDER BY steps DESC, oid LIMIT 1
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
    WHEN w.exact_numbers AND c.type IN ('bigint', 'numeric') THEN '::pg_catalog.text'
    WHEN w.exact_numbers AND c.type IN ('bigint[]', 'numeric[]') THEN '::pg_catalog.text[]'
    ELSE '' END
$$;

-- JSON text of a whole row, of the columns that the watch lets through.
CREATE OR REPLACE FUNCTION tocsin.row_source(w tocsin.watched, "row" text, whole text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    -- The short form can't leave anything out, and an heir's own columns would come with it.
    IF w.columns IS NULL AND NOT w.exact_numbers
       AND NOT EXISTS (SELECT FROM unnest(w.shape) AS s WHERE s.expression IS NOT NULL)
       AND NOT EXISTS (SELECT FROM pg_inherits AS i JOIN pg_class AS p ON p.oid = i.inhparent WHERE p.oid = w.relation AND p.relkind = 'r') THEN
        RETURN format('pg_catalog.row_to_json(%s)::pg_catalog.text', whole);
    END IF;
    RETURN (SELECT format('(SELECT pg_catalog.row_to_json(x.*)::pg_catalog.text FROM (SELECT %s) AS x)',
                          string_agg(format('%s AS %s', tocsin.json_source(s, "row", w), s.ident), ', '))
            FROM unnest(w.shape) AS s WHERE w.columns IS NULL OR s.name = ANY (w.columns));
END $$;

CREATE OR REPLACE FUNCTION tocsin.key_source(w tocsin.watched, "row" text, as_json boolean) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE
    WHEN count(*) = 0 THEN NULL
    WHEN as_json THEN format($q$pg_catalog.concat('{', %s, '}')$q$, string_agg(
        format($q$%L, coalesce(pg_catalog.to_json(%s)::pg_catalog.text, 'null')$q$, CASE WHEN key_place > 1 THEN ',' ELSE '' END || to_json(s.name::text) || ':', tocsin.json_source(s, "row", w)),
        ', ' ORDER BY key_place))
    WHEN count(*) = 1 THEN min(format('%s::pg_catalog.text', tocsin.value_source(s, "row", w.relation)))
    ELSE format($q$pg_catalog.concat(%s)$q$, string_agg(tocsin.token_source(tocsin.value_source(s, "row", w.relation)), $q$, ',', $q$ ORDER BY key_place))
END
FROM unnest(w.shape) AS s WHERE s.key_place IS NOT NULL
$$;

-- Plain values, which are most, are recognised without a call.
CREATE OR REPLACE FUNCTION tocsin.token_source(value text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT format($q$CASE WHEN (%1$s)::pg_catalog.text COLLATE pg_catalog."C" OPERATOR(pg_catalog.~) '^[A-Za-z0-9_-]{1,128}$'
        THEN (%1$s)::pg_catalog.text ELSE tocsin.token((%1$s)::pg_catalog.text) END$q$, value)
$$;

-- The route's tokens, each after a dot; NULL where nothing is routed.
CREATE OR REPLACE FUNCTION tocsin.route_source(w tocsin.watched, "row" text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format('pg_catalog.concat(%s)', string_agg(CASE WHEN s.name IS NULL THEN $q$'.%N'$q$ -- A column that is gone: the subject keeps its tokens.
                  ELSE format($q$'.', %s$q$, tocsin.token_source(tocsin.value_source(s, "row", w.relation))) END, ', ' ORDER BY r.place))
FROM unnest(w.route) WITH ORDINALITY AS r (name, place) LEFT JOIN unnest(w.shape) AS s ON s.name = r.name
HAVING count(*) > 0
$$;

CREATE OR REPLACE FUNCTION tocsin.condition_source(w tocsin.watched, "row" text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format('(SELECT (%s) FROM (SELECT %s) AS %I)', w.condition,
              string_agg(format('%s AS %s', tocsin.value_source(s, "row", w.relation), s.ident), ', '), (SELECT relname FROM pg_class WHERE oid = w.relation))
FROM unnest(w.shape) AS s WHERE "row" IS NOT NULL
$$;

-- Whether a row's values are so many bytes, measured without building their text, that nothing is built; NULL where they can't be.
-- Compressed values count twice: their text, at most 255 times as long and six times that in JSON, stays below PostgreSQL's 1 GB.
CREATE OR REPLACE FUNCTION tocsin.oversized_source(w tocsin.watched, "rows" text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE count(*) WHEN 0 THEN NULL WHEN 1 THEN min(size) ELSE string_agg(format('coalesce(%s, 0)', size), ' OPERATOR(pg_catalog.+) ') END
       || ' OPERATOR(pg_catalog.>) ' || (SELECT max_event FROM tocsin.identity)
FROM (SELECT format(CASE
    WHEN type IN ('text', 'character varying', 'character') THEN 'pg_catalog.octet_length(%1$s)::pg_catalog.int8'
    WHEN type = 'bytea' THEN 'pg_catalog.octet_length(%1$s)::pg_catalog.int8 OPERATOR(pg_catalog.*) 2'
    ELSE 'pg_catalog.pg_column_size(%1$s)::pg_catalog.int8 OPERATOR(pg_catalog.*) CASE WHEN pg_catalog.pg_column_compression(%1$s) IS NULL THEN 1 ELSE 2 END'
    END, r || '.' || ident) AS size
FROM unnest("rows") AS r, unnest(w.shape)
WHERE expression IS NULL AND largest IS NULL AND (w.columns IS NULL OR name = ANY (w.columns))) AS sizes
$$;

-- JSON of the old values of the columns that an update changed. Equal means bit for bit, where = could call other things equal. The executor
-- prepares each call anew in every statement, which costs more than to run it for one row: so there are few.
CREATE OR REPLACE FUNCTION tocsin.changed_source(w tocsin.watched, old text, new text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
-- A call has at most 100 arguments, an array any number.
SELECT format(CASE WHEN count(*) > 90 THEN $q$pg_catalog.concat('{', pg_catalog.concat_ws(',', VARIADIC ARRAY[%s]), '}')$q$
                   ELSE $q$pg_catalog.concat('{', pg_catalog.concat_ws(',', %s), '}')$q$ END, coalesce(string_agg(format(
    'CASE WHEN %s THEN pg_catalog.concat(%L, coalesce(pg_catalog.to_json(%s), %L)) END',
    tocsin.differs_source(s, w.relation, tocsin.value_source(s, old, w.relation), tocsin.value_source(s, new, w.relation)),
    to_json(s.name::text) || ':', tocsin.json_source(s, old, w), 'null'), ', ' ORDER BY s.place), 'NULL'))
FROM unnest(w.shape) AS s
WHERE w.columns IS NULL OR name = ANY (w.columns)
$$;

-- Whether two values of a column differ in any bit. (x = y OR both NULL) IS NOT TRUE is x IS DISTINCT FROM y.
CREATE OR REPLACE FUNCTION tocsin.differs_source(c tocsin.shape_column, relation regclass, one text, other text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format(CASE
    WHEN c.type IN ('smallint', 'integer', 'bigint', 'boolean', 'uuid', 'date', 'timestamp without time zone', 'timestamp with time zone', 'oid')
         OR (c.type IN ('text', 'character varying') AND tocsin.is_bytewise(relation, c.name))
        THEN '(%1$s OPERATOR(pg_catalog.=) %2$s OR (%1$s IS NULL AND %2$s IS NULL)) IS NOT TRUE'
    WHEN c.type = 'numeric'
        THEN '(pg_catalog.numeric_send(%1$s) OPERATOR(pg_catalog.=) pg_catalog.numeric_send(%2$s) OR (%1$s IS NULL AND %2$s IS NULL)) IS NOT TRUE'
    ELSE 'pg_catalog.record_image_ne(ROW(%1$s), ROW(%2$s))' END, one, other)
$$;

-- Whether two values of a text column are equal only if they are the same bytes.
CREATE OR REPLACE FUNCTION tocsin.is_bytewise(relation regclass, name name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT coalesce(bool_and(c.collisdeterministic), false)
FROM pg_attribute AS a JOIN pg_collation AS c ON c.oid = a.attcollation WHERE a.attrelid = relation AND a.attname = is_bytewise.name
$$;

