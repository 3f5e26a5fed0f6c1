-- What is replicated, and how it stands. to_jsonb(row) ->> 'column' reads columns that only newer versions have.

-- name: subscriptions
SELECT s.oid, s.subname AS name, s.subenabled AS enabled, s.subslotname AS slot, s.subpublications AS publications,
       to_jsonb(s) ->> 'subskiplsn' AS skip_lsn,
       EXISTS (SELECT FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL) AS worker,
       (SELECT to_jsonb(e) FROM pg_stat_subscription_stats e WHERE e.subid = s.oid) AS counters
FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY s.subname

-- name: subscriptions_14
SELECT s.oid, s.subname AS name, s.subenabled AS enabled, s.subslotname AS slot, s.subpublications AS publications, NULL::text AS skip_lsn,
       EXISTS (SELECT FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL) AS worker, NULL::jsonb AS counters
FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY s.subname

-- name: subscribed
SELECT r.srsubid AS subscription, n.nspname AS schema, c.relname AS name, r.srsubstate::text AS state
FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace

-- name: slots
SELECT slot_name AS name, active, plugin, wal_status, to_jsonb(s) ->> 'invalidation_reason' AS invalidation_reason,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained_bytes, confirmed_flush_lsn::text AS confirmed, safe_wal_size
FROM pg_replication_slots s WHERE database = current_database() AND slot_type = 'logical'

-- name: published
SELECT pubname AS publication, schemaname AS schema, tablename AS name, to_jsonb(p) -> 'attnames' AS columns, to_jsonb(p) ->> 'rowfilter' AS filter
FROM pg_publication_tables p WHERE pubname = ANY ($1::name[])

-- name: publications
SELECT pubname AS name, pubinsert AND pubupdate AND pubdelete AND pubtruncate AS all_ops FROM pg_publication WHERE pubname = ANY ($1::name[])

-- name: tables
-- One row for each asked table that exists; $1 are names as quote_ident writes them, schema.table.
SELECT asked.name AS asked, c.oid, c.relkind::text AS kind, c.relreplident::text AS identity,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_primary_key,
       ARRAY(SELECT h.inhrelid::regclass::text FROM pg_inherits h WHERE h.inhparent = c.oid AND c.relkind = 'p' ORDER BY 1) AS partitions,
       has_table_privilege(c.oid, 'SELECT') AS readable
FROM unnest($1::text[]) AS asked(name) JOIN pg_class c ON c.oid = to_regclass(asked.name)

-- name: columns
-- base is the type behind domains; native says that PostgreSQL itself defines it and that its hash does not go by object ids.
WITH RECURSIVE base(oid, at) AS (
    SELECT DISTINCT atttypid, atttypid FROM pg_attribute WHERE attrelid = ANY ($1::oid[]) AND attnum > 0 AND NOT attisdropped
  UNION ALL
    SELECT base.oid, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.at WHERE t.typtype = 'd'
)
SELECT a.attrelid AS "table", a.attname AS name, a.attnotnull AS not_null, a.attgenerated::text <> '' AS generated,
       format_type(a.atttypid, NULL) AS type, format_type(a.atttypid, a.atttypmod) AS full_type,
       format_type(t.oid, NULL) AS base, t.typnamespace = 'pg_catalog'::regnamespace AS built_in,
       t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'r', 'm') AND t.typname NOT LIKE 'reg%' AND t.typname NOT LIKE '\_reg%' AS native,
       a.attcollation <> 0 AS collatable,
       CASE WHEN a.attcollation <> 0 THEN (
           SELECT concat_ws('/', c.collname, c.collprovider::text, CASE WHEN c.collname <> 'default' THEN c.collcollate END, to_jsonb(c) ->> 'colllocale',
                            pg_collation_actual_version(c.oid),
                            CASE WHEN c.collname = 'default' THEN (SELECT concat_ws('/', d.datcollate, to_jsonb(d) ->> 'datlocprovider', to_jsonb(d) ->> 'datlocale')
                                                                   FROM pg_database d WHERE d.datname = current_database()) END)
           FROM pg_collation c WHERE c.oid = a.attcollation) END AS collation
FROM pg_attribute a
JOIN base b ON b.oid = a.atttypid
JOIN pg_type t ON t.oid = b.at AND t.typtype <> 'd'
WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum

-- name: keys
-- The columns of each table's key: the primary key, else the replica identity's index, else any unique index over columns that are never null.
SELECT DISTINCT ON (i.indrelid) i.indrelid AS "table",
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(num, ord)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num WHERE k.ord <= i.indnkeyatts ORDER BY k.ord) AS columns
FROM pg_index i
WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(num, ord)
                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num WHERE k.ord <= i.indnkeyatts AND NOT a.attnotnull)
ORDER BY i.indrelid, i.indisprimary DESC, i.indisreplident DESC, i.indexrelid

-- name: sequences
-- Sequences that the tables' columns own or draw from, with what they gave last.
SELECT DISTINCT n.nspname AS schema, c.relname AS name, d.refobjid AS "table", pg_sequence_last_value(c.oid) AS last_value
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S' JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjid = ANY ($1::oid[])
ORDER BY 1, 2

-- name: has_hash
SELECT hash_record_extended(ROW(NULL::{type}), 0)
