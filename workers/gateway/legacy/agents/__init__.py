"""One module per replaced agent: what it understood, and what of ours answers it."""
