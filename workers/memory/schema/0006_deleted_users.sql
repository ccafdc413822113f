-- Names of users that were deleted. What they stored is found by the name, so nobody else gets it unasked.

CREATE TABLE deleted_users (
    name       TEXT PRIMARY KEY,
    deleted_at REAL NOT NULL
) WITHOUT ROWID;
