-- Rows that were erased, and of which others may still have copies: written with the erasure, gone when they were told.
CREATE TABLE erased_rows (
    row_id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Whose question a piece of evidence is about: it may outlive its exchange.
ALTER TABLE evidence ADD COLUMN user TEXT NOT NULL DEFAULT '';
CREATE INDEX evidence_by_user ON evidence (user) WHERE user != '';
CREATE INDEX evidence_by_age ON evidence (at);
