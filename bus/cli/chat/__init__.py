"""`olympus chat`: a conversation with a model, its memory and its project, in a terminal or a pipe."""
