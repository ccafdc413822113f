-- Tags as search finds them: by their words, in any form, of memories and of documents. Each tag of a namespace is indexed
-- once, however many have it, so that writing one more memory with a known tag costs the index nothing.

CREATE TABLE document_tags (
    ns     TEXT NOT NULL,
    tag    TEXT NOT NULL,
    doc_id TEXT NOT NULL,
    PRIMARY KEY (ns, tag, doc_id)
) WITHOUT ROWID;
CREATE INDEX document_tags_by_document ON document_tags (ns, doc_id);

-- What some memory or document has, and nothing else.
CREATE TABLE tags (
    id    INTEGER PRIMARY KEY,
    ns    TEXT NOT NULL,
    tag   TEXT NOT NULL,
    scope TEXT GENERATED ALWAYS AS (hex(ns)) VIRTUAL,       -- as in chunks: the namespace as one word
    UNIQUE (ns, tag)
);

CREATE VIRTUAL TABLE tags_text USING fts5 (
    tag, scope,
    content = 'tags', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER tags_inserted AFTER INSERT ON tags BEGIN
    INSERT INTO tags_text (rowid, tag, scope) VALUES (new.id, new.tag, hex(new.ns));
END;
CREATE TRIGGER tags_deleted AFTER DELETE ON tags BEGIN
    INSERT INTO tags_text (tags_text, rowid, tag, scope) VALUES ('delete', old.id, old.tag, hex(old.ns));
END;

INSERT INTO document_tags (ns, tag, doc_id)
    SELECT DISTINCT d.ns, t.value, d.doc_id FROM knowledge_base d, json_each(d.tags) t WHERE d.tags <> '[]';
INSERT INTO tags (ns, tag) SELECT ns, tag FROM memory_tags UNION SELECT ns, tag FROM document_tags;

-- NOT EXISTS and no OR IGNORE: in a trigger the outer statement says what a conflict does.
CREATE TRIGGER memory_tags_inserted AFTER INSERT ON memory_tags BEGIN
    INSERT INTO tags (ns, tag)
        SELECT new.ns, new.tag WHERE NOT EXISTS (SELECT 1 FROM tags WHERE ns = new.ns AND tag = new.tag);
END;
CREATE TRIGGER memory_tags_deleted AFTER DELETE ON memory_tags BEGIN
    DELETE FROM tags WHERE ns = old.ns AND tag = old.tag
        AND NOT EXISTS (SELECT 1 FROM memory_tags WHERE ns = old.ns AND tag = old.tag)
        AND NOT EXISTS (SELECT 1 FROM document_tags WHERE ns = old.ns AND tag = old.tag);
END;
CREATE TRIGGER document_tags_inserted AFTER INSERT ON document_tags BEGIN
    INSERT INTO tags (ns, tag)
        SELECT new.ns, new.tag WHERE NOT EXISTS (SELECT 1 FROM tags WHERE ns = new.ns AND tag = new.tag);
END;
CREATE TRIGGER document_tags_deleted AFTER DELETE ON document_tags BEGIN
    DELETE FROM tags WHERE ns = old.ns AND tag = old.tag
        AND NOT EXISTS (SELECT 1 FROM memory_tags WHERE ns = old.ns AND tag = old.tag)
        AND NOT EXISTS (SELECT 1 FROM document_tags WHERE ns = old.ns AND tag = old.tag);
END;

-- A document is replaced as a whole: the row before it goes without a trigger.
CREATE TRIGGER documents_inserted AFTER INSERT ON knowledge_base BEGIN
    DELETE FROM document_tags WHERE ns = new.ns AND doc_id = new.doc_id;
    INSERT INTO document_tags (ns, tag, doc_id) SELECT DISTINCT new.ns, value, new.doc_id FROM json_each(new.tags);
END;
CREATE TRIGGER documents_updated AFTER UPDATE OF ns, doc_id, tags ON knowledge_base BEGIN
    DELETE FROM document_tags WHERE ns = old.ns AND doc_id = old.doc_id;
    INSERT INTO document_tags (ns, tag, doc_id) SELECT DISTINCT new.ns, value, new.doc_id FROM json_each(new.tags);
END;
CREATE TRIGGER documents_deleted AFTER DELETE ON knowledge_base BEGIN
    DELETE FROM document_tags WHERE ns = old.ns AND doc_id = old.doc_id;
END;
