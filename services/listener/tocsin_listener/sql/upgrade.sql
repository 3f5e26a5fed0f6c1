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
    -- Writers that are inside an older function give the leaf themselves, as number mod 8: which one they find now does not matter, since
    -- the journal is read by its index, whatever the leaf.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tocsin.journal'::regclass AND attname = 'leaf' AND atthasdef) THEN
        ALTER TABLE tocsin.journal ALTER COLUMN leaf SET DEFAULT ((nextval('tocsin.leaf') >> 36) & 7);
        PERFORM setval('tocsin.leaf', coalesce(pg_sequence_last_value('tocsin.leaf'), 0) << 36);
    END IF;
    -- Who wrote by the older envelopes has left out already what would be too much.
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('tocsin.envelope') AND attname = 'id')
       AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('tocsin.envelope') AND attname = 'max_event') THEN
        ALTER TABLE tocsin.envelope ADD COLUMN max_event integer NOT NULL DEFAULT 2147483647;
        ALTER TABLE tocsin.envelope ALTER COLUMN max_event DROP DEFAULT;
        DROP INDEX tocsin.envelope_content;
    END IF;
END $$;
