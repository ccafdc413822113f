-- One training from its start to the gate's verdict and beyond. record: everything about it as JSON; the other columns are
-- for looking it up. dataset_sha256: content of what it trains on.
CREATE TABLE training_jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    dataset TEXT NOT NULL,
    version INTEGER NOT NULL,
    dataset_sha256 TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX training_jobs_state ON training_jobs (state);
CREATE INDEX training_jobs_content ON training_jobs (dataset_sha256);

CREATE TABLE training_log (
    job INTEGER NOT NULL REFERENCES training_jobs (number),
    number INTEGER NOT NULL,
    at REAL NOT NULL,
    event TEXT NOT NULL,
    message TEXT NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

-- Points of the curve of a training, thinned as they grow many.
CREATE TABLE training_curve (
    job INTEGER NOT NULL REFERENCES training_jobs (number),
    step INTEGER NOT NULL,
    at REAL NOT NULL,
    loss REAL,
    eval_loss REAL,
    learning_rate REAL,
    PRIMARY KEY (job, step)
) WITHOUT ROWID;

-- Seconds of training by local day.
CREATE TABLE training_days (
    day TEXT PRIMARY KEY,
    spent_s REAL NOT NULL
) WITHOUT ROWID;

-- What was set by learning.schedule.set; no row where the settings hold.
CREATE TABLE training_schedule (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    record TEXT NOT NULL
);
