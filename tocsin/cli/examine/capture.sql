-- What captures the changes of the source, and what stands in its way.

-- name: watched
-- Each watch; `trouble` is why its condition can't be judged, `changed` whether the table's shape is not what its functions were written for.
SELECT w.id, w.relation::oid AS oid, n.nspname AS schema, c.relname AS "table", w.relation::text AS shown, w.ops, w.condition,
       CASE WHEN c.oid IS NOT NULL THEN tocsin.trouble(w) END AS trouble,
       c.oid IS NOT NULL AND tocsin.form(w.relation) IS DISTINCT FROM w.form AS changed,
       NOT EXISTS (SELECT FROM tocsin.shape(w.relation) AS s WHERE s.key_place IS NOT NULL) AS keyless,
       c.relispartition AS is_partition, tocsin.root_of(w.relation)::text AS root, (SELECT string_agg(f::text, ', ') FROM tocsin.far_below(w.relation) AS f) AS far,
       (SELECT string_agg(DISTINCT quote_ident(s.subname), ', ') FROM pg_subscription_rel AS r JOIN pg_subscription AS s ON s.oid = r.srsubid
        WHERE r.srrelid IN (SELECT f::oid FROM tocsin.family(w.relation) AS f)) AS subscriptions
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
SELECT f.oid::regclass::text AS member, op, t.tgname AS trigger, t.tgenabled::text AS enabled
FROM family AS f
JOIN pg_class AS c ON c.oid = f.oid AND c.relkind IN ('r', 'p')
CROSS JOIN unnest($2::text[]) AS op
LEFT JOIN pg_trigger AS t ON t.tgrelid = f.oid AND t.tgname = format('tocsin_%s_%s', $3::int, op)
UNION ALL
SELECT f.oid::regclass::text, substr(t.tgname, length(format('tocsin_%s_', $3::int)) + 1), t.tgname, t.tgenabled::text
FROM family AS f JOIN pg_trigger AS t ON t.tgrelid = f.oid AND t.tgname ~ format('^tocsin_%s_(begin|mark_|merge)', $3::int)

-- name: event_triggers
-- `could` is whether the schema's owner may make them.
SELECT e.name, t.evtenabled::text AS enabled, (SELECT r.rolsuper FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner WHERE n.nspname = 'tocsin') AS could
FROM unnest('{tocsin_ddl,tocsin_drop}'::text[]) AS e (name) LEFT JOIN pg_event_trigger AS t ON t.evtname = e.name

-- name: lost_to_quarantine
SELECT count(*) FROM tocsin.quarantine WHERE retried IS NULL

-- name: everybody
-- What a writer needs of the schema: to draw a statement's number, as the writer itself.
SELECT has_schema_privilege('public', 'tocsin', 'USAGE') AND has_sequence_privilege('public', 'tocsin.seq', 'USAGE')

-- name: is_installer
SELECT has_schema_privilege('tocsin', 'CREATE')

-- name: missing_grants
-- What the listener's user lacks, as the GRANTs that give it.
SELECT n.grants FROM (VALUES
    ('SELECT ON tocsin.journal, tocsin.events', has_table_privilege('tocsin.journal', 'SELECT') AND has_table_privilege('tocsin.events', 'SELECT')),
    ('SELECT ON tocsin.watched', has_table_privilege('tocsin.watched', 'SELECT')),
    ('SELECT ON tocsin.identity', has_table_privilege('tocsin.identity', 'SELECT')),
    ('UPDATE (incarnation, system_identifier, timeline, source, prefix, stream, stream_created, epoch) ON tocsin.identity',
     has_column_privilege('tocsin.identity', 'epoch', 'UPDATE')),
    ('SELECT, INSERT ON tocsin.progress', has_table_privilege('tocsin.progress', 'SELECT') AND has_table_privilege('tocsin.progress', 'INSERT')),
    ('TRUNCATE ON tocsin.progress_0, tocsin.progress_1',
     has_table_privilege('tocsin.progress_0', 'TRUNCATE') AND has_table_privilege('tocsin.progress_1', 'TRUNCATE')),
    ('SELECT, INSERT ON tocsin.quarantine', has_table_privilege('tocsin.quarantine', 'SELECT') AND has_table_privilege('tocsin.quarantine', 'INSERT')),
    ('EXECUTE ON FUNCTION tocsin.canary()', has_function_privilege('tocsin.canary()', 'EXECUTE')),
    ('EXECUTE ON FUNCTION tocsin.carry(text, text, integer)', has_function_privilege('tocsin.carry(text, text, integer)', 'EXECUTE')),
    ('EXECUTE ON FUNCTION tocsin.empty_next_leaf(bigint, interval)', has_function_privilege('tocsin.empty_next_leaf(bigint, interval)', 'EXECUTE')),
    ('EXECUTE ON FUNCTION tocsin.advance(bigint)', has_function_privilege('tocsin.advance(bigint)', 'EXECUTE')),
    ('EXECUTE ON FUNCTION tocsin.refresh_all()', has_function_privilege('tocsin.refresh_all()', 'EXECUTE')),
    ('pg_read_all_stats', pg_has_role('pg_read_all_stats', 'USAGE'))
) AS n (grants, given) WHERE NOT given
