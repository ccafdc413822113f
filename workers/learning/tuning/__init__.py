"""How trainings go, and what to change: learning rates, sessions that are followed, and parameters of the user's own."""
