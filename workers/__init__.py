"""The services: one folder each, every one a process of its own that meets the others on the bus only."""
