"""The gate: whether an adapter helps and does not make its model forget, and whether anybody could know."""
