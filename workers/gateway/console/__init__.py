"""The web console: its files, and what its page asks of the bus."""
