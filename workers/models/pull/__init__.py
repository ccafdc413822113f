"""Fetching models: sources, resumable downloads, and handing what is whole and usable to the catalogue."""
