-- The leader's own state, written on the leader's session only.

-- name: identity
SELECT i.*, (SELECT system_identifier::text FROM pg_control_system()) AS present_system, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS present_timeline
FROM tocsin.identity AS i

-- name: identify
UPDATE tocsin.identity
SET incarnation = $1, system_identifier = $2, timeline = $3, source = $4, prefix = $5, stream = $6, stream_created = $7, epoch = $8

-- name: progress
SELECT n, reached::text AS reached, intended::text AS intended, stream_sequence FROM tocsin.progress ORDER BY n DESC LIMIT 1

-- name: progress_at
SELECT reached::text AS reached, intended::text AS intended, stream_sequence FROM tocsin.progress WHERE stream_sequence <= $1 ORDER BY n DESC LIMIT 1

-- name: store
-- $1 n, $2 reached, $3 intended or NULL, $4 the stream's last sequence before the batch.
INSERT INTO tocsin.progress (leaf, n, reached, intended, stream_sequence)
VALUES (($1::bigint / 10000 % 2)::smallint, $1, $2::text::pg_snapshot, $3::text::pg_snapshot, $4)

-- name: quarantined
SELECT seq, copy FROM tocsin.quarantine

-- name: quarantine
-- Set aside, and announced on event.tocsin.quarantined, in one transaction and once; the announcement itself is not announced.
WITH aside AS (
    INSERT INTO tocsin.quarantine (seq, copy, subject, reason, message) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING RETURNING seq, copy, subject, reason
)
SELECT tocsin.emit('tocsin.quarantined', jsonb_build_object('sequence', seq::text, 'copy', copy, 'subject', left(subject, 500), 'reason', reason))
FROM aside WHERE subject NOT LIKE '%.event.tocsin.quarantined'
