-- How replication is set up, and what has to be so before it can be.

-- name: source_facts
SELECT current_setting('server_version_num')::int AS version, current_setting('wal_level') AS wal_level,
       current_setting('max_replication_slots')::int AS max_slots, (SELECT count(*) FROM pg_replication_slots)::int AS slots,
       current_setting('max_wal_senders')::int AS max_senders, (SELECT count(*) FROM pg_stat_replication)::int AS senders,
       current_user::text AS "user", current_database()::text AS database, pg_is_in_recovery() AS in_recovery,
       has_database_privilege(current_database(), 'CREATE') AS may_create

-- name: may_replicate
-- Managed services give the right through a role of their own.
SELECT r.rolsuper OR r.rolreplication
       OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin') AND pg_has_role(r.oid, m.oid, 'MEMBER'))
FROM pg_roles r WHERE r.rolname = $1

-- name: replica_facts
SELECT current_setting('server_version_num')::int AS version, current_user::text AS "user", current_database()::text AS database, pg_is_in_recovery() AS in_recovery,
       current_setting('max_logical_replication_workers')::int AS max_workers,
       (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL)::int AS workers,
       coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int AS max_origins,
       (SELECT count(*) FROM pg_replication_origin)::int AS origins, current_setting('max_sync_workers_per_subscription')::int AS max_copies,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
       OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname IN ('pg_create_subscription', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin') AND pg_has_role(m.oid, 'MEMBER')) AS may_subscribe

-- name: may_copy
-- Which of the columns $2 of the table $1 the role $3 may not read, whether it may not enter the schema, and whether row security hides rows from it.
SELECT ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND ($2::text[] IS NULL OR a.attname = ANY ($2))
               AND NOT has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT') ORDER BY a.attnum) AS hidden,
       has_schema_privilege(r.oid, c.relnamespace, 'USAGE') AS may_enter,
       c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE')) AS filtered
FROM pg_class c, pg_roles r WHERE c.oid = $1::oid AND r.rolname = $3

-- name: system_identifier
SELECT system_identifier::text FROM pg_control_system()

-- name: open_transactions
SELECT pid, coalesce(application_name, '') AS application, extract(epoch FROM now() - xact_start)::int AS seconds
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1

-- name: published
SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1

-- name: publication
SELECT puballtables, pubviaroot, pubinsert AND pubupdate AND pubdelete AS all_ops FROM pg_publication WHERE pubname = $1

-- name: subscription
SELECT oid, subname, subslotname, subenabled, subpublications
FROM pg_subscription WHERE subname = $1 AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())

-- name: subscribed_by
SELECT s.subname, n.nspname, c.relname, r.srsubstate::text AS state
FROM pg_subscription_rel r
JOIN pg_subscription s ON s.oid = r.srsubid
JOIN pg_class c ON c.oid = r.srrelid
JOIN pg_namespace n ON n.oid = c.relnamespace

-- name: slot
SELECT slot_name, active, plugin, database, wal_status FROM pg_replication_slots WHERE slot_name = $1

-- name: copy_progress
-- tuples_processed is bigint since 14; a table that is not being copied at the moment has no row.
SELECT relid::oid AS oid, tuples_processed FROM pg_stat_progress_copy WHERE datname = current_database()

-- name: subscription_errors
SELECT apply_error_count, sync_error_count FROM pg_stat_subscription_stats WHERE subname = $1

-- name: column_lists
SELECT n.nspname, c.relname,
       ARRAY(SELECT a.attname::text FROM unnest(r.prattrs::int2[]) AS listed(num) JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = listed.num ORDER BY a.attnum) AS columns
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = $1 AND r.prattrs IS NOT NULL

-- name: selection_facts
-- Of a table in the publication $1: which columns its row filter reads, which its replica identity has (every one where it is full),
-- and whether the publication $2 has it with the same filter and columns.
SELECT (SELECT count(*) FROM pg_publication_rel WHERE prpubid = p.oid) AS tables,
       ARRAY(SELECT a.attname::text FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
             WHERE d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid AND d.refobjid = r.prrelid AND d.refobjsubid > 0
               AND pg_get_expr(r.prqual, r.prrelid) ~ ('\m' || regexp_replace(a.attname, '\W', '.', 'g') || '\M')) AS filtered_by,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (c.relreplident = 'f' OR a.attnum = ANY (
                 SELECT unnest(i.indkey::int2[]) FROM pg_index i
                 WHERE i.indrelid = c.oid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END))) AS identity,
       EXISTS (SELECT FROM pg_publication_rel o JOIN pg_publication p ON p.oid = o.prpubid
               WHERE p.pubname = $2 AND o.prrelid = c.oid AND o.prattrs IS NOT DISTINCT FROM r.prattrs
                 AND pg_get_expr(o.prqual, o.prrelid) IS NOT DISTINCT FROM pg_get_expr(r.prqual, r.prrelid)) AS unchanged
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = $1 AND n.nspname = $3 AND c.relname = $4

-- name: other_slots
-- Slots of other replicas that tocsin replicate made in this database.
SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'tocsin\_%' AND slot_name <> $1

-- name: sync_slots
SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'pg\_' || $1::text || '\_sync\_%'

-- name: leftovers
-- What tocsin replicate made in a source database.
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1) AS publication, to_regnamespace('tocsin_check') IS NOT NULL AS markers,
       ARRAY(SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'tocsin\_%') AS slots

-- name: required_columns
-- Columns that an inserted row must bring along.
SELECT a.attname::text FROM pg_attribute a
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = ''
