"""The wire contract: envelope, subjects, bodies, errors, and the catalogue of operations."""
