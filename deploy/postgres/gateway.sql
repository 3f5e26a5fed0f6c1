-- The gateway's user on the source database, for `since: "snapshot"` and the columns in /asyncapi.json; without them it needs no database.
-- Run as a superuser, or as who ran `tocsin install`, after it, and again after an upgrade. Then, for each table whose rows may be asked for:
-- GRANT SELECT ON public.orders TO tocsin_gateway;
-- Row security must not apply to it: a snapshot that would leave rows out is refused. Who sees which rows is the token's to say.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tocsin_gateway') THEN
        CREATE ROLE tocsin_gateway LOGIN;  -- then: ALTER ROLE tocsin_gateway PASSWORD '…'
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tocsin_gateway', current_database());
END $$;
ALTER ROLE tocsin_gateway SET default_transaction_read_only = on;

GRANT USAGE ON SCHEMA tocsin TO tocsin_gateway;
-- What is watched and how, and whether the stream has what a snapshot shows.
GRANT SELECT ON tocsin.watched, tocsin.identity, tocsin.progress, tocsin.journal TO tocsin_gateway;
-- What writes the capture's SQL also writes the snapshot's, so that a row looks as its event would.
GRANT EXECUTE ON FUNCTION tocsin.shape(regclass), tocsin.value_source(tocsin.shape_column, text, regclass), tocsin.base_source(text, regclass),
    tocsin.json_source(tocsin.shape_column, text, tocsin.watched), tocsin.row_source(tocsin.watched, text, text),
    tocsin.key_source(tocsin.watched, text, boolean), tocsin.token_source(text), tocsin.route_source(tocsin.watched, text),
    tocsin.condition_source(tocsin.watched, text), tocsin.oversized_source(tocsin.watched, text[]), tocsin.token(text) TO tocsin_gateway;
