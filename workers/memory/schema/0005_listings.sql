-- What a listing by state or by user reads: without these it went through the whole namespace.

CREATE INDEX sessions_by_state ON sessions (ns, state, last_used_at);
CREATE INDEX contexts_by_user ON contexts (ns, user_id, context_id);
CREATE INDEX suggestions_by_user ON suggestions (ns, user_id, made_at);
