-- What the checker asks PostgreSQL's catalogs. search_path is pg_catalog in every session that asks.

-- name: resolve_table
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text, c.reltuples::bigint AS estimate,
       pg_get_userbyid(c.relowner) AS owner, pg_has_role(c.relowner, 'USAGE') AS is_ours,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid) AS has_primary_key,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid) AS has_identity_index
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2

-- name: find_by_search_path
-- The session's own path is pinned, so the database's or role's is asked for by a fresh session; see replicate.resolve.
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)

-- name: user_tables
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tocsin', 'tocsin_check') AND n.nspname NOT LIKE 'pg\_%'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  AND ($1::text IS NULL OR n.nspname = $1)
ORDER BY 1, 2

-- name: unlogged_tables
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND ($1::text IS NULL OR n.nspname = $1) ORDER BY 1, 2

-- name: columns
SELECT a.attname, a.attnum, a.atttypid, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull, a.attidentity::text, a.attgenerated::text,
       pg_get_expr(d.adbin, d.adrelid) AS expression,
       CASE WHEN a.attcollation <> t.typcollation THEN (
           SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname)
           FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation) END AS collation
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum

-- name: constraints
SELECT conname, contype::text, pg_get_constraintdef(oid) AS definition
FROM pg_constraint
WHERE conrelid = $1::oid AND contype IN ('p', 'u', 'c', 'x') AND conparentid = 0 AND coninhcount = 0
ORDER BY array_position(ARRAY['p', 'u', 'x', 'c'], contype::text), conname

-- name: indexes
-- Indexes that no constraint makes, and that no parent's index makes.
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition
FROM pg_index i
WHERE i.indrelid = $1::oid AND i.indisvalid
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid)
  AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid)
ORDER BY 1

-- name: identity_index
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1::oid AND i.indisreplident

-- name: partition_key
SELECT pg_get_partkeydef($1::oid)

-- name: partitions
SELECT c.oid, n.nspname, c.relname, c.relkind::text, pg_get_expr(c.relpartbound, c.oid) AS bound
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = $1::oid AND c.relispartition
ORDER BY 2, 3

-- name: column_types
-- The types that the columns of a table need and that PostgreSQL does not bring along, the deepest first.
WITH RECURSIVE needed(oid, depth) AS (
    SELECT a.atttypid, 0 FROM pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
  UNION
    SELECT below.oid, n.depth + 1
    FROM needed n JOIN pg_type t ON t.oid = n.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
        UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS below(oid)
    WHERE n.depth < 20
)
SELECT t.oid, n.nspname, t.typname, t.typtype::text, t.typrelid, t.typnotnull, t.typdefault,
       format_type(t.typbasetype, t.typtypmod) AS base,
       e.extname, en.nspname AS extschema,
       ARRAY(SELECT v.enumlabel::text FROM pg_enum v WHERE v.enumtypid = t.oid ORDER BY v.enumsortorder) AS labels,
       ARRAY(SELECT 'CONSTRAINT ' || quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid)
             FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c' ORDER BY k.conname) AS checks
FROM (SELECT oid, max(depth) AS depth FROM needed GROUP BY oid) AS found
JOIN pg_type t ON t.oid = found.oid
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
LEFT JOIN pg_extension e ON e.oid = d.refobjid
LEFT JOIN pg_namespace en ON en.oid = e.extnamespace
WHERE n.nspname <> 'pg_catalog' AND NOT (t.typelem <> 0 AND t.typtype = 'b' AND e.extname IS NULL)
ORDER BY found.depth DESC, n.nspname, t.typname

-- name: type_exists
SELECT EXISTS (SELECT FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = $1 AND t.typname = $2)

-- name: default_sequences
-- Sequences that column defaults draw from (serial); an identity column makes its own.
SELECT DISTINCT n.nspname, c.relname, format_type(s.seqtypid, NULL) AS type, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle
FROM pg_attrdef a
JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class c ON c.oid = d.refobjid AND c.relkind = 'S'
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_sequence s ON s.seqrelid = c.oid
WHERE a.adrelid = $1::oid
ORDER BY 1, 2
