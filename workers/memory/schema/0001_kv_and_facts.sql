-- Key-value entries, facts with their full-text index, and the writes already applied.

CREATE TABLE schema_version (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    applied_at REAL NOT NULL
);

CREATE TABLE kv (
    ns         TEXT NOT NULL,
    key        TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    expires_at REAL,
    value      BLOB NOT NULL,           -- msgpack
    PRIMARY KEY (ns, key)
);
CREATE INDEX kv_expiry ON kv (expires_at) WHERE expires_at IS NOT NULL;

-- The highest version that an entry now gone from the namespace had: new entries start above it, so that a version
-- seen before a delete never fits what was created after it.
CREATE TABLE kv_floors (
    ns      TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE facts (
    id               INTEGER PRIMARY KEY,
    ns               TEXT NOT NULL,
    key              TEXT NOT NULL,
    value            TEXT NOT NULL,
    category         TEXT NOT NULL,
    source           TEXT NOT NULL,
    created_at       REAL NOT NULL,
    updated_at       REAL NOT NULL,
    access_count     INTEGER NOT NULL DEFAULT 0,
    last_accessed_at REAL,
    UNIQUE (ns, key)
);

CREATE VIRTUAL TABLE facts_text USING fts5 (
    key, value, category,
    content = 'facts', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2',
    prefix = '2 3'
);
CREATE TRIGGER facts_inserted AFTER INSERT ON facts BEGIN
    INSERT INTO facts_text (rowid, key, value, category) VALUES (new.id, new.key, new.value, new.category);
END;
CREATE TRIGGER facts_deleted AFTER DELETE ON facts BEGIN
    INSERT INTO facts_text (facts_text, rowid, key, value, category)
    VALUES ('delete', old.id, old.key, old.value, old.category);
END;
-- Not for every update: counting an access must not rewrite the index.
CREATE TRIGGER facts_updated AFTER UPDATE OF key, value, category ON facts BEGIN
    INSERT INTO facts_text (facts_text, rowid, key, value, category)
    VALUES ('delete', old.id, old.key, old.value, old.category);
    INSERT INTO facts_text (rowid, key, value, category) VALUES (new.id, new.key, new.value, new.category);
END;

-- Writes done, by request id: a request that comes again gets the reply it had. `sequence` grows with `applied_at`, so
-- the oldest rows are found without an index on time.
CREATE TABLE applied_requests (
    sequence   INTEGER PRIMARY KEY,
    request_id BLOB NOT NULL UNIQUE,
    operation  TEXT NOT NULL,
    reply      BLOB NOT NULL,           -- msgpack
    applied_at REAL NOT NULL
);
