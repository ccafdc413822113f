"""The parts of scripts/verify.py: how it asks, and what it asks of each part of the system."""
