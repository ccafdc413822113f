"""The error service: groups of like errors, whom to tell of them, and the audit log."""
