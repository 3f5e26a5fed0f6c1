-- What Tocsin keeps in the source database. Run as one transaction by tocsin_listener.install; every statement may run again.
CREATE SCHEMA IF NOT EXISTS tocsin;
COMMENT ON SCHEMA tocsin IS 'Tocsin: the journal of watched tables; `tocsin uninstall` removes it';
REVOKE ALL ON SCHEMA tocsin FROM PUBLIC;

-- Orders the journal, CACHE 1 so that it grows with time; also numbers statements before their rows exist.
CREATE SEQUENCE IF NOT EXISTS tocsin.seq CACHE 1;
-- The number of the leaf that is written; leaf number mod 8. A sequence, since every writer reads it and it must leave no dead rows.
CREATE SEQUENCE IF NOT EXISTS tocsin.leaf MINVALUE 0 START 0 CACHE 1;

-- One row an event: what the message will be follows from the row and its envelope alone, whatever happens to the table or the watch.
-- A captured change has an envelope, so that the writer writes only what is new in each event; any other has its whole `data`.
CREATE TABLE IF NOT EXISTS tocsin.journal (
    leaf smallint NOT NULL,
    seq bigint NOT NULL DEFAULT nextval('tocsin.seq'),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    stmt bigint,                -- the number of its statement, where that may not be the order of seq
    at timestamptz NOT NULL DEFAULT statement_timestamp(),
    subject text,               -- what follows <prefix>.<source>. ('canary' is the canary's); with an envelope the route's tokens, each after a dot
    old_subject text,           -- the old route's, where an UPDATE changed it
    type text,                  -- the CloudEvent's
    key text,                   -- the CloudEvent's subject
    annotation text,            -- what tocsin.annotate, or the setting itself, said in the transaction
    data text                   -- JSON
) PARTITION BY LIST (leaf);
ALTER TABLE tocsin.journal ADD COLUMN IF NOT EXISTS annotation text;
DO $$
BEGIN
    -- The lock is taken once, not at each install.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tocsin.journal'::regclass AND attname = 'envelope') THEN
        ALTER TABLE tocsin.journal
            ALTER COLUMN stmt DROP NOT NULL, ALTER COLUMN subject DROP NOT NULL, ALTER COLUMN type DROP NOT NULL, ALTER COLUMN data DROP NOT NULL,
            ADD COLUMN envelope integer,
            ADD COLUMN key_json text,   -- the key as JSON, where it does not follow from `key`
            ADD COLUMN new text,        -- JSON
            ADD COLUMN old text;        -- JSON
    END IF;
END $$;

-- What all events of one table and operation have in common. Rows are never changed nor deleted, since journal rows name them.
CREATE TABLE IF NOT EXISTS tocsin.envelope (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject text NOT NULL,      -- change.<schema>.<table>.<op>
    type text NOT NULL,
    head text NOT NULL,         -- of `data`, up to the key
    key_head text NOT NULL,     -- of the key's JSON, where that is key_head || key || '}'
    key_quoted boolean NOT NULL -- whether that key is a JSON string, else a number
);
CREATE UNIQUE INDEX IF NOT EXISTS envelope_content ON tocsin.envelope (md5(head), md5(key_head), key_quoted);

DO $$
BEGIN
    FOR n IN 0..7 LOOP
        EXECUTE format('CREATE TABLE IF NOT EXISTS tocsin.journal_%s PARTITION OF tocsin.journal FOR VALUES IN (%s) WITH (autovacuum_enabled = off)', n, n);
    END LOOP;
END $$;
CREATE INDEX IF NOT EXISTS journal_xid_seq ON tocsin.journal (xid, seq);

-- The annotation as JSON. A writer may set the setting without tocsin.annotate, to whatever it likes.
CREATE OR REPLACE FUNCTION tocsin.annotation(said text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN said::pg_catalog.json::pg_catalog.text;
EXCEPTION WHEN invalid_text_representation OR untranslatable_character THEN
    RETURN pg_catalog.to_json(said)::pg_catalog.text;
END $$;

-- The journal with each event as it is told.
CREATE OR REPLACE VIEW tocsin.events AS
SELECT j.leaf, j.seq, j.xid, coalesce(j.stmt, j.seq) AS stmt, j.at,
       concat(e.subject, j.subject) AS subject, CASE WHEN e.id IS NULL THEN j.old_subject ELSE e.subject || j.old_subject END AS old_subject,
       coalesce(e.type, j.type) AS type, j.key, tocsin.annotation(j.annotation) AS annotation,
       CASE WHEN e.id IS NULL THEN j.data ELSE concat(
           e.head, coalesce(j.key_json, e.key_head || CASE WHEN e.key_quoted THEN to_json(j.key)::text ELSE j.key END || '}', 'null'),
           ',"new":' || j.new, ',"old":' || j.old, CASE WHEN j.new IS NULL AND (j.old IS NULL OR e.type NOT LIKE '%.delete') THEN ',"truncated":true' END, '}') END AS data,
       j.ctid AS line              -- where in the leaf: a row that is committed never moves
FROM tocsin.journal AS j LEFT JOIN tocsin.envelope AS e ON e.id = j.envelope;

-- The cursor: everything visible in `reached` is acknowledged by the stream; the batch between it and `intended` may be partly.
-- Rows are only inserted, into one of two tables in turn; the highest n holds.
CREATE TABLE IF NOT EXISTS tocsin.progress (
    leaf smallint NOT NULL,
    n bigint NOT NULL,
    reached pg_snapshot NOT NULL,
    intended pg_snapshot,
    stream_sequence bigint NOT NULL,  -- the stream's last sequence before the batch's first message
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (leaf, n)
) PARTITION BY LIST (leaf);
CREATE TABLE IF NOT EXISTS tocsin.progress_0 PARTITION OF tocsin.progress FOR VALUES IN (0) WITH (autovacuum_enabled = off);
CREATE TABLE IF NOT EXISTS tocsin.progress_1 PARTITION OF tocsin.progress FOR VALUES IN (1) WITH (autovacuum_enabled = off);

-- One row: who this source is, and which stream it writes.
CREATE TABLE IF NOT EXISTS tocsin.identity (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    max_event integer NOT NULL,
    incarnation text NOT NULL DEFAULT left(replace(gen_random_uuid()::text, '-', ''), 12),
    system_identifier text,
    timeline text,
    source text,
    prefix text,
    stream text,
    stream_created text,
    epoch text,
    rotated_at timestamptz NOT NULL DEFAULT now()
);

-- A message that NATS refuses for good; its place in the batch is skipped.
CREATE TABLE IF NOT EXISTS tocsin.quarantine (
    seq bigint NOT NULL,
    copy boolean NOT NULL,
    subject text NOT NULL,
    reason text NOT NULL,
    message bytea NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (seq, copy)
);

-- The journal row under which it was sent again; `tocsin retry` writes it. The row itself stays: a batch read again must skip its place.
ALTER TABLE tocsin.quarantine ADD COLUMN IF NOT EXISTS retried bigint;

-- How far `tocsin backfill` is, written in the transaction of each page; no row where none is unfinished.
CREATE TABLE IF NOT EXISTS tocsin.backfill (
    relation regclass PRIMARY KEY,
    after text[] NOT NULL,      -- the key of the last row read
    rows bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS tocsin.watched (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation regclass NOT NULL UNIQUE,
    ops text[] NOT NULL,
    columns text[],
    route text[] NOT NULL,
    old text NOT NULL CHECK (old IN ('full', 'changed', 'none')),
    condition text,
    exact_numbers boolean NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    form jsonb                  -- the table's, as its functions were written for; see alteration.sql
);
ALTER TABLE tocsin.watched ADD COLUMN IF NOT EXISTS form jsonb;
-- tocsin.may_nest and tocsin.is_risky when its functions were written: asked once, since each asks much of the catalog.
ALTER TABLE tocsin.watched ADD COLUMN IF NOT EXISTS nests boolean, ADD COLUMN IF NOT EXISTS risky boolean;

-- A name or value as one token of a subject: see tocsin/subject.py, which is its twin.
CREATE OR REPLACE FUNCTION tocsin.token(value text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
SELECT CASE
    WHEN value IS NULL THEN '%N'
    WHEN value = '' THEN '%E'
    WHEN value COLLATE "C" ~ '^[A-Za-z0-9_-]{1,128}$' THEN value
    ELSE (
        SELECT CASE WHEN length(encoded) > 128 THEN '%H' || left(encode(sha256(raw), 'hex'), 32) ELSE encoded END
        FROM (SELECT convert_to(value, 'UTF8') AS raw) AS r,
        LATERAL (
            -- Beyond 128 bytes the token is a hash anyway, so a value of megabytes is not encoded first.
            SELECT CASE WHEN length(raw) > 128 THEN repeat('x', 129) ELSE (
                SELECT string_agg(CASE WHEN chr(get_byte(raw, i)) COLLATE "C" ~ '[A-Za-z0-9_-]' AND get_byte(raw, i) < 128
                                       THEN chr(get_byte(raw, i)) ELSE '%' || upper(lpad(to_hex(get_byte(raw, i)), 2, '0')) END, '' ORDER BY i)
                FROM generate_series(0, length(raw) - 1) AS i) END AS encoded
        ) AS e
    )
END
$$;

-- The bell and the leader are advisory locks of this database.
CREATE OR REPLACE FUNCTION tocsin.ring() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    -- Only a sleeping listener holds this lock exclusively; see docs/guarantees.md.
    IF NOT pg_try_advisory_xact_lock_shared(8390040714906399854) THEN
        PERFORM pg_notify('tocsin', '');
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tocsin.append(subject text, type text, key text, data text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    appended bigint;
BEGIN
    INSERT INTO tocsin.journal (leaf, stmt, subject, type, key, annotation, data)
    SELECT (l.last_value % 8)::smallint, nextval('tocsin.seq'), subject, type, key, left(nullif(current_setting('tocsin.annotation', true), ''), 1024),
           CASE WHEN octet_length(data) <= i.max_event THEN data ELSE '{"truncated":true}' END
    FROM tocsin.leaf AS l, tocsin.identity AS i
    RETURNING seq INTO appended;
    PERFORM tocsin.ring();
    RETURN appended;
END $$;

-- An event of the application's own, in its transaction: SELECT tocsin.emit('order.paid', '{"id": 1}'). Returns its sequence.
CREATE OR REPLACE FUNCTION tocsin.emit(type text, data jsonb DEFAULT 'null') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    tokens text[] := string_to_array(type, '.');
    subject text;
BEGIN
    IF type IS NULL OR '' = ANY (tokens) OR cardinality(tokens) NOT BETWEEN 1 AND 24 THEN
        RAISE EXCEPTION 'tocsin.emit: % is not an event type', coalesce(quote_literal(type), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give 1 to 24 words joined by dots, such as ''order.paid''.';
    END IF;
    SELECT string_agg(tocsin.token(t), '.' ORDER BY n) INTO subject FROM unnest(tokens) WITH ORDINALITY AS u (t, n);
    RETURN tocsin.append('event.' || subject, type, NULL, coalesce(data, 'null')::text);
END $$;

-- What each event of the transaction carries beside its data, those before this call too:
-- SELECT tocsin.annotate('{"actor": "user-7"}'). NULL takes it away.
CREATE OR REPLACE FUNCTION tocsin.annotate(annotation jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    said text := coalesce(annotate.annotation::text, '');
BEGIN
    IF octet_length(said) > 1024 THEN
        RAISE EXCEPTION 'tocsin.annotate: % bytes are more than 1024', octet_length(said)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It travels in each event; give a name or a number that leads to the rest.';
    END IF;
    PERFORM set_config('tocsin.annotation', said, true);
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        UPDATE tocsin.journal AS j SET annotation = nullif(said, '') WHERE j.xid = pg_current_xact_id();
    END IF;
END $$;

-- A finding of the checker: the event pg.<source>.drift.<schema>.<table>.
CREATE OR REPLACE FUNCTION tocsin.report_drift(schema text, "table" text, data jsonb) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
SELECT tocsin.append(format('drift.%s.%s', tocsin.token(schema), tocsin.token("table")),
                     format('%s.%s.drift', tocsin.token(schema), tocsin.token("table")), NULL, data::text)
$$;

-- A NOTIFY of an existing channel, as the listener received it.
CREATE OR REPLACE FUNCTION tocsin.carry(channel text, payload text, pid integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
SELECT tocsin.append('notify.' || tocsin.token(channel), 'notify.' || tocsin.token(channel), NULL,
                     json_build_object('channel', channel, 'payload', payload, 'pid', pid)::text)
$$;

CREATE OR REPLACE FUNCTION tocsin.canary() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
SELECT tocsin.append('canary', 'canary', NULL, '{}')
$$;

-- Empty the next leaf when the written one is large or old, if nobody needs what the next one holds; its number, or NULL.
-- No writer waits: a leaf that any transaction still touches is left alone, and the lock falls on the leaf written longest ago.
-- The caller commits, and then calls advance: before the commit a writer would wait for this transaction's lock.
CREATE OR REPLACE FUNCTION tocsin.empty_next_leaf(largest bigint, oldest interval) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    number bigint;
    leaf text;
    needed boolean;
    -- As stored, not as the leader may know better: after a crash the batch from here on is read again.
    reached pg_snapshot := (SELECT p.reached FROM tocsin.progress AS p ORDER BY n DESC LIMIT 1);
BEGIN
    SELECT last_value INTO number FROM tocsin.leaf;
    IF pg_total_relation_size(format('tocsin.journal_%s', number % 8)::regclass) < largest
       AND (SELECT rotated_at + oldest > clock_timestamp() FROM tocsin.identity) THEN
        RETURN NULL;
    END IF;
    leaf := format('tocsin.journal_%s', (number + 1) % 8);
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', leaf);
        -- Each statement has a snapshot of its own here, so this one sees whatever committed before the lock.
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE xid >= pg_snapshot_xmin($1) AND NOT pg_visible_in_snapshot(xid, $1))', leaf)
            USING reached INTO needed;
        IF needed OR reached IS NULL THEN
            RAISE lock_not_available;
        END IF;
        EXECUTE format('TRUNCATE %s', leaf);
    EXCEPTION WHEN lock_not_available THEN
        RETURN NULL;
    END;
    RETURN number + 1;
END $$;

CREATE OR REPLACE FUNCTION tocsin.advance(number bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM setval('tocsin.leaf', number);
    UPDATE tocsin.identity SET rotated_at = clock_timestamp();
END $$;

REVOKE ALL ON ALL TABLES IN SCHEMA tocsin FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tocsin FROM PUBLIC;
-- An application may emit events; writers of watched tables need no grant at all.
GRANT USAGE ON SCHEMA tocsin TO PUBLIC;
GRANT EXECUTE ON FUNCTION tocsin.emit(text, jsonb), tocsin.token(text), tocsin.annotate(jsonb), tocsin.annotation(text) TO PUBLIC;
-- To draw a number is all that it allows: not to set one, nor to read a row.
GRANT USAGE ON SEQUENCE tocsin.seq TO PUBLIC;
