-- The checker's user on the replica database. Run once, as a superuser or the tables' owner, after `tocsin replicate`.
-- It reads what is replicated and keeps the history of audits, and how far one under way is. It can change no replicated row.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tocsin_checker') THEN
        CREATE ROLE tocsin_checker LOGIN;  -- then: ALTER ROLE tocsin_checker PASSWORD '…'
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tocsin_checker', current_database());
END $$;

GRANT USAGE ON SCHEMA tocsin_check TO tocsin_checker;
GRANT SELECT ON tocsin_check.marker TO tocsin_checker;
GRANT SELECT, INSERT, UPDATE, DELETE ON tocsin_check.history, tocsin_check.unfinished TO tocsin_checker;

-- The subscription's worker, seen by a user that does not own it.
GRANT pg_read_all_stats TO tocsin_checker;

-- The replicated tables, their schemas and sequences; run again when tables are added.
DO $$
DECLARE name record;
BEGIN
    FOR name IN SELECT n.nspname, c.relname FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname <> 'tocsin_check' LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO tocsin_checker', name.nspname);
        EXECUTE format('GRANT SELECT ON TABLE %I.%I TO tocsin_checker', name.nspname, name.relname);
        EXECUTE format('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO tocsin_checker', name.nspname);
    END LOOP;
END $$;
