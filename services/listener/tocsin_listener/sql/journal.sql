-- Reading the journal between two snapshots, S ($1) and S' ($2, NULL: now). The condition is written so that it uses the index on
-- (xid, seq); the order is: transactions by their highest seq, each whole; inside one by statement, then seq.

-- name: between
-- One row for each event, if there are at most $3 of them with at most $4 bytes; else rows whose message is NULL.
-- $5 incarnation, $6 source token.
SELECT (SELECT coalesce($2::text::pg_snapshot, pg_current_snapshot()))::text AS intended, seq, subject, old_subject,
       date_part('epoch', clock_timestamp() - at) AS age,
       CASE WHEN total <= $3 AND bytes <= $4 THEN convert_to(
           '{"specversion":"1.0","id":"' || $5::text || '-' || seq || '","source":"/pg/' || $6::text || '","type":' || to_json(type)
           || coalesce(',"subject":' || to_json(key), '')
           || ',"time":"' || to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           || '","datacontenttype":"application/json","sequence":"' || seq || '","txid":"' || xid || '","txposition":' || place
           || coalesce(',"annotation":' || annotation, '')
           || ',"data":' || data || '}', 'UTF8') END AS message
FROM (
    SELECT found.*, count(*) OVER () AS total, sum(octet_length(data)) OVER () AS bytes, max(seq) OVER (PARTITION BY xid) AS last,
           row_number() OVER (PARTITION BY xid ORDER BY stmt, seq) AS place
    FROM (
        SELECT seq, xid, stmt, at, subject, old_subject, type, key, annotation, data FROM tocsin.events
        WHERE ((xid >= (SELECT pg_snapshot_xmax($1::text::pg_snapshot))
                AND xid < (SELECT pg_snapshot_xmax(coalesce($2::text::pg_snapshot, pg_current_snapshot()))))
               OR xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot))))
          AND pg_visible_in_snapshot(xid, (SELECT coalesce($2::text::pg_snapshot, pg_current_snapshot())))
          AND NOT pg_visible_in_snapshot(xid, (SELECT $1::text::pg_snapshot))
        LIMIT $3 + 1
    ) AS found
) AS measured
ORDER BY last, xid, stmt, seq

-- name: order
-- The same rows, however many, by their place only: for a cursor that pages through them in bounded memory.
SELECT leaf, ctid AS line, row_number() OVER (PARTITION BY xid ORDER BY coalesce(stmt, seq), seq) AS place,
       coalesce(octet_length(data), 0) + coalesce(octet_length(new), 0) + coalesce(octet_length(old), 0) + 700 AS bytes
FROM tocsin.journal
WHERE ((xid >= (SELECT pg_snapshot_xmax($1::text::pg_snapshot)) AND xid < (SELECT pg_snapshot_xmax($2::text::pg_snapshot)))
       OR xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot))))
  AND pg_visible_in_snapshot(xid, (SELECT $2::text::pg_snapshot))
  AND NOT pg_visible_in_snapshot(xid, (SELECT $1::text::pg_snapshot))
ORDER BY max(seq) OVER (PARTITION BY xid), xid, coalesce(stmt, seq), seq

-- name: page
-- The events at $1 (leaves), $2 (lines), $3 (places in the transaction), in that order.
-- $4 incarnation, $5 source token.
SELECT j.seq, j.subject, j.old_subject, date_part('epoch', clock_timestamp() - j.at) AS age,
       convert_to(
           '{"specversion":"1.0","id":"' || $4::text || '-' || j.seq || '","source":"/pg/' || $5::text || '","type":' || to_json(j.type)
           || coalesce(',"subject":' || to_json(j.key), '')
           || ',"time":"' || to_char(j.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           || '","datacontenttype":"application/json","sequence":"' || j.seq || '","txid":"' || j.xid || '","txposition":' || r.place
           || coalesce(',"annotation":' || j.annotation, '')
           || ',"data":' || j.data || '}', 'UTF8') AS message
FROM unnest($1::smallint[], $2::tid[], $3::bigint[]) WITH ORDINALITY AS r (leaf, line, place, n)
JOIN tocsin.events AS j ON j.leaf = r.leaf AND j.line = r.line
ORDER BY r.n

-- name: now
SELECT pg_current_snapshot()::text

-- name: behind
-- How much of the journal is not in the snapshot $1: rows, at most a million counted, and the age of the oldest in seconds.
SELECT count(*) AS rows, coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 AS age
FROM (
    SELECT at FROM tocsin.journal
    WHERE (xid >= (SELECT pg_snapshot_xmax($1::text::pg_snapshot)) OR xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot))))
      AND NOT pg_visible_in_snapshot(xid, (SELECT $1::text::pg_snapshot))
    LIMIT 1000000
) AS behind

-- name: measure
-- Sizes, the NOTIFY queue, and the oldest open transaction of this database that has an xid. Other sessions' are NULL to a role without
-- pg_read_all_stats, which then sees none.
SELECT (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits WHERE inhparent = 'tocsin.journal'::regclass) AS journal_bytes,
       pg_notification_queue_usage() AS notify_queue,
       (SELECT count(*) FROM tocsin.quarantine WHERE retried IS NULL) AS set_aside,
       w.pid AS oldest_pid, extract(epoch FROM clock_timestamp() - w.xact_start)::float8 AS oldest_age
FROM (SELECT) AS always
LEFT JOIN (
    SELECT pid, xact_start FROM pg_stat_activity
    WHERE backend_xid IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()
    ORDER BY xact_start LIMIT 1
) AS w ON true
