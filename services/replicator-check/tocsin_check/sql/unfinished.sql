-- name: create
-- On the replica, by tocsin replicate: audits under way, so that a checker that is restarted goes on with them.
CREATE TABLE IF NOT EXISTS tocsin_check.unfinished (what text PRIMARY KEY, state jsonb NOT NULL, at timestamptz NOT NULL DEFAULT now());
COMMENT ON TABLE tocsin_check.unfinished IS 'Audits under way, written by tocsin check every two seconds; has keys of drifted rows, no values';

-- name: exists
SELECT to_regclass('tocsin_check.unfinished') IS NOT NULL AND has_table_privilege('tocsin_check.unfinished', 'SELECT, INSERT, UPDATE, DELETE')

-- name: identity
SELECT current_database() || ' ' || (SELECT system_identifier FROM pg_control_system()) || ' ' || (SELECT timeline_id FROM pg_control_checkpoint())

-- name: left
-- What was written within a day.
SELECT what, state::text AS state FROM tocsin_check.unfinished WHERE at > now() - interval '1 day' ORDER BY at, what

-- name: note
INSERT INTO tocsin_check.unfinished VALUES ($1, $2::jsonb) ON CONFLICT (what) DO UPDATE SET state = excluded.state, at = now()

-- name: forget
DELETE FROM tocsin_check.unfinished WHERE what = ANY($1::text[]) OR at < now() - interval '1 day'
