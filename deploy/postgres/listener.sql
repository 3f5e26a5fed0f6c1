-- The listener's user on the source database. Run as a superuser, or as who ran `tocsin install`, after it, and again after an upgrade.
-- It owns nothing, reads no table but the journal, and moves the cursor: what is watched is captured by triggers that run as their owner.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tocsin_listener') THEN
        CREATE ROLE tocsin_listener LOGIN;  -- then: ALTER ROLE tocsin_listener PASSWORD '…'
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tocsin_listener', current_database());
END $$;
-- What an earlier version of this file gave beyond what is needed.
REVOKE ALL ON ALL TABLES IN SCHEMA tocsin FROM tocsin_listener;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA tocsin FROM tocsin_listener;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tocsin FROM tocsin_listener;

GRANT USAGE ON SCHEMA tocsin TO tocsin_listener;
GRANT SELECT ON tocsin.journal, tocsin.envelope, tocsin.events, tocsin.watched, tocsin.identity, tocsin.progress, tocsin.quarantine TO tocsin_listener;
-- The cursor, and who writes which stream.
GRANT INSERT ON tocsin.progress TO tocsin_listener;
GRANT TRUNCATE ON tocsin.progress_0, tocsin.progress_1 TO tocsin_listener;
GRANT UPDATE (incarnation, system_identifier, timeline, source, prefix, stream, stream_created, epoch) ON tocsin.identity TO tocsin_listener;
-- What NATS refuses for good is set aside; only `tocsin retry`, by the installer, takes it up again.
GRANT INSERT ON tocsin.quarantine TO tocsin_listener;
-- The canary, carried NOTIFYs, retention (never past the cursor), and watches whose tables changed their shape.
GRANT EXECUTE ON FUNCTION tocsin.canary(), tocsin.carry(text, text, integer), tocsin.empty_next_leaf(bigint, interval), tocsin.advance(bigint),
    tocsin.refresh_all() TO tocsin_listener;

-- Whose transaction is the oldest; without it, other users' are not measured.
DO $$ BEGIN
    GRANT pg_read_all_stats TO tocsin_listener;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'not granted, only a superuser may: GRANT pg_read_all_stats TO tocsin_listener';
END $$;
