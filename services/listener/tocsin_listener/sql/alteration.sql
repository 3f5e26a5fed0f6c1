-- What becomes of a watch when its table changes its shape: the functions are written anew in the same transaction as the change,
-- and the change is announced on schema.<schema>.<table>. Event triggers call this; where the role that installs may not create
-- them, the listener calls tocsin.refresh_all every few seconds, and the capture functions are guarded meanwhile (see capture.sql).

-- What a watch's functions and triggers depend on; NULL where the table is gone.
CREATE OR REPLACE FUNCTION tocsin.form(relation regclass) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT jsonb_build_object(
    'schema', n.nspname, 'table', c.relname,
    'columns', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('number', a.attnum, 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod))
                                  || CASE WHEN a.attgenerated = 'v' THEN jsonb_build_object('expression', pg_get_expr(d.adbin, d.adrelid)) ELSE '{}' END
                                  ORDER BY a.attnum), '[]')
        FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    'key', (SELECT coalesce(jsonb_agg(s.name ORDER BY s.key_place), '[]') FROM tocsin.shape(c.oid) AS s WHERE s.key_place IS NOT NULL),
    'members', (
        -- An heir's own columns matter only where they hide the alias of a whole row.
        SELECT coalesce(jsonb_agg(jsonb_build_object('oid', f::oid, 'partition', m.relispartition, 'name', f::text,
                   'rows', (SELECT count(*) FROM pg_attribute WHERE attrelid = f AND attname ~ '^whole_*$' AND NOT attisdropped)) ORDER BY f::oid), '[]')
        FROM tocsin.family(c.oid) AS f JOIN pg_class AS m ON m.oid = f WHERE f <> c.oid))
    || CASE WHEN tocsin.may_nest(c.oid) THEN '{"nests": true}'::jsonb ELSE '{}' END
    || CASE WHEN EXISTS (SELECT tocsin.far_below(c.oid)) THEN '{"far": true}'::jsonb ELSE '{}' END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation
$$;

-- The difference of two forms as a list of what changed, such as {"what": "column added", "column": "a", "type": "text"}.
CREATE OR REPLACE FUNCTION tocsin.form_changes(old jsonb, new jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH o AS (SELECT * FROM jsonb_to_recordset(old -> 'columns') AS c (number int, name text, type text, expression text)),
     n AS (SELECT * FROM jsonb_to_recordset(new -> 'columns') AS c (number int, name text, type text, expression text)),
     p AS (SELECT * FROM jsonb_to_recordset(old -> 'members') AS m (oid oid, partition boolean, name text)),
     q AS (SELECT * FROM jsonb_to_recordset(new -> 'members') AS m (oid oid, partition boolean, name text))
SELECT coalesce(jsonb_agg(change ORDER BY place, number), '[]') FROM (
    SELECT 1 AS place, 0 AS number, jsonb_build_object('what', 'schema changed', 'from', old ->> 'schema', 'to', new ->> 'schema') AS change
    WHERE old ->> 'schema' <> new ->> 'schema'
    UNION ALL SELECT 2, 0, jsonb_build_object('what', 'table renamed', 'from', old ->> 'table', 'to', new ->> 'table') WHERE old ->> 'table' <> new ->> 'table'
    UNION ALL SELECT 3, number, jsonb_build_object('what', 'column dropped', 'column', o.name, 'type', o.type) FROM o LEFT JOIN n USING (number) WHERE n.name IS NULL
    UNION ALL SELECT 4, number, jsonb_build_object('what', 'column added', 'column', n.name, 'type', n.type) FROM n LEFT JOIN o USING (number) WHERE o.name IS NULL
    UNION ALL SELECT 5, number, jsonb_build_object('what', 'column renamed', 'from', o.name, 'to', n.name) FROM o JOIN n USING (number) WHERE o.name <> n.name
    UNION ALL SELECT 6, number, jsonb_build_object('what', 'column retyped', 'column', n.name, 'from', o.type, 'to', n.type) FROM o JOIN n USING (number) WHERE o.type <> n.type
    UNION ALL SELECT 7, number, jsonb_build_object('what', 'expression changed', 'column', n.name) FROM o JOIN n USING (number)
              WHERE o.type = n.type AND o.expression IS DISTINCT FROM n.expression
    UNION ALL SELECT 8, 0, jsonb_build_object('what', 'key changed', 'from', old -> 'key', 'to', new -> 'key')
              -- A renamed column is told above.
              WHERE (SELECT jsonb_agg(coalesce(n.name, k.name) ORDER BY k.place)
                     FROM jsonb_array_elements_text(old -> 'key') WITH ORDINALITY AS k (name, place) LEFT JOIN o ON o.name = k.name LEFT JOIN n USING (number))
                    IS DISTINCT FROM nullif(new -> 'key', '[]')
    UNION ALL SELECT 9, 0, jsonb_build_object('what', CASE WHEN p.partition THEN 'partition' ELSE 'child' END || ' left', 'table', p.name)
              FROM p LEFT JOIN q USING (oid) WHERE q.name IS NULL
    UNION ALL SELECT 10, 0, jsonb_build_object('what', CASE WHEN q.partition THEN 'partition' ELSE 'child' END || ' joined', 'table', q.name)
              FROM q LEFT JOIN p USING (oid) WHERE p.name IS NULL
) AS changes
$$;

-- Bring a watch up to its table's present form, and announce what changed; whether anything had. The caller may run DDL that must
-- not fail: what can't be captured as before is captured as keys alone (see tocsin.body), and the event says so.
CREATE OR REPLACE FUNCTION tocsin.refresh(watch integer) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    w tocsin.watched;
    now jsonb;
    changes jsonb;
    troubles text[];
BEGIN
    SELECT * INTO w FROM tocsin.watched WHERE id = watch FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    now := tocsin.form(w.relation);
    IF now IS NOT DISTINCT FROM w.form THEN
        RETURN false;
    END IF;
    IF now IS NULL THEN
        PERFORM tocsin.forget(watch);
        PERFORM tocsin.announce(w.form, w.form, '[{"what": "table dropped"}]', NULL);
        RETURN true;
    END IF;
    changes := tocsin.form_changes(w.form, now);
    UPDATE tocsin.watched AS u SET route = tocsin.renamed(u.route, changes), columns = tocsin.renamed(u.columns, changes) WHERE id = watch;
    troubles := tocsin.build(watch);
    IF changes <> '[]' OR cardinality(troubles) > 0 THEN
        PERFORM tocsin.announce(w.form, now, changes, troubles);
    END IF;
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION tocsin.renamed(names text[], changes jsonb) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT CASE WHEN names IS NULL THEN NULL ELSE ARRAY(
    SELECT coalesce(c.change ->> 'to', n.name)
    FROM unnest(names) WITH ORDINALITY AS n (name, place)
    LEFT JOIN jsonb_array_elements(changes) AS c (change) ON c.change ->> 'what' = 'column renamed' AND c.change ->> 'from' = n.name
    ORDER BY n.place) END
$$;

CREATE OR REPLACE FUNCTION tocsin.announce(old jsonb, new jsonb, changes jsonb, troubles text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog AS $$
INSERT INTO tocsin.journal (stmt, subject, old_subject, type, annotation, data)
SELECT nextval('tocsin.seq'), now.subject, nullif(former.subject, now.subject), now.type,
       left(nullif(current_setting('tocsin.annotation', true), ''), 1024),
       CASE WHEN octet_length(d.data) <= i.max_event THEN d.data ELSE '{"truncated":true}' END
FROM tocsin.identity AS i,
LATERAL (SELECT format('schema.%s.%s', tocsin.token(new ->> 'schema'), tocsin.token(new ->> 'table')) AS subject,
                format('%s.%s.schema', tocsin.token(new ->> 'schema'), tocsin.token(new ->> 'table')) AS type) AS now,
LATERAL (SELECT format('schema.%s.%s', tocsin.token(old ->> 'schema'), tocsin.token(old ->> 'table')) AS subject) AS former,
LATERAL (SELECT (jsonb_build_object(
    'schema', new -> 'schema', 'table', new -> 'table', 'key', new -> 'key', 'changes', changes,
    'columns', (SELECT jsonb_agg(jsonb_build_object('name', c -> 'name', 'type', c -> 'type')) FROM jsonb_array_elements(new -> 'columns') AS c))
    || CASE WHEN cardinality(troubles) > 0 THEN jsonb_build_object('troubles', to_jsonb(troubles)) ELSE '{}' END)::text AS data) AS d;
SELECT tocsin.ring()
$$;

-- Drop a watch with its functions, and so its triggers.
CREATE OR REPLACE FUNCTION tocsin.forget(watch integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    name text;
BEGIN
    DELETE FROM tocsin.watched WHERE id = watch;
    FOREACH name IN ARRAY '{begin,insert,update,delete,truncate}'::text[] LOOP
        -- The triggers depend on the functions, and the functions' owner need not own the table.
        EXECUTE format('DROP FUNCTION IF EXISTS tocsin.%s_%s() CASCADE', name, watch);
    END LOOP;
    EXECUTE format('DROP FUNCTION IF EXISTS tocsin.mark_%s(text) CASCADE', watch);
END $$;

-- The watches that a command on these relations may concern.
CREATE OR REPLACE FUNCTION tocsin.concerned(relations oid[]) RETURNS SETOF integer
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH RECURSIVE up (oid) AS (
    SELECT unnest(relations)
    UNION
    SELECT i.inhparent FROM up JOIN pg_inherits AS i ON i.inhrelid = up.oid
)
SELECT w.id FROM tocsin.watched AS w
WHERE w.relation::oid IN (SELECT oid FROM up) OR EXISTS (SELECT FROM jsonb_array_elements(w.form -> 'members') AS m WHERE (m ->> 'oid')::oid = ANY (relations))
ORDER BY w.id
$$;

CREATE OR REPLACE FUNCTION tocsin.on_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET client_min_messages = warning AS $$
DECLARE
    watch integer;
    relations oid[];
BEGIN
    IF TG_EVENT = 'sql_drop' THEN
        relations := ARRAY(SELECT objid FROM pg_event_trigger_dropped_objects() WHERE classid = 'pg_class'::regclass);
    ELSIF TG_TAG = 'CREATE TRIGGER' THEN
        relations := ARRAY(SELECT t.tgrelid FROM pg_event_trigger_ddl_commands() AS d, LATERAL (SELECT * FROM pg_trigger WHERE oid = d.objid OFFSET 0) AS t,
                           LATERAL (SELECT * FROM pg_proc WHERE oid = t.tgfoid OFFSET 0) AS p
                           WHERE d.classid = 'pg_trigger'::regclass AND p.pronamespace <> 'tocsin'::regnamespace);
    ELSIF TG_TAG IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE FOREIGN TABLE') THEN
        relations := ARRAY(SELECT objid FROM pg_event_trigger_ddl_commands() WHERE classid = 'pg_class'::regclass);
        -- A foreign key gives the table that it refers to triggers.
        relations := relations || ARRAY(SELECT confrelid FROM pg_constraint WHERE conrelid = ANY (relations) AND contype = 'f');
    END IF;
    IF relations = '{}' THEN
        RETURN;
    END IF;
    -- A type or a schema concerns any table.
    FOR watch IN SELECT * FROM tocsin.concerned(relations) UNION SELECT id FROM tocsin.watched WHERE relations IS NULL ORDER BY 1 LOOP
        PERFORM tocsin.refresh(watch);
    END LOOP;
END $$;

-- For the listener, where there is no event trigger: how many watches had to change. A table that others hold is left for later.
CREATE OR REPLACE FUNCTION tocsin.refresh_all() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET lock_timeout = '200ms' SET client_min_messages = warning AS $$
DECLARE
    watch integer;
    refreshed integer := 0;
BEGIN
    FOR watch IN SELECT w.id FROM tocsin.watched AS w WHERE tocsin.form(w.relation) IS DISTINCT FROM w.form ORDER BY 1 LOOP
        BEGIN
            refreshed := refreshed + tocsin.refresh(watch)::integer;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    RETURN refreshed;
END $$;

-- Only a superuser, or who a managed service lets, may create event triggers.
DO $$
BEGIN
    DROP EVENT TRIGGER IF EXISTS tocsin_ddl;
    DROP EVENT TRIGGER IF EXISTS tocsin_drop;
    CREATE EVENT TRIGGER tocsin_ddl ON ddl_command_end WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE FOREIGN TABLE', 'CREATE TRIGGER', 'ALTER SCHEMA', 'ALTER TYPE')
        EXECUTE FUNCTION tocsin.on_ddl();
    CREATE EVENT TRIGGER tocsin_drop ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP FOREIGN TABLE', 'DROP SCHEMA', 'DROP TYPE', 'DROP DOMAIN', 'DROP OWNED', 'DROP EXTENSION') EXECUTE FUNCTION tocsin.on_ddl();
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END $$;
