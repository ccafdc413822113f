"""The ports of the replaced agents: one declared translation per agent between its words and our operations."""
