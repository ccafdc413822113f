-- topic: JSON, how often each word of content is in its questions. is_told: 1 when learning.opportunity.found went out.
CREATE TABLE opportunities (
    opportunity_id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    family TEXT NOT NULL,
    title TEXT NOT NULL,
    topic TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    last_seen_at REAL NOT NULL,
    category TEXT NOT NULL,
    source TEXT NOT NULL,
    score REAL,
    reason TEXT NOT NULL,
    job_id TEXT NOT NULL,
    found_at REAL,
    is_told INTEGER NOT NULL
) STRICT;
CREATE INDEX opportunities_by_state ON opportunities (state, model);

-- Names that opportunities were told of under, where they joined one that was known.
CREATE TABLE opportunity_names (
    name TEXT PRIMARY KEY,
    opportunity_id TEXT NOT NULL REFERENCES opportunities (opportunity_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- weight: how likely it is that something was wrong, 0..1. words: JSON, of the question, for the topic.
CREATE TABLE evidence (
    opportunity_id TEXT NOT NULL REFERENCES opportunities (opportunity_id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    at REAL NOT NULL,
    note TEXT NOT NULL,
    weight REAL NOT NULL,
    words TEXT NOT NULL,
    wants_answer INTEGER NOT NULL,
    PRIMARY KEY (opportunity_id, id, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX evidence_by_id ON evidence (id);

-- request: msgpack of the feedback as it came; done: msgpack of what it was answered with, NULL until all of it is carried out.
CREATE TABLE feedback (
    feedback_id TEXT PRIMARY KEY,
    reply_id TEXT NOT NULL,
    at REAL NOT NULL,
    user TEXT NOT NULL,
    session_id TEXT NOT NULL,
    rating REAL,
    is_correction INTEGER NOT NULL,
    request BLOB NOT NULL,
    exchange BLOB,
    done BLOB
) STRICT;
CREATE INDEX feedback_by_reply ON feedback (reply_id);
CREATE INDEX feedback_by_user ON feedback (user);

-- How often each signal was there when a person judged, and how often they judged the answer bad. One word per answer.
CREATE TABLE signal_judgements (
    signal TEXT NOT NULL,
    reply_id TEXT NOT NULL,
    is_bad INTEGER NOT NULL,
    PRIMARY KEY (signal, reply_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE training_costs (
    model TEXT PRIMARY KEY,
    s_per_example REAL NOT NULL,
    jobs INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What detection has looked at: evaluations, and up to which outcome drift was followed.
CREATE TABLE looked_at (
    name TEXT PRIMARY KEY,
    at REAL NOT NULL,
    state TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE teacher_questions (
    reply_id TEXT PRIMARY KEY,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
