-- The listener's user on the source database. Run once, as a superuser or as who ran `tocsin install`, after it.
-- It owns nothing and can read no table but the journal: what is watched is captured by triggers that run as their owner.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tocsin_listener') THEN
        CREATE ROLE tocsin_listener LOGIN;  -- then: ALTER ROLE tocsin_listener PASSWORD '…'
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tocsin_listener', current_database());
END $$;
GRANT USAGE ON SCHEMA tocsin TO tocsin_listener;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA tocsin TO tocsin_listener;
GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA tocsin TO tocsin_listener;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tocsin TO tocsin_listener;
