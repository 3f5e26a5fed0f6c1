-- What CREATE OR REPLACE can't change, run before the other scripts where an older version is installed. Only functions that
-- no writer calls may be dropped here: a statement of a writer that is already planned would not find them any more.
DO $$
DECLARE
    old record;
BEGIN
    FOR old IN
        SELECT p.oid::regprocedure AS name
        FROM (VALUES ('tocsin.attach(tocsin.watched,regclass)', 'text[]'), ('tocsin.detach(tocsin.watched,regclass)', 'text[]')) AS now (name, returns)
        JOIN pg_proc AS p ON p.oid = to_regprocedure(now.name) AND p.prorettype <> now.returns::regtype
    LOOP
        EXECUTE format('DROP FUNCTION %s', old.name);
    END LOOP;
    -- They have one parameter more, with a default.
    DROP FUNCTION IF EXISTS tocsin.common_source(tocsin.watched);
    DROP FUNCTION IF EXISTS tocsin.insert_source(tocsin.watched, text, text, text, text, text, text);
    DROP FUNCTION IF EXISTS tocsin.begin_statement();
END $$;
