"""Upkeep of the memory: export and import, backup and restore, figures, clean-up. Start reading at handlers.py."""
