-- Where the events of one table are, for `tocsin why`.

-- name: watch
SELECT w.id, w.ops, w.condition, n.nspname AS schema, c.relname AS "table", format('change.%s.%s.', tocsin.token(n.nspname), tocsin.token(c.relname)) AS root
FROM tocsin.watched AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE w.relation = to_regclass($1)

-- name: last
-- The newest event of the root $1 (and the key $2), and whether the stream has it: the cursor has passed it.
SELECT j.seq, j.subject, j.type, j.key, j.xid::text AS xid, extract(epoch FROM clock_timestamp() - j.at)::float8 AS age,
       coalesce((SELECT pg_visible_in_snapshot(j.xid, coalesce(p.intended, p.reached)) FROM tocsin.progress AS p ORDER BY n DESC LIMIT 1), false) AS passed,
       (SELECT q.reason FROM tocsin.quarantine AS q WHERE q.seq = j.seq AND q.retried IS NULL LIMIT 1) AS refused
FROM tocsin.journal AS j
WHERE starts_with(j.subject, $1) AND ($2::text IS NULL OR j.key = $2)
ORDER BY j.seq DESC LIMIT 1

-- name: writers
-- Open transactions that hold a writer's lock on the table: their events come with their commit.
SELECT DISTINCT l.pid, a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age
FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
WHERE l.relation = to_regclass($1) AND l.mode = 'RowExclusiveLock' AND l.granted ORDER BY 3 DESC NULLS LAST

-- name: leader
-- The session that holds the leading lock, if any.
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid::bigint = $1::bigint >> 32 AND objid::bigint = $1::bigint & 4294967295
