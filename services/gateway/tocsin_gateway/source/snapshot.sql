-- What a snapshot reads of the source; the listener's own functions write the JSON, so that a row is what an event of it would be.

-- name: table
-- $1 schema, $2 table. As the watch says it: the row t as JSON, its key, its route, the condition on it, whether its values alone are more than an event may be; by
-- column its type and its value, of those that an event has.
SELECT format('%I.%I', n.nspname, c.relname) AS place, tocsin.row_source(w, 't', 't.*') AS "row", tocsin.key_source(w, 't', true) AS key,
       tocsin.route_source(w, 't') AS route, cardinality(w.route) AS route_length, CASE WHEN w.condition IS NOT NULL THEN tocsin.condition_source(w, 't') END AS condition,
       tocsin.oversized_source(w, ARRAY['t']) AS oversized,
       (SELECT json_object_agg(s.name, json_build_array(s.type, tocsin.value_source(s, 't', w.relation))) FROM tocsin.shape(w.relation) AS s
        WHERE s.expression IS NULL AND (w.columns IS NULL OR s.name = ANY (w.columns))) AS columns
FROM tocsin.watched AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2

-- name: moment
SELECT pg_current_snapshot()::text AS moment, pg_is_in_recovery() AS standby, stream, max_event FROM tocsin.identity

-- name: behind
-- $1 the snapshot: whether it has events that the stream has not acknowledged yet; NULL where the listener has never run.
SELECT EXISTS (
    SELECT FROM tocsin.journal AS j
    WHERE (j.xid >= pg_snapshot_xmax(p.reached) OR j.xid = ANY (ARRAY(SELECT pg_snapshot_xip(p.reached))))
      AND j.xid < pg_snapshot_xmax($1::text::pg_snapshot)
      AND pg_visible_in_snapshot(j.xid, $1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(j.xid, p.reached))
FROM tocsin.progress AS p ORDER BY p.n DESC LIMIT 1
