-- texts: msgpack of messages, prompt and answer. thread: hash of the conversation with this answer at its end.
-- signals: JSON, strength by name. is_noticed: 0 while what was noticed about it has not become evidence.
CREATE TABLE exchanges (
    reply_id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    at REAL NOT NULL,
    texts BLOB NOT NULL,
    adapter TEXT,
    is_counted INTEGER NOT NULL,
    user TEXT NOT NULL,
    session_id TEXT NOT NULL,
    thread TEXT NOT NULL,
    mean_logprob REAL,
    min_logprob REAL,
    error TEXT NOT NULL,
    signals TEXT NOT NULL,
    outcome REAL,
    outcome_from TEXT NOT NULL,
    is_noticed INTEGER NOT NULL
) STRICT;
CREATE INDEX exchanges_by_age ON exchanges (at);
CREATE INDEX exchanges_by_model ON exchanges (model, at);
CREATE INDEX exchanges_by_session ON exchanges (session_id, at);
CREATE INDEX exchanges_by_user ON exchanges (user, at);
CREATE INDEX exchanges_by_thread ON exchanges (thread);
CREATE INDEX exchanges_unsettled ON exchanges (at) WHERE outcome IS NULL;
CREATE INDEX exchanges_unnoticed ON exchanges (at) WHERE is_noticed = 0;

-- Without a text, and kept when the exchange is gone: what the watch over new adapters counts, each once.
CREATE TABLE outcomes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,
    outcome REAL NOT NULL,
    outcome_from TEXT NOT NULL,
    reply_id TEXT NOT NULL UNIQUE
) STRICT;
CREATE INDEX outcomes_by_model ON outcomes (model, number);
CREATE INDEX outcomes_by_adapter ON outcomes (model, adapter, number);
