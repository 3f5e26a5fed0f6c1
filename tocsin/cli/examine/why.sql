-- Where the events of one table or subject are, for `tocsin why`.

-- name: watch
SELECT w.id, w.ops, w.condition, w.route, w.relation::oid AS oid, w.relation::text AS shown, n.nspname AS schema, c.relname AS "table"
FROM tocsin.watched AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE w.relation = to_regclass($1)

-- name: roots
-- Every watched table as its subjects begin, and as SQL names it.
SELECT format('change.%s.%s', tocsin.token(n.nspname), tocsin.token(c.relname)) AS root, format('%I.%I', n.nspname, c.relname) AS name
FROM tocsin.watched AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace ORDER BY 1

-- name: last
-- The newest event whose subject, or former one, matches $1 (and whose key is $2); whether its batch was begun, and whether the cursor has
-- passed it, which is stored a moment later.
SELECT j.seq, j.subject, j.type, j.key, j.xid::text AS xid, extract(epoch FROM clock_timestamp() - j.at)::float8 AS age,
       coalesce((SELECT pg_visible_in_snapshot(j.xid, coalesce(p.intended, p.reached)) FROM tocsin.progress AS p ORDER BY n DESC LIMIT 1), false) AS begun,
       coalesce((SELECT pg_visible_in_snapshot(j.xid, p.reached) FROM tocsin.progress AS p ORDER BY n DESC LIMIT 1), false) AS passed,
       (SELECT q.reason FROM tocsin.quarantine AS q WHERE q.seq = j.seq AND (q.retried IS NULL OR q.retried = q.seq) LIMIT 1) AS refused
FROM tocsin.events AS j
WHERE (j.subject ~ $1 OR j.old_subject ~ $1) AND ($2::text IS NULL OR j.key = $2)
ORDER BY j.seq DESC LIMIT 1

-- name: writers
-- Open transactions that hold a writer's lock on the table: their events come with their commit.
SELECT DISTINCT l.pid, a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age
FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
WHERE l.relation = to_regclass($1) AND l.mode = 'RowExclusiveLock' AND l.granted ORDER BY 3 DESC NULLS LAST

-- name: identity
SELECT incarnation, epoch, prefix, source, stream FROM tocsin.identity

-- name: leader
-- The session that holds the leading lock, if any.
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid::bigint = $1::bigint >> 32 AND objid::bigint = $1::bigint & 4294967295
