-- The user with which the replica's subscription reads from the source. Run once on the source, as a superuser, before `tocsin replicate`,
-- and name it in --source-url-from-replica. It may read changes and, for the initial copy, the tables; it can write nothing.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tocsin_replication') THEN
        CREATE ROLE tocsin_replication LOGIN REPLICATION;  -- then: ALTER ROLE tocsin_replication PASSWORD '…'
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tocsin_replication', current_database());
END $$;

-- The tables to copy, one schema here; repeat for others. Tables that tocsin replicate makes later belong to whoever runs it.
GRANT USAGE ON SCHEMA public TO tocsin_replication;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO tocsin_replication;
CREATE SCHEMA IF NOT EXISTS tocsin_check;
GRANT USAGE ON SCHEMA tocsin_check TO tocsin_replication;
CREATE TABLE IF NOT EXISTS tocsin_check.marker (k text PRIMARY KEY, n bigint NOT NULL, at timestamptz NOT NULL);
GRANT SELECT ON tocsin_check.marker TO tocsin_replication;
