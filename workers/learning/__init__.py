"""The learning service: notices what a model gets wrong, trains an adapter on it, and proves that it helps."""
