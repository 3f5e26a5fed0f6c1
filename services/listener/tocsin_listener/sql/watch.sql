-- Which tables are watched, and the triggers on them and on what belongs to them.

-- Whether the function as it stands can be planned: names, types and the condition. NULL, or what is wrong.
CREATE OR REPLACE FUNCTION tocsin.trouble(w tocsin.watched) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    EXECUTE (SELECT format('SELECT %s FROM (SELECT %s) AS n LIMIT 0',
                           concat_ws(', ', CASE WHEN w.condition IS NOT NULL THEN tocsin.condition_source(w, 'n') END, coalesce(tocsin.key_source(w, 'n', false), 'NULL')),
                           string_agg(format('NULL::%s AS %s', format_type(a.atttypid, a.atttypmod), quote_ident(a.attname)), ', '))
             FROM pg_attribute AS a WHERE a.attrelid = w.relation AND a.attnum > 0 AND NOT a.attisdropped);
    RETURN NULL;
EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception OR feature_not_supported THEN
    RETURN SQLERRM;
END $$;

-- The functions of a watch, as its row in tocsin.watched says; what stands in the way of capturing everything, for people to read. No writer waits
-- for it. Its many small queries are not planned again for each table.
CREATE OR REPLACE FUNCTION tocsin.write_functions(watch integer) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog SET plan_cache_mode = force_generic_plan AS $build$
DECLARE
    w tocsin.watched;
    op text;
    trouble text;
BEGIN
    UPDATE tocsin.watched AS u
    SET nests = tocsin.may_nest(u.relation), risky = tocsin.is_risky(u), shape = ARRAY(SELECT tocsin.shape(u.relation)), form = tocsin.form(u.relation)
    WHERE u.id = watch RETURNING u.* INTO STRICT w;
    trouble := tocsin.trouble(w);
    PERFORM tocsin.build_numbering(w);
    FOREACH op IN ARRAY w.ops LOOP
        EXECUTE format($q$CREATE OR REPLACE FUNCTION tocsin.%s_%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            %s AS %L$q$, op, w.id, tocsin.config_source(w, op, trouble IS NOT NULL), tocsin.body(w, op, trouble IS NOT NULL));
        EXECUTE format('REVOKE ALL ON FUNCTION tocsin.%s_%s() FROM PUBLIC', op, w.id);
    END LOOP;
    RETURN ARRAY(SELECT format('only keys are told, since the condition can''t be judged: %s', trouble) WHERE trouble IS NOT NULL);
END $build$;

-- The triggers of a watch whose functions are written; those of operations left out go. Writers of a table that gets or loses one wait for the
-- end of the transaction.
CREATE OR REPLACE FUNCTION tocsin.set_triggers(watch integer) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    w tocsin.watched := (SELECT u FROM tocsin.watched AS u WHERE u.id = watch);
    op text;
    member oid;
    troubles text[] := '{}';
BEGIN
    FOR op IN SELECT unnest('{insert,update,delete,truncate}'::text[]) EXCEPT SELECT unnest(w.ops) LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS tocsin.%s_%s() CASCADE', op, w.id);
    END LOOP;
    FOR member IN SELECT * FROM tocsin.family(w.relation) LOOP
        troubles := troubles || tocsin.attach(w, member);
    END LOOP;
    -- What has left the family rings no more.
    -- By the functions' dependants, which have an index: every trigger of the database has none by name.
    FOR member IN SELECT DISTINCT t.tgrelid
                  FROM pg_proc AS p,
                  LATERAL (SELECT * FROM pg_depend WHERE refclassid = 'pg_proc'::regclass AND refobjid = p.oid AND classid = 'pg_trigger'::regclass OFFSET 0) AS d,
                  LATERAL (SELECT * FROM pg_trigger WHERE oid = d.objid OFFSET 0) AS t
                  WHERE p.proname = ANY (ARRAY(SELECT format('%s_%s', o, w.id) FROM unnest('{begin,insert,update,delete,truncate}'::text[]) AS o))
                    AND p.pronamespace = 'tocsin'::regnamespace AND t.tgparentid = 0
                    AND t.tgrelid NOT IN (SELECT f FROM tocsin.family(w.relation) AS f) LOOP
        troubles := troubles || tocsin.detach(w, member);
    END LOOP;
    RETURN troubles;
END $$;

DROP FUNCTION IF EXISTS tocsin.build(integer);
CREATE FUNCTION tocsin.build(watch integer) RETURNS text[]
LANGUAGE sql SET search_path = pg_catalog AS $$
SELECT tocsin.write_functions(watch) || tocsin.set_triggers(watch)
$$;

-- The triggers of one table, those that are missing alone: to create one waits for the table's writers.
CREATE OR REPLACE FUNCTION tocsin.attach(w tocsin.watched, member regclass) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    op text;
    there text[] := ARRAY(SELECT tgname || tgtype FROM pg_trigger WHERE tgrelid = member AND NOT tgisinternal);
BEGIN
    IF EXISTS (SELECT tocsin.far_below(member)) THEN
        RETURN tocsin.detach(w, member) || format('what is written through %s is not told while a foreign table is below it', member);
    END IF;
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

-- Watch a table, or change how it is watched, but for its triggers: its number in tocsin.watched.
CREATE OR REPLACE FUNCTION tocsin.describe_watch(
    relation regclass, ops text[], columns text[], route text[], old text, condition text, exact_numbers boolean
) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
#variable_conflict use_column
DECLARE
    number integer;
BEGIN
    -- In the order in which DDL takes them: the table, then its row in tocsin.watched. It keeps no writer waiting.
    IF EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'tocsin_ddl') THEN
        EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE', describe_watch.relation);
    END IF;
    IF describe_watch.condition IS NOT NULL THEN
        -- Wrong names and types fail here, not in a writer's transaction.
        EXECUTE format('SELECT FROM %s WHERE (%s) LIMIT 0', describe_watch.relation, describe_watch.condition);
    END IF;
    INSERT INTO tocsin.watched AS w (relation, ops, columns, route, old, condition, exact_numbers)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (relation) DO UPDATE SET ops = excluded.ops, columns = excluded.columns, route = excluded.route, old = excluded.old,
        condition = excluded.condition, exact_numbers = excluded.exact_numbers
    RETURNING w.id INTO number;
    PERFORM tocsin.write_functions(number);
    RETURN number;
END $$;

-- Watch a table, or change how it is watched; its number in tocsin.watched. Needs the privilege TRIGGER on the table.
CREATE OR REPLACE FUNCTION tocsin.watch(
    relation regclass, ops text[] DEFAULT '{insert,update,delete,truncate}', columns text[] DEFAULT NULL, route text[] DEFAULT '{}',
    old text DEFAULT 'changed', condition text DEFAULT NULL, exact_numbers boolean DEFAULT false
) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    number integer := tocsin.describe_watch(relation, ops, columns, route, old, condition, exact_numbers);
BEGIN
    PERFORM tocsin.set_triggers(number);
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
