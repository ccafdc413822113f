-- The gate. Instants are Unix epoch seconds.

-- Answers that need not be asked again: a model with an adapter ("" for none), both by their content, answers greedily.
CREATE TABLE gate_answers (
    number INTEGER PRIMARY KEY,
    model_sha256 TEXT NOT NULL,
    adapter_sha256 TEXT NOT NULL,
    item TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL
);
CREATE UNIQUE INDEX gate_answers_of ON gate_answers (model_sha256, adapter_sha256, item, question);
CREATE INDEX gate_answers_item ON gate_answers (item);

-- record is the whole `GateResult` as JSON. is_attempt: it may let an adapter pass. spends: it used up part of the level.
CREATE TABLE gate_results (
    number INTEGER PRIMARY KEY,
    evaluation_id TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL,
    model_sha256 TEXT NOT NULL,
    adapter_sha256 TEXT NOT NULL,
    is_attempt INTEGER NOT NULL,
    spends INTEGER NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX gate_results_job ON gate_results (job_id, number);

-- Which held-out items a verdict was about, also after their texts were forgotten: for counting attempts.
CREATE TABLE gate_targets (
    item TEXT NOT NULL,
    result INTEGER NOT NULL REFERENCES gate_results (number) ON DELETE CASCADE,
    PRIMARY KEY (item, result)
) WITHOUT ROWID;
CREATE INDEX gate_targets_result ON gate_targets (result);

-- record is a `GateItem` as JSON; change: what became of its score, -1, 0 or 1.
CREATE TABLE gate_items (
    result INTEGER NOT NULL REFERENCES gate_results (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    item TEXT NOT NULL,
    change INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (result, position)
) WITHOUT ROWID;
CREATE INDEX gate_items_item ON gate_items (item);
