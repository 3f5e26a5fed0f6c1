-- The order of the events of one transaction where statements run inside statements. A statement is captured at its end, and so after those
-- that its triggers ran, though its own rows may have changed before. There each row is marked right after it was changed: by an AFTER ROW
-- trigger whose WHEN calls mark, which is judged at that moment, and never lets the trigger fire. The i-th mark is the i-th row of the
-- transition tables. Marks are kept in a setting of the transaction, so that they vanish with a rolled back savepoint, as runs: number,
-- depth of triggers and count of rows, the last run first. A run ends when something is captured, or a trigger's statement begins. A run of
-- no rows is the begin of a statement, where the marks alone don't say whose they are (is_framed).

-- Whether a statement on the table may run others on it that are captured before it and yet came after its rows, or some of them: by a trigger
-- AFTER it or its rows, by one BEFORE a row that is not the first, or by a foreign key that cascades to it or from it.
CREATE OR REPLACE FUNCTION tocsin.may_nest(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'tocsin_ddl' AND evtenabled <> 'D')
    OR EXISTS (
        SELECT FROM pg_trigger AS t, LATERAL (SELECT * FROM pg_proc WHERE oid = t.tgfoid OFFSET 0) AS p
        -- Neither INSTEAD OF (64) nor BEFORE (2) a statement (not 1).
        WHERE t.tgrelid = ANY (ARRAY(SELECT tocsin.family(relation)::oid)) AND p.pronamespace <> 'tocsin'::regnamespace AND t.tgtype & 64 = 0 AND t.tgtype & 3 <> 2
          AND p.proname !~ '^(RI_FKey_(check|noaction|restrict)_|unique_key_recheck$)'
          -- These write nothing but the row.
          AND NOT (t.tgtype & 2 = 2 AND p.prolang IN (12, 13)
                   AND p.proname IN ('moddatetime', 'autoinc', 'insert_username', 'suppress_redundant_updates_trigger',
                                     'tsvector_update_trigger_byid', 'tsvector_update_trigger_bycolumn')))
    OR tocsin.is_cascaded_to(relation)
$$;

-- Whether a foreign key's action may write the table. Such statements belong to the one that caused them, and are captured at its end.
CREATE OR REPLACE FUNCTION tocsin.is_cascaded_to(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = ANY (ARRAY(SELECT tocsin.family(relation)::oid)) AND contype = 'f'
               AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd')))
$$;

CREATE OR REPLACE FUNCTION tocsin.is_partitioned(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT relkind = 'p' FROM pg_class WHERE oid = relation
$$;

-- Whether a trigger BEFORE the statement marks its begin: a TRUNCATE has no rows, rows that an UPDATE moves to another partition get marks of a
-- DELETE and an INSERT, and what a foreign key's action writes has the depth of another statement.
CREATE OR REPLACE FUNCTION tocsin.is_framed(w tocsin.watched, op text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT op = 'truncate' OR tocsin.is_partitioned(w.relation) OR (op IN ('update', 'delete') AND tocsin.is_cascaded_to(w.relation))
$$;

-- Each watch has a copy of this function, so that its triggers go with it, and one that does nothing where nobody reads the marks any more.
-- It runs as the writer, and each name in it is qualified: so it costs a third of what SECURITY DEFINER with a search_path does.
CREATE OR REPLACE FUNCTION tocsin.mark(setting text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    marks pg_catalog.text := coalesce(pg_catalog.current_setting(setting, true), '');
    number pg_catalog.text;
    depth pg_catalog.text;
    counted pg_catalog.text;
BEGIN
    -- A writer may set the setting to anything.
    IF marks OPERATOR(pg_catalog.~) '^[0-9]{1,18} [0-9]{1,9} [0-9]{1,9}( |$)' THEN
        number := pg_catalog.split_part(marks, ' ', 1);
        depth := pg_catalog.split_part(marks, ' ', 2);
        counted := pg_catalog.split_part(marks, ' ', 3);
        -- Beyond the bound the order inside this statement is no longer exact: each run would cost as much as all before it.
        IF counted OPERATOR(pg_catalog.<>) '0' AND depth OPERATOR(pg_catalog.=) pg_catalog.pg_trigger_depth()::pg_catalog.text
           AND (number OPERATOR(pg_catalog.=) pg_catalog.currval('tocsin.seq')::pg_catalog.text OR pg_catalog.length(marks) OPERATOR(pg_catalog.>) 20000) THEN
            RETURN pg_catalog.set_config(setting, pg_catalog.concat(number, ' ', depth, ' ', counted::pg_catalog.int8 OPERATOR(pg_catalog.+) 1,
                pg_catalog.substr(marks, pg_catalog.length(number) OPERATOR(pg_catalog.+) pg_catalog.length(depth) OPERATOR(pg_catalog.+) pg_catalog.length(counted)
                    OPERATOR(pg_catalog.+) 3)), true) IS NULL;
        END IF;
        marks := ' ' OPERATOR(pg_catalog.||) marks;
    ELSE
        marks := '';
    END IF;
    RETURN pg_catalog.set_config(setting, pg_catalog.concat(pg_catalog.nextval('tocsin.seq'), ' ', pg_catalog.pg_trigger_depth(), ' 1', marks), true) IS NULL;
END $$;

-- The marks of a statement of so many rows, taken from the setting: `numbers` and the row with which each begins, or `number` alone where it
-- holds for all. `framed`: back to a frame's begin, see begin_source.
CREATE OR REPLACE FUNCTION tocsin.taken(setting text, marks text, rows bigint, framed boolean, OUT number bigint, OUT numbers bigint[], OUT starts bigint[])
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    words text[] := string_to_array(marks, ' ');
    place integer := 1;
    counted bigint;
    remaining bigint := rows;
BEGIN
    IF marks !~ '^[0-9]{1,18} [0-9]{1,9} [0-9]{1,9}( [0-9]{1,18} [0-9]{1,9} [0-9]{1,9})*$' THEN
        PERFORM set_config(setting, '', true);
        RETURN;
    END IF;
    WHILE place < cardinality(words) AND (framed OR remaining > 0) LOOP
        counted := words[place + 2];
        IF counted = 0 THEN
            -- Rows that moved to another partition have no mark of an UPDATE: the statement is told by its begin.
            IF remaining <> 0 THEN
                numbers := ARRAY[words[place]::bigint];
                starts := ARRAY[1];
            END IF;
            place := place + 3;
            EXIT;
        END IF;
        remaining := remaining - counted;
        numbers := words[place]::bigint || numbers;
        starts := (remaining + 1) || starts;
        IF remaining < 0 AND NOT framed THEN
            words[place + 2] := -remaining;
            EXIT;
        END IF;
        place := place + 3;
    END LOOP;
    PERFORM set_config(setting, array_to_string(words[place:], ' '), true);
    number := numbers[1];
    IF cardinality(numbers) = 1 THEN
        numbers := NULL;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tocsin.marks_setting(w tocsin.watched, op text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
SELECT format('tocsin.m%s_%s', w.id, op)
$$;

-- The number of the statement whose rows a numbered INSERT into the journal tells, or of the row that is the `place`-th of the statement.
CREATE OR REPLACE FUNCTION tocsin.number_source(place text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
SELECT CASE WHEN place IS NULL THEN '"tocsin:number"'
            ELSE format('coalesce("tocsin:numbers"[width_bucket(%s, "tocsin:starts")], "tocsin:number")', place) END
$$;

-- What frames the body of a trigger function whose statements are numbered.
CREATE OR REPLACE FUNCTION tocsin.numbered_source(w tocsin.watched, op text, source text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $body$
SELECT format(CASE WHEN op = 'truncate' THEN $q$#variable_conflict use_column
DECLARE
    "tocsin:stack" text := 'tocsin.s' || TG_RELID || TG_OP;
    "tocsin:first" text := split_part(current_setting("tocsin:stack", true), ' ', 1);
    "tocsin:number" bigint := CASE WHEN length("tocsin:first") BETWEEN 1 AND 18 AND ltrim("tocsin:first", '0123456789') = '' THEN "tocsin:first" END;
BEGIN
    IF "tocsin:number" IS NOT NULL THEN
        "tocsin:first" := current_setting("tocsin:stack");
        "tocsin:first" := set_config("tocsin:stack", substr("tocsin:first", strpos("tocsin:first", ' ') + 1), true);
    END IF;%1$s
    RETURN NULL;
END $q$ ELSE $q$#variable_conflict use_column
DECLARE
    "tocsin:marks" text := current_setting(%2$L, true);
    "tocsin:number" bigint;
    "tocsin:numbers" bigint[];
    "tocsin:starts" bigint[];
BEGIN
    -- One run and nothing under it, as nearly always.
    IF %4$s THEN
        "tocsin:number" := nullif(split_part("tocsin:marks", ' ', 1), '');
        "tocsin:marks" := set_config(%2$L, '', true);
    ELSIF "tocsin:marks" <> '' THEN
        SELECT * INTO "tocsin:number", "tocsin:numbers", "tocsin:starts"
        FROM tocsin.taken(%2$L, "tocsin:marks", (SELECT count(*) FROM %3$s), %5$s);
    END IF;%1$s
    RETURN NULL;
END $q$ END, source, tocsin.marks_setting(w, op), CASE op WHEN 'delete' THEN '"tocsin old"' ELSE '"tocsin new"' END,
    CASE WHEN tocsin.is_framed(w, op) AND tocsin.is_partitioned(w.relation) THEN 'false'
         WHEN tocsin.is_framed(w, op) THEN
         $q$length("tocsin:marks") < 40 AND translate("tocsin:marks", '0123456789', '') = '     ' AND right("tocsin:marks", 2) = ' 0'$q$
         -- A run of less depth is of a statement around this one, which then has no rows.
         ELSE $q$length("tocsin:marks") < 20 AND translate("tocsin:marks", '0123456789', '') = '  '
       AND nullif(split_part("tocsin:marks", ' ', 2), '')::bigint >= pg_trigger_depth() - 1$q$ END,
    tocsin.is_framed(w, op)::text)
$body$;

-- The trigger BEFORE the statement, which an operation that needs none may have from before.
CREATE OR REPLACE FUNCTION tocsin.begin_source(w tocsin.watched) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $body$
SELECT CASE WHEN NOT w.nests THEN 'BEGIN RETURN NULL; END' ELSE format($q$
DECLARE
    setting pg_catalog.text := 'tocsin.s' OPERATOR(pg_catalog.||) TG_RELID OPERATOR(pg_catalog.||) TG_OP;
BEGIN
    -- An assignment is evaluated without the executor, unlike PERFORM.
    IF TG_OP OPERATOR(pg_catalog.=) 'TRUNCATE' THEN
        setting := pg_catalog.set_config(setting, pg_catalog.concat(pg_catalog.nextval('tocsin.seq'), ' ', pg_catalog.current_setting(setting, true)), true);%s
    END IF;
    RETURN NULL;
END $q$, (SELECT string_agg(format($q$
    ELSIF TG_OP OPERATOR(pg_catalog.=) %1$L THEN
        setting := pg_catalog.set_config(%2$L, pg_catalog.rtrim(pg_catalog.concat(pg_catalog.nextval('tocsin.seq'), ' ',
            pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.-) 1, ' 0 ', pg_catalog.current_setting(%2$L, true))), true);$q$, upper(op), tocsin.marks_setting(w, op)), '')
          FROM unnest('{insert,update,delete}'::text[]) AS op WHERE op = ANY (w.ops) AND tocsin.is_framed(w, op))) END
$body$;

-- The functions that a watch's numbering needs. Where nothing reads the marks, triggers that are there do nothing: to drop one would wait
-- for every reader of its table.
CREATE OR REPLACE FUNCTION tocsin.build_numbering(w tocsin.watched) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION tocsin.begin_%s() RETURNS trigger LANGUAGE plpgsql AS %L', w.id, tocsin.begin_source(w));
    EXECUTE format('REVOKE ALL ON FUNCTION tocsin.begin_%s() FROM PUBLIC', w.id);
    EXECUTE format('CREATE OR REPLACE FUNCTION tocsin.mark_%s(setting text) RETURNS boolean LANGUAGE plpgsql AS %L', w.id,
                   CASE WHEN w.nests THEN (SELECT prosrc FROM pg_proc WHERE oid = 'tocsin.mark'::regproc) ELSE 'BEGIN RETURN false; END' END);
    -- The WHEN of a trigger is judged as the writer.
    EXECUTE format('GRANT EXECUTE ON FUNCTION tocsin.mark_%s(text) TO PUBLIC', w.id);
END $$;

-- The triggers that number the statements of one table, those that are missing alone. `there` are the names and types of those that it has.
CREATE OR REPLACE FUNCTION tocsin.attach_numbering(w tocsin.watched, member regclass, there text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    op text;
    -- pg_trigger.tgtype of BEFORE STATEMENT.
    bits smallint := 2;
    events text[] := '{}';
BEGIN
    FOREACH op IN ARRAY w.ops LOOP
        IF tocsin.is_framed(w, op) THEN
            bits := bits | CASE op WHEN 'insert' THEN 4 WHEN 'delete' THEN 8 WHEN 'update' THEN 16 ELSE 32 END;
            events := events || op;
        END IF;
    END LOOP;
    IF bits > 2 AND format('tocsin_%s_begin%s', w.id, bits) <> ALL (there) THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER tocsin_%s_begin BEFORE %s ON %s FOR EACH STATEMENT EXECUTE FUNCTION tocsin.begin_%s()',
                       w.id, array_to_string(events, ' OR '), member, w.id);
    END IF;
    -- A partition gets a trigger FOR EACH ROW from the table above it.
    IF member <> w.relation AND (SELECT relispartition FROM pg_class WHERE oid = member) THEN
        RETURN;
    END IF;
    FOREACH op IN ARRAY w.ops LOOP
        IF op <> 'truncate' AND format('tocsin_%s_mark_%s%s', w.id, op, CASE op WHEN 'insert' THEN 5 WHEN 'delete' THEN 9 ELSE 17 END) <> ALL (there) THEN
            EXECUTE format('CREATE OR REPLACE TRIGGER tocsin_%1$s_mark_%2$s AFTER %2$s ON %3$s FOR EACH ROW WHEN (tocsin.mark_%1$s(%4$L)) EXECUTE FUNCTION tocsin.begin_%1$s()',
                           w.id, op, member, tocsin.marks_setting(w, op));
        END IF;
    END LOOP;
END $$;
