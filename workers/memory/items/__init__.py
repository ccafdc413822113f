"""Memories with their relations, groups and life cycle; documents; experiences."""
