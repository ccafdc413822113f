-- Users, their sign-ins and tokens, and trust. Tokens are kept as SHA-256 only.

CREATE TABLE users (
    name          TEXT PRIMARY KEY,
    password_hash TEXT NOT NULL,                            -- argon2id, with its parameters and salt
    scopes        TEXT NOT NULL,                            -- JSON
    namespaces    TEXT NOT NULL,                            -- JSON: patterns
    is_disabled   INTEGER NOT NULL DEFAULT 0,
    created_at    REAL NOT NULL,
    updated_at    REAL NOT NULL
) WITHOUT ROWID;

-- One sign-in and all tokens that come of it, access tokens too: those name their family.
CREATE TABLE token_families (
    family     TEXT PRIMARY KEY,
    user       TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    kid        TEXT NOT NULL,                               -- the key that signed its last access token
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    revoked_at REAL,
    reason     TEXT                                         -- why it was revoked
) WITHOUT ROWID;
CREATE INDEX token_families_by_user ON token_families (user);
CREATE INDEX token_families_expiry ON token_families (expires_at);

-- Refresh tokens. Each is used once: used again, by another request, its whole family is revoked.
CREATE TABLE tokens (
    hash      BLOB PRIMARY KEY,
    family    TEXT NOT NULL REFERENCES token_families (family) ON DELETE CASCADE,
    parent    BLOB,                                         -- the token it was traded for
    issued_at REAL NOT NULL,
    used_at   REAL,
    used_by   BLOB                                          -- id of the request that used it
) WITHOUT ROWID;
CREATE INDEX tokens_by_family ON tokens (family);

-- Who signed in, or tried to.
CREATE TABLE sign_ins (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    at       REAL NOT NULL,
    user     TEXT NOT NULL,                                 -- as it was typed; there may be no such user
    source   TEXT NOT NULL,
    outcome  TEXT NOT NULL                                  -- ok, failed, refreshed, reused, issued
);
CREATE INDEX sign_ins_by_user ON sign_ins (user, sequence);

CREATE TABLE trust_scores (
    user_id    TEXT PRIMARY KEY,                            -- a user, an agent or a model
    successes  REAL NOT NULL,                               -- weighted, forgotten up to updated_at
    failures   REAL NOT NULL,
    outcomes   INTEGER NOT NULL,                            -- all there ever were
    succeeded  INTEGER NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE trust_outcomes (
    sequence        INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id         TEXT NOT NULL,
    success         INTEGER NOT NULL,
    weight          REAL NOT NULL,
    response_time_s REAL,
    note            TEXT NOT NULL,
    reported_by     TEXT NOT NULL,
    at              REAL NOT NULL
);
CREATE INDEX trust_outcomes_by_user ON trust_outcomes (user_id, sequence);
