-- Adapters of jobs that the running model has, compared with PEFT and found equal. adapter_version: the model service's
-- number of it. The differences are nats per token.
CREATE TABLE prepared (
    job_id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,
    adapter_version INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    probes INTEGER NOT NULL,
    difference REAL NOT NULL,
    bare_difference REAL NOT NULL,
    tolerance REAL NOT NULL,
    words TEXT NOT NULL
);

-- Adapters put to work, in the order of `number`. step: what is asked of the model service and not known to be done,
-- 'promoting' or 'rolling_back', else ''. untold: the event that is still to be published, else ''. previous: name with
-- version of what answered before, '' for the bare model.
CREATE TABLE deployments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment_id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,
    adapter_version INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    job_id TEXT NOT NULL,
    dataset TEXT NOT NULL,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    share REAL NOT NULL,
    previous TEXT NOT NULL,
    promoted_at REAL NOT NULL,
    ended_at REAL,
    reason TEXT NOT NULL,
    path TEXT NOT NULL,
    verdict TEXT NOT NULL,
    is_forced INTEGER NOT NULL,
    step TEXT NOT NULL,
    untold TEXT NOT NULL
);
CREATE INDEX deployments_by_model ON deployments (model, number);
CREATE INDEX deployments_by_job ON deployments (job_id, number);

-- The comparison of a deployment with what it replaced. state: 'watching', 'kept' or 'rolled_back'. progress: JSON with
-- the number of the last outcome that was counted, written in one transaction with what it changed.
CREATE TABLE watches (
    deployment_id TEXT PRIMARY KEY REFERENCES deployments (deployment_id) ON DELETE CASCADE,
    state TEXT NOT NULL,
    progress BLOB NOT NULL
);
