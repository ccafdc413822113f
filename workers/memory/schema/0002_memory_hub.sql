-- Memories, documents, experiences, sessions and contexts; the chunks that search finds; what waits to be embedded and
-- what waits to be published.

-- The content of a memory or document is its last column: what stands behind a long one is slow to read.
CREATE TABLE memories (
    sequence         INTEGER PRIMARY KEY AUTOINCREMENT,     -- order of adding
    ns               TEXT NOT NULL,
    id               TEXT NOT NULL,
    type             TEXT NOT NULL,
    tier             TEXT NOT NULL,                         -- short, medium, long
    importance       REAL NOT NULL,
    access_count     INTEGER NOT NULL DEFAULT 0,
    created_at       REAL NOT NULL,
    updated_at       REAL NOT NULL,
    last_accessed_at REAL NOT NULL,
    decayed_at       REAL NOT NULL,                         -- the importance is that of this time
    at               REAL NOT NULL,
    version          INTEGER NOT NULL DEFAULT 1,
    parent_id        TEXT,
    expires_at       REAL,
    speaker          TEXT,
    tags             TEXT NOT NULL DEFAULT '[]',            -- JSON
    metadata         BLOB NOT NULL,                         -- msgpack
    content          TEXT NOT NULL,
    UNIQUE (ns, id)
);
CREATE INDEX memories_in_order ON memories (ns, sequence);
CREATE INDEX memories_children ON memories (ns, parent_id, sequence) WHERE parent_id IS NOT NULL;
CREATE INDEX memories_expiry ON memories (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX memories_tier ON memories (tier, sequence);
CREATE INDEX memories_type ON memories (ns, type, sequence);

-- The highest version of what is gone: what is created later starts above it, so that a version once seen never fits
-- another thing of the same name.
CREATE TABLE version_floors (
    ns      TEXT NOT NULL,
    kind    TEXT NOT NULL,                                  -- memory, document, context
    version INTEGER NOT NULL,
    PRIMARY KEY (ns, kind)
) WITHOUT ROWID;

CREATE TABLE memory_tags (
    ns  TEXT NOT NULL,
    tag TEXT NOT NULL,
    id  TEXT NOT NULL,
    PRIMARY KEY (ns, tag, id)
) WITHOUT ROWID;
CREATE INDEX memory_tags_by_memory ON memory_tags (ns, id);

CREATE TABLE relations (
    ns         TEXT NOT NULL,
    source_id  TEXT NOT NULL,
    target_id  TEXT NOT NULL,
    kind       TEXT NOT NULL,
    strength   REAL NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (ns, source_id, kind, target_id)
) WITHOUT ROWID;
CREATE INDEX relations_by_target ON relations (ns, target_id);

CREATE TABLE context_groups (
    group_id    INTEGER PRIMARY KEY AUTOINCREMENT,
    ns          TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at  REAL NOT NULL
);
CREATE INDEX context_groups_by_ns ON context_groups (ns, group_id);

CREATE TABLE group_members (
    sequence  INTEGER PRIMARY KEY AUTOINCREMENT,
    group_id  INTEGER NOT NULL,
    ns        TEXT NOT NULL,
    memory_id TEXT NOT NULL,
    UNIQUE (group_id, memory_id)
);
CREATE INDEX group_members_by_memory ON group_members (ns, memory_id);

CREATE TABLE knowledge_base (
    ns         TEXT NOT NULL,
    doc_id     TEXT NOT NULL,
    title      TEXT NOT NULL,
    characters INTEGER NOT NULL,                            -- of content
    chunks     INTEGER NOT NULL,                            -- it was cut into
    version    INTEGER NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    at         REAL NOT NULL,
    tags       TEXT NOT NULL DEFAULT '[]',                  -- JSON
    metadata   BLOB NOT NULL,                               -- msgpack
    content    TEXT NOT NULL,
    PRIMARY KEY (ns, doc_id)
);

CREATE TABLE experiences (
    sequence         INTEGER PRIMARY KEY AUTOINCREMENT,
    ns               TEXT NOT NULL,
    exp_id           TEXT NOT NULL,
    agent            TEXT NOT NULL,
    action           TEXT NOT NULL,
    outcome          TEXT NOT NULL,
    reward           REAL,
    success          INTEGER,
    importance       REAL NOT NULL,
    context          BLOB NOT NULL,                         -- msgpack
    tags             TEXT NOT NULL DEFAULT '[]',            -- JSON
    at               REAL NOT NULL,
    created_at       REAL NOT NULL,
    expires_at       REAL,
    access_count     INTEGER NOT NULL DEFAULT 0,
    last_accessed_at REAL,
    UNIQUE (ns, exp_id)
);
CREATE INDEX experiences_by_agent ON experiences (ns, agent, at);
CREATE INDEX experiences_by_time ON experiences (ns, at);
CREATE INDEX experiences_expiry ON experiences (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE sessions (
    ns           TEXT NOT NULL,
    session_id   TEXT NOT NULL,
    user_id      TEXT NOT NULL,
    type         TEXT NOT NULL,
    state        TEXT NOT NULL,                             -- open, closed, expired; deleting while its turns go
    turns        INTEGER NOT NULL DEFAULT 0,
    created_at   REAL NOT NULL,
    last_used_at REAL NOT NULL,
    expires_at   REAL,
    ended_at     REAL,
    ttl_s        REAL,
    summary      TEXT NOT NULL DEFAULT '',
    metadata     BLOB NOT NULL,                             -- msgpack
    PRIMARY KEY (ns, session_id)
);
CREATE INDEX sessions_by_user ON sessions (ns, user_id, last_used_at);
CREATE INDEX sessions_by_use ON sessions (ns, last_used_at);
CREATE INDEX sessions_expiry ON sessions (expires_at) WHERE state = 'open' AND expires_at IS NOT NULL;
CREATE INDEX sessions_deleting ON sessions (ns, session_id) WHERE state = 'deleting';

CREATE TABLE turns (
    ns         TEXT NOT NULL,
    session_id TEXT NOT NULL,
    number     INTEGER NOT NULL,                            -- from 1
    role       TEXT NOT NULL,
    content    TEXT NOT NULL,
    speaker    TEXT,
    at         REAL NOT NULL,
    metadata   BLOB NOT NULL,                               -- msgpack
    PRIMARY KEY (ns, session_id, number)
);

CREATE TABLE contexts (
    ns            TEXT NOT NULL,
    context_id    TEXT NOT NULL,
    version       INTEGER NOT NULL,
    data          BLOB NOT NULL,                            -- msgpack
    system_prompt TEXT NOT NULL,
    session_id    TEXT,
    user_id       TEXT,
    metadata      BLOB NOT NULL,                            -- msgpack
    created_at    REAL NOT NULL,
    updated_at    REAL NOT NULL,
    expires_at    REAL,
    PRIMARY KEY (ns, context_id)
);
CREATE INDEX contexts_expiry ON contexts (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE suggestions (
    suggestion_id TEXT PRIMARY KEY,
    ns            TEXT NOT NULL,
    user_id       TEXT,
    session_id    TEXT,
    kind          TEXT NOT NULL,
    text          TEXT NOT NULL,
    reason        TEXT NOT NULL,
    confidence    REAL NOT NULL,
    evidence      BLOB NOT NULL,                            -- msgpack
    evidence_from TEXT,                                     -- the session that the evidence was said in
    fingerprint   BLOB NOT NULL,                            -- what makes two suggestions the same
    made_at       REAL NOT NULL,
    dismissed_at  REAL,
    UNIQUE (ns, fingerprint)
);
CREATE INDEX suggestions_by_time ON suggestions (ns, made_at);
CREATE INDEX suggestions_by_session ON suggestions (ns, session_id, made_at);
CREATE INDEX suggestions_by_evidence ON suggestions (ns, evidence_from) WHERE evidence_from IS NOT NULL;

-- Users ('' for everybody) for whom the proactive monitor is switched.
CREATE TABLE suggestion_switches (
    ns      TEXT NOT NULL,
    user_id TEXT NOT NULL,
    is_on   INTEGER NOT NULL,
    PRIMARY KEY (ns, user_id)
) WITHOUT ROWID;

-- What search finds: one or more pieces of each memory, document, turn and fact. An id is never used again, because it
-- is the id of the vector too.
CREATE TABLE chunks (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    ns           TEXT NOT NULL,
    kind         TEXT NOT NULL,                             -- memory, document, turn, fact
    source_id    TEXT NOT NULL,
    stream       TEXT,                                      -- chunks of one stream are neighbours
    position     REAL NOT NULL,                             -- in the stream
    start        INTEGER NOT NULL,                          -- characters of the source
    "end"        INTEGER NOT NULL,
    text         TEXT NOT NULL,
    speaker      TEXT,
    at           REAL NOT NULL,
    vector_model TEXT                                       -- the encoder of its vector; NULL while it waits
);
CREATE INDEX chunks_by_source ON chunks (ns, kind, source_id, start);
CREATE INDEX chunks_by_stream ON chunks (ns, stream, position) WHERE stream IS NOT NULL;
CREATE INDEX chunks_without_vector ON chunks (id) WHERE vector_model IS NULL;

CREATE VIRTUAL TABLE chunks_text USING fts5 (
    text, speaker,
    content = 'chunks', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER chunks_inserted AFTER INSERT ON chunks BEGIN
    INSERT INTO chunks_text (rowid, text, speaker) VALUES (new.id, new.text, new.speaker);
END;
CREATE TRIGGER chunks_deleted AFTER DELETE ON chunks BEGIN
    INSERT INTO chunks_text (chunks_text, rowid, text, speaker) VALUES ('delete', old.id, old.text, old.speaker);
END;

-- Work for the vector index, in the order of the writes that caused it.
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    chunk_id INTEGER NOT NULL,
    action   TEXT NOT NULL                                  -- embed, remove
);

-- Events of committed writes that are not on the bus yet.
CREATE TABLE events_outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    subject  TEXT NOT NULL,
    body     BLOB NOT NULL                                  -- msgpack
);

-- Single values of the service itself.
CREATE TABLE service_state (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL                                     -- msgpack
) WITHOUT ROWID;

-- Facts remembered before this schema become findable.
INSERT INTO chunks (ns, kind, source_id, position, start, "end", text, at)
    SELECT ns, 'fact', key, 0, 0, length(key) + 2 + length(value), key || ': ' || value, updated_at FROM facts;
INSERT INTO outbox (chunk_id, action) SELECT id, 'embed' FROM chunks;
