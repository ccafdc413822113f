"""What a model gets wrong, noticed in live traffic, feedback and evaluations."""
