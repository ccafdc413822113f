-- The adapter of a model that answers a share of the conversations beside the champion; one at most.
CREATE TABLE adapter_canaries (
    model TEXT PRIMARY KEY,
    adapter TEXT NOT NULL,
    version INTEGER NOT NULL,
    share REAL NOT NULL,
    since REAL NOT NULL,
    reason TEXT NOT NULL,
    FOREIGN KEY (model, adapter, version) REFERENCES adapters (model, adapter, version)
);
