-- name: create
-- One row a checker: it writes here, and waits until the replica shows it.
CREATE SCHEMA IF NOT EXISTS tocsin_check;
CREATE TABLE IF NOT EXISTS tocsin_check.marker (k text PRIMARY KEY, n bigint NOT NULL, at timestamptz NOT NULL);
COMMENT ON TABLE tocsin_check.marker IS 'Tocsin''s checker writes here and waits until the replica shows it; made by tocsin replicate';

-- name: may_read
SELECT has_schema_privilege($1, 'tocsin_check', 'USAGE') AND has_table_privilege($1, 'tocsin_check.marker', 'SELECT')

-- name: write
INSERT INTO tocsin_check.marker AS m VALUES ($1, 1, clock_timestamp())
ON CONFLICT (k) DO UPDATE SET n = m.n + 1, at = clock_timestamp()
RETURNING n, pg_current_xact_id()::text::bigint AS xid

-- name: read
SELECT n FROM tocsin_check.marker WHERE k = $1

-- name: forget
DELETE FROM tocsin_check.marker WHERE k = $1 OR at < clock_timestamp() - interval '1 day'

-- name: oldest_running
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint

-- name: blockers
-- Who keeps a transaction below $1 open: sessions, then prepared transactions.
SELECT 'the transaction of process ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') || ', open since ' || to_char(xact_start, 'HH24:MI:SS') || ' UTC' AS who
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND backend_xid::text::bigint < ($1::bigint & 4294967295)
UNION ALL
SELECT 'the prepared transaction ' || quote_literal(gid) || ', since ' || to_char(prepared, 'HH24:MI:SS') || ' UTC'
FROM pg_prepared_xacts WHERE transaction::text::bigint < ($1::bigint & 4294967295)
LIMIT 3

-- name: position
SELECT pg_current_wal_insert_lsn()::text

-- name: can_report
SELECT to_regprocedure('tocsin.report_drift(text,text,jsonb)')

-- name: report
SELECT tocsin.report_drift($1, $2, $3::jsonb)
