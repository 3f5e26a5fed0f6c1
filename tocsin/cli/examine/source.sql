-- name: server
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
       current_setting('wal_level') AS wal_level, current_setting('max_slot_wal_keep_size') AS kept,
       pg_is_in_recovery() AS in_recovery, current_setting('max_prepared_transactions')::int AS prepared,
       current_setting('session_replication_role') AS role, current_database() AS database, current_user AS "user"

-- name: bell
-- Behind a pooler that hands out another session for each transaction, a lock of the session is not held by the next one.
SELECT pg_try_advisory_lock(8390040714906399800) AS locked, pg_backend_pid() AS pid

-- name: bell_held
SELECT pg_backend_pid() = $1 AND EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS held

-- name: release
SELECT pg_advisory_unlock_all()

-- name: watched
SELECT w.id, w.relation::oid AS oid, n.nspname AS schema, c.relname AS "table", w.ops,
       to_regclass(format('%I.%I', n.nspname, c.relname))::text AS shown
FROM tocsin.watched AS w
LEFT JOIN pg_class AS c ON c.oid = w.relation::oid
LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY 3, 4

-- name: triggers
-- Of the table and of every partition and child below it, which capture nothing through their parent.
WITH RECURSIVE family AS (
    SELECT $1::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits AS i JOIN family AS f ON i.inhparent = f.oid
)
SELECT f.oid::regclass::text AS member, op, t.tgenabled::text AS enabled
FROM family AS f
CROSS JOIN unnest($2::text[]) AS op
LEFT JOIN pg_trigger AS t ON t.tgrelid = f.oid AND t.tgname = format('tocsin_%s_%s', $3::int, op)

-- name: slots
SELECT slot_name, active, wal_status, database, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS behind
FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database()

-- name: lost_to_quarantine
SELECT count(*) FROM tocsin.quarantine WHERE retried IS NULL
