-- Versions of LoRA adapters by base model and name. sha256: of what is kept at path. is_used: attached whenever its model
-- is loaded. alias: '' or 'challenger'; the champion is told by adapter_champions.
CREATE TABLE adapters (
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,
    version INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    path TEXT NOT NULL,
    added_at REAL NOT NULL,
    note TEXT NOT NULL,
    alias TEXT NOT NULL,
    is_used INTEGER NOT NULL,
    PRIMARY KEY (model, adapter, version),
    UNIQUE (model, adapter, sha256)
) WITHOUT ROWID;

-- Champions of a model, the present one last. A rollback takes the last one away; nothing left is the bare model.
CREATE TABLE adapter_champions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,
    version INTEGER NOT NULL,
    since REAL NOT NULL,
    reason TEXT NOT NULL,
    FOREIGN KEY (model, adapter, version) REFERENCES adapters (model, adapter, version)
);
CREATE INDEX adapter_champions_by_model ON adapter_champions (model, id);
