-- The user that runs `tocsin install`, `watch`, `unwatch`, `backfill` and `retry` on the source database. Run once, as a superuser.
-- It may make the schema `tocsin`, and is then its owner. For each table to be watched, its owner adds:
--     GRANT TRIGGER ON orders TO tocsin_installer;
--     GRANT SELECT, UPDATE ON orders TO tocsin_installer;   -- for `tocsin backfill` alone; UPDATE since it locks the rows it reads
-- Without superuser there are no event triggers: the listener then looks every second whether a watched table changed its shape.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tocsin_installer') THEN
        CREATE ROLE tocsin_installer LOGIN;  -- then: ALTER ROLE tocsin_installer PASSWORD '…'
    END IF;
    EXECUTE format('GRANT CONNECT, CREATE ON DATABASE %I TO tocsin_installer', current_database());
END $$;
