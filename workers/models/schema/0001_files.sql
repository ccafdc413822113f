-- Hashes of model files, by path (bytes, as the file system names it). stamp: size, time and inode of the content hashed.
CREATE TABLE file_hashes (
    path BLOB PRIMARY KEY,
    stamp TEXT NOT NULL,
    sha256 TEXT NOT NULL
) WITHOUT ROWID;

-- Contents that a model's name has had. path is '' when that content is no longer here.
CREATE TABLE model_versions (
    model TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    added_at REAL NOT NULL,
    source TEXT NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (model, sha256)
) WITHOUT ROWID;

CREATE TABLE model_aliases (
    alias TEXT PRIMARY KEY,
    model TEXT NOT NULL
) WITHOUT ROWID;
