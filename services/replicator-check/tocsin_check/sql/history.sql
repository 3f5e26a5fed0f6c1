-- name: create
-- On the replica, by tocsin replicate: how each table stood, one row for as long as nothing changed.
CREATE TABLE IF NOT EXISTS tocsin_check.history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "table" text NOT NULL, since timestamptz NOT NULL, until timestamptz NOT NULL, status text NOT NULL,
    rows bigint, missing bigint NOT NULL, extra bigint NOT NULL, different bigint NOT NULL, verified_lsn text, audits bigint NOT NULL, reason text);
COMMENT ON TABLE tocsin_check.history IS 'How each replicated table stood, and since when; written by tocsin check, kept for 90 days'

-- name: exists
SELECT to_regclass('tocsin_check.history') IS NOT NULL AND has_table_privilege('tocsin_check.history', 'INSERT, UPDATE')

-- name: newest
SELECT "table", since, until, status, rows, missing, extra, different, verified_lsn, audits, reason FROM (
    SELECT * FROM tocsin_check.history ORDER BY id DESC LIMIT $1) AS newest ORDER BY id

-- name: begin
INSERT INTO tocsin_check.history ("table", since, until, status, rows, missing, extra, different, verified_lsn, audits, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING id

-- name: go_on
UPDATE tocsin_check.history SET until = $2, rows = $3, verified_lsn = $4, audits = $5, reason = $6 WHERE id = $1

-- name: forget
DELETE FROM tocsin_check.history WHERE until < now() - interval '90 days'
