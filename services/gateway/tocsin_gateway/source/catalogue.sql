-- name: watched
-- One row for each column that events of a watched table may have, in the table's order.
SELECT n.nspname AS schema, c.relname AS table, w.ops, w.old, w.route, w.exact_numbers,
    a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type, coalesce(nullif(t.typbasetype, 0), t.oid)::regtype::text AS base, t.typtype::text AS kind, t.typelem <> 0 AND t.typlen = -1 AS is_array, NOT a.attnotnull AS nullable,
    col_description(c.oid, a.attnum) AS comment, obj_description(c.oid, 'pg_class') AS table_comment,
    coalesce(a.attnum = ANY (i.indkey), false) AS in_key,
    (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = t.oid) AS labels
FROM tocsin.watched AS w
JOIN pg_class AS c ON c.oid = w.relation
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (w.columns IS NULL OR a.attname = ANY (w.columns) )
JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
ORDER BY n.nspname, c.relname, a.attnum
