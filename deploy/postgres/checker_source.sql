-- The checker's user on the source database. Run once, as a superuser or the tables' owner, after `tocsin replicate`.
-- It reads what is replicated, writes its one marker row and reports its findings. It can change nothing else.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tocsin_checker') THEN
        CREATE ROLE tocsin_checker LOGIN;  -- then: ALTER ROLE tocsin_checker PASSWORD '…'
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tocsin_checker', current_database());
END $$;

-- The marker: the fence that tells drift from lag.
GRANT USAGE ON SCHEMA tocsin_check TO tocsin_checker;
GRANT SELECT, INSERT, UPDATE, DELETE ON tocsin_check.marker TO tocsin_checker;

-- Who keeps a transaction open, so that a pending verdict can name it. Without this it says "of another user".
GRANT pg_read_all_stats TO tocsin_checker;

-- The replicated tables, their schemas and sequences; run again when tables are added.
DO $$
DECLARE name record;
BEGIN
    FOR name IN SELECT DISTINCT schemaname, tablename FROM pg_publication_tables WHERE pubname = 'tocsin' AND schemaname <> 'tocsin_check' LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO tocsin_checker', name.schemaname);
        EXECUTE format('GRANT SELECT ON TABLE %I.%I TO tocsin_checker', name.schemaname, name.tablename);
        EXECUTE format('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO tocsin_checker', name.schemaname);
    END LOOP;
    -- Findings go into the event stream where Tocsin's listener is installed.
    IF to_regprocedure('tocsin.report_drift(text,text,jsonb)') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA tocsin TO tocsin_checker;
        GRANT EXECUTE ON FUNCTION tocsin.report_drift(text, text, jsonb) TO tocsin_checker;
        -- Which tables the listener watches, and how far it is: so that audits can follow the event stream.
        GRANT SELECT ON tocsin.watched, tocsin.progress TO tocsin_checker;
    END IF;
END $$;
