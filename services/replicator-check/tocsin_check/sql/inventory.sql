-- What is replicated, and how it stands. to_jsonb(row) ->> 'column' reads columns that only newer versions have.

-- name: subscriptions
SELECT s.oid, s.subname AS name, s.subenabled AS enabled, s.subslotname AS slot, s.subpublications AS publications,
       s.subskiplsn::text AS skip_lsn, s.subowner::bigint AS owner,
       EXISTS (SELECT FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL) AS worker,
       (SELECT to_jsonb(e) FROM pg_stat_subscription_stats e WHERE e.subid = s.oid) AS counters
FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY s.subname

-- name: subscriptions_14
SELECT s.oid, s.subname AS name, s.subenabled AS enabled, s.subslotname AS slot, s.subpublications AS publications, NULL::text AS skip_lsn, s.subowner::bigint AS owner,
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
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '') AS required,
       ARRAY(SELECT t.tgname::text FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('A', 'R')
             UNION ALL SELECT r.rulename::text FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_enabled IN ('A', 'R') ORDER BY 1) AS firing,
       has_table_privilege(c.oid, 'SELECT') AS readable,
       concat_ws(' ', c.oid,
           (SELECT md5(string_agg(concat_ws(' ', a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum)) FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
           (SELECT string_agg(p.oid::text, ',' ORDER BY p.oid) FROM pg_publication_rel p WHERE p.prrelid = c.oid),
           (SELECT string_agg(concat_ws(' ', s.srsubid, s.srsubstate, s.srsublsn), ',' ORDER BY s.srsubid) FROM pg_subscription_rel s WHERE s.srrelid = c.oid)) AS stamp
FROM unnest($1::text[]) AS asked(name) JOIN pg_class c ON c.oid = to_regclass(asked.name)

-- name: holders
-- Who keeps others from reading a table, $1 first. A prepared transaction has no process.
SELECT l.relation::regclass::text AS "table", l.pid, coalesce(nullif(a.application_name, ''), 'a session of ' || a.usename) AS who
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.relation >= 16384
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY (l.relation = to_regclass($1)) DESC NULLS LAST, l.granted DESC, a.xact_start LIMIT 1

-- name: writers
-- Who may change one of the tables $1 besides its owner and the roles $2, by a right of its own: PUBLIC is 0. Predefined roles come last.
SELECT CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee)::text END AS role, array_agg(DISTINCT c.oid::bigint) AS tables
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) g
WHERE c.oid = ANY ($1::oid[]) AND g.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE') AND g.grantee <> c.relowner AND g.grantee <> ALL ($2::oid[])
GROUP BY g.grantee
UNION ALL
SELECT m.rolname::text, ARRAY(SELECT unnest($1::oid[])::bigint) FROM pg_roles m JOIN pg_roles w ON w.rolname = 'pg_write_all_data'
WHERE m.oid <> w.oid AND NOT m.rolsuper AND pg_has_role(m.oid, w.oid, 'USAGE') AND m.oid <> ALL ($2::oid[])
ORDER BY 1

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
SELECT n.nspname AS schema, c.relname AS name, used."table", pg_sequence_last_value(c.oid) AS last_value
FROM (SELECT d.objid AS sequence, d.refobjid AS "table" FROM pg_depend d
      WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjid = ANY ($1::oid[])
      UNION
      SELECT d.refobjid, a.adrelid FROM pg_attrdef a JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid
      WHERE d.refclassid = 'pg_class'::regclass AND a.adrelid = ANY ($1::oid[])) AS used
JOIN pg_class c ON c.oid = used.sequence AND c.relkind = 'S' JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 1, 2

-- name: has_hash
SELECT hash_record_extended(ROW(NULL::{type}), 0)
