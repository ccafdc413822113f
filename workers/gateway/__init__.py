"""The edges: HTTP, and the ports of the agents that Olympus replaces, each spoken to the bus in its own words."""
