"""The one process all others connect to; start reading in design.md, then core.py."""
