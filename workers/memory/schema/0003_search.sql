-- What search needs of the chunks: their namespace as one word of the full-text index, so that looking in a small
-- namespace does not read the others; the number of chunks that hold a word; and the chunks of a stretch of time.

-- Two digits for each byte of the namespace: one word to the tokenizer, whatever characters the namespace has.
ALTER TABLE chunks ADD COLUMN scope TEXT GENERATED ALWAYS AS (hex(ns)) VIRTUAL;
CREATE INDEX chunks_by_time ON chunks (ns, at);

DROP TRIGGER chunks_inserted;
DROP TRIGGER chunks_deleted;
DROP TABLE chunks_text;
CREATE VIRTUAL TABLE chunks_text USING fts5 (
    text, speaker, scope,
    content = 'chunks', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER chunks_inserted AFTER INSERT ON chunks BEGIN
    INSERT INTO chunks_text (rowid, text, speaker, scope) VALUES (new.id, new.text, new.speaker, hex(new.ns));
END;
CREATE TRIGGER chunks_deleted AFTER DELETE ON chunks BEGIN
    INSERT INTO chunks_text (chunks_text, rowid, text, speaker, scope)
    VALUES ('delete', old.id, old.text, old.speaker, hex(old.ns));
END;
INSERT INTO chunks_text (chunks_text) VALUES ('rebuild');
CREATE VIRTUAL TABLE chunks_words USING fts5vocab (chunks_text, col);
