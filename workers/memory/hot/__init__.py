"""The hot tier: copies and counters that may vanish at any time. Start reading at tier.py."""
