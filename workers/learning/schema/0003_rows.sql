-- One fact. is_held: its rows are never trained on. Decided once, never changed.
CREATE TABLE clusters (
    cluster TEXT PRIMARY KEY,
    is_held INTEGER NOT NULL,
    founded INTEGER NOT NULL
) WITHOUT ROWID;

-- One example. texts is NULL once it is erased. cause: a word for why it is quarantined or removed; reason: a sentence.
-- content, context, answer: hashes to find duplicates and contradictions by. sha256: of the texts as they are.
CREATE TABLE examples (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    row_id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    texts TEXT,
    user TEXT NOT NULL,
    session_id TEXT NOT NULL,
    memory_ids TEXT NOT NULL,
    evidence TEXT NOT NULL,
    opportunity_id TEXT NOT NULL,
    source TEXT NOT NULL,
    cluster TEXT NOT NULL,
    split TEXT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT NOT NULL,
    reason TEXT NOT NULL,
    is_released INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    content TEXT NOT NULL,
    context TEXT NOT NULL,
    answer TEXT NOT NULL,
    sha256 TEXT NOT NULL
);
CREATE UNIQUE INDEX examples_content ON examples (model, content) WHERE state != 'removed';
CREATE INDEX examples_context ON examples (model, context) WHERE state != 'removed';
CREATE INDEX examples_answer ON examples (answer) WHERE state != 'removed';
CREATE INDEX examples_cluster ON examples (cluster);
CREATE INDEX examples_user ON examples (user, created_at);

-- Everybody who said so, and how far they were trusted then, 0..1.
CREATE TABLE example_users (
    number INTEGER NOT NULL REFERENCES examples (number),
    user TEXT NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (number, user)
) WITHOUT ROWID;

CREATE TABLE example_opportunities (
    opportunity_id TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES examples (number),
    PRIMARY KEY (opportunity_id, number)
) WITHOUT ROWID;

CREATE TABLE example_evidence (
    id TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES examples (number),
    PRIMARY KEY (id, number)
) WITHOUT ROWID;

-- What of MemoryHub an example rests on. kind: memory, fact, doc, session. state: known (it was there), unknown (it was
-- not), unasked.
CREATE TABLE example_references (
    kind TEXT NOT NULL,
    ns TEXT NOT NULL,
    id TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES examples (number),
    state TEXT NOT NULL,
    PRIMARY KEY (kind, ns, id, number)
) WITHOUT ROWID;
CREATE INDEX example_references_number ON example_references (number);

-- What examples are compared by, and looked up by.
CREATE TABLE example_likeness (
    number INTEGER PRIMARY KEY REFERENCES examples (number),
    likeness BLOB NOT NULL
);
CREATE TABLE example_keys (
    key BLOB NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (key, number)
) WITHOUT ROWID;

-- What is not taken in again: hashes of contents, removed for all or forgotten for one person.
CREATE TABLE tombstones (
    hash TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;

-- One frozen version. info: a DatasetInfo as JSON.
CREATE TABLE datasets (
    dataset TEXT NOT NULL,
    version INTEGER NOT NULL,
    model TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    created_at REAL NOT NULL,
    is_stale TEXT NOT NULL DEFAULT '',
    info TEXT NOT NULL,
    PRIMARY KEY (dataset, version)
) WITHOUT ROWID;
-- The highest version a name ever had: numbers of deleted versions are not used again.
CREATE TABLE dataset_names (
    dataset TEXT PRIMARY KEY,
    highest INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE dataset_rows (
    dataset TEXT NOT NULL,
    version INTEGER NOT NULL,
    position INTEGER NOT NULL,
    number INTEGER NOT NULL REFERENCES examples (number),
    split TEXT NOT NULL,
    cluster TEXT NOT NULL,
    PRIMARY KEY (dataset, version, position)
) WITHOUT ROWID;
CREATE INDEX dataset_rows_number ON dataset_rows (number);
