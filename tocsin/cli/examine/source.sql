-- name: server
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
       current_setting('wal_level') AS wal_level, current_setting('max_slot_wal_keep_size') AS kept,
       pg_is_in_recovery() AS in_recovery, current_setting('max_prepared_transactions')::int AS prepared,
       current_setting('session_replication_role') AS role

-- name: bell
-- Behind a pooler that hands out another session for each transaction, a lock of the session is not held by the next one.
SELECT pg_try_advisory_lock(8390040714906399800) AS locked, pg_backend_pid() AS pid

-- name: bell_held
SELECT pg_backend_pid() = $1 AND EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS held

-- name: release
SELECT pg_advisory_unlock_all()

-- name: slots
SELECT slot_name, active, wal_status, database, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS behind
FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database()

-- name: silent_roles
-- Whose sessions begin with triggers off; each name quoted.
SELECT quote_ident(r.rolname) AS role, quote_ident(d.datname) AS database
FROM pg_db_role_setting AS s LEFT JOIN pg_roles AS r ON r.oid = s.setrole LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
WHERE 'session_replication_role=replica' = ANY (s.setconfig) AND (s.setdatabase = 0 OR d.datname = current_database())
