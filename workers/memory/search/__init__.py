"""Search: what matters for a query, from words, meaning and evidence. Start reading at pipeline.py."""
