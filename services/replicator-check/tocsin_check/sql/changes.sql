-- What the checker asks of the listener's room on the source, to know whether the event stream tells of every change of a table.

-- name: watched
-- Tables whose events tell every changed key: each operation, each row, each column, with old values, by triggers that are on, the
-- partitions' too. `watch` changes whenever there was another watch, or another set of triggers, in between.
SELECT n.nspname AS schema, c.relname AS name, concat_ws(' ', w.id, w.since, triggers.oids) AS watch
FROM tocsin.watched AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace,
LATERAL (
    SELECT count(t.oid) AS number, string_agg(t.oid::text, ' ' ORDER BY t.oid) AS oids, count(DISTINCT member.oid) * 4 AS wanted
    FROM (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid)) AS member (oid)
    LEFT JOIN pg_trigger AS t ON t.tgrelid = member.oid AND t.tgenabled IN ('O', 'A')
        AND t.tgname IN (SELECT format('tocsin_%s_%s', w.id, op) FROM unnest(w.ops) AS op)
) AS triggers
WHERE w.condition IS NULL AND w.columns IS NULL AND w.old <> 'none' AND w.ops @> '{insert,update,delete,truncate}'
  AND triggers.number = triggers.wanted

-- name: reached
-- Everything visible in this snapshot is in the stream.
SELECT reached::text FROM tocsin.progress ORDER BY n DESC LIMIT 1

-- name: snapshot
SELECT pg_current_snapshot()::text
