-- Trials of models: comparisons, evaluations, measurements, A/B tests. Instants are Unix epoch seconds.

-- record is the whole `Comparison` as JSON.
CREATE TABLE comparisons (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL
);

-- record is the whole `Evaluation` as JSON; the other columns are what is searched.
CREATE TABLE evaluations (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    suite TEXT NOT NULL,
    status TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX evaluations_of_model ON evaluations (model, number);
CREATE INDEX evaluations_of_suite ON evaluations (suite, number);
CREATE INDEX evaluations_running ON evaluations (status) WHERE status = 'running';

CREATE TABLE evaluation_cases (
    evaluation INTEGER NOT NULL REFERENCES evaluations (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    result TEXT NOT NULL,
    PRIMARY KEY (evaluation, position)
) WITHOUT ROWID;

CREATE TABLE measurements (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    agent TEXT NOT NULL,
    metric TEXT NOT NULL,
    value REAL NOT NULL,
    at REAL NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX measurements_at ON measurements (at);
CREATE INDEX measurements_of_agent ON measurements (agent, at);

-- variants is JSON. winner and verdict are set once, when the test ends by itself.
CREATE TABLE abtests (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    variants TEXT NOT NULL,
    outcome TEXT NOT NULL,
    alpha REAL NOT NULL,
    min_effect REAL NOT NULL,
    started_at REAL NOT NULL,
    stopped_at REAL,
    winner TEXT,
    verdict TEXT
);
CREATE UNIQUE INDEX abtests_running ON abtests (name) WHERE stopped_at IS NULL;

-- What a variant's units said, as sums (see sequential.py); outcomes counts what did not enter them too.
CREATE TABLE abtest_variants (
    test INTEGER NOT NULL REFERENCES abtests (number) ON DELETE CASCADE,
    variant INTEGER NOT NULL,
    n INTEGER NOT NULL DEFAULT 0,
    total REAL NOT NULL DEFAULT 0,
    surprise REAL NOT NULL DEFAULT 0,
    outcomes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (test, variant)
) WITHOUT ROWID;

-- A unit's variant, kept from the first time it was asked for.
CREATE TABLE abtest_units (
    test INTEGER NOT NULL REFERENCES abtests (number) ON DELETE CASCADE,
    unit TEXT NOT NULL,
    variant INTEGER NOT NULL,
    has_outcome INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (test, unit)
) WITHOUT ROWID;

CREATE TABLE abtest_outcomes (
    test INTEGER NOT NULL REFERENCES abtests (number) ON DELETE CASCADE,
    id TEXT NOT NULL,
    unit TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (test, id)
) WITHOUT ROWID;
