CREATE TABLE tuning_outcomes (
    job_id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    at REAL NOT NULL,
    outcome BLOB NOT NULL
) STRICT;
CREATE INDEX tuning_outcomes_by_model ON tuning_outcomes (model, at);

CREATE TABLE learning_sessions (
    session_id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    created_at REAL NOT NULL,
    last_active_at REAL NOT NULL,
    ended_at REAL,
    status TEXT NOT NULL,
    progress REAL NOT NULL,
    phase TEXT NOT NULL,
    parameters BLOB NOT NULL,
    metrics BLOB NOT NULL,
    learning_rate REAL NOT NULL
) STRICT;
CREATE INDEX learning_sessions_by_age ON learning_sessions (created_at);

CREATE TABLE learning_measurements (
    session_id TEXT NOT NULL REFERENCES learning_sessions (session_id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    at REAL NOT NULL,
    metrics BLOB NOT NULL,
    PRIMARY KEY (session_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE parameters (
    name TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    min_value REAL NOT NULL,
    max_value REAL NOT NULL,
    current_value REAL NOT NULL,
    step_size REAL NOT NULL,
    description TEXT NOT NULL,
    metadata BLOB NOT NULL,
    changed_at REAL NOT NULL
) STRICT;

CREATE TABLE parameter_changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    at REAL NOT NULL,
    value REAL NOT NULL,
    reason TEXT NOT NULL
) STRICT;

CREATE TABLE performance (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    metric TEXT NOT NULL,
    at REAL NOT NULL,
    value REAL NOT NULL,
    parameters BLOB NOT NULL
) STRICT;
CREATE INDEX performance_by_metric ON performance (metric, number);
