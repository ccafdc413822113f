-- What was asked of models by model.keep; NULL leaves a field to the rules and settings.
CREATE TABLE model_keeps (
    model TEXT PRIMARY KEY,
    is_pinned INTEGER,
    priority INTEGER,
    keep_alive_s REAL
) WITHOUT ROWID;

-- Figures of a model since it was first seen, as msgpack of workers.models.stats.Counts.
CREATE TABLE model_figures (
    model TEXT PRIMARY KEY,
    counts BLOB NOT NULL
) WITHOUT ROWID;

-- Uses by minute (Unix epoch minutes), and the last of them in epoch seconds.
CREATE TABLE model_uses (
    model TEXT NOT NULL,
    minute INTEGER NOT NULL,
    uses INTEGER NOT NULL,
    last_at REAL NOT NULL,
    PRIMARY KEY (model, minute)
) WITHOUT ROWID;

-- What was learned of usage, one row.
CREATE TABLE model_prediction (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    learned BLOB NOT NULL
);
